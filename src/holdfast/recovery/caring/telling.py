"""Tells somebody of a verdict, beside the training: whoever does not answer keeps nobody waiting."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable

from holdfast.health import Notify, Verdict

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
"""How long a webhook may take."""


class Telling:
    """Not thread-safe.

    Args:
        run: whose verdicts they are, for the message.
        failed: told when somebody could not be told.
    """

    def __init__(self, run: str, failed: Callable[[str], None]) -> None:
        self._run, self._failed = run, failed
        self._threads: list[threading.Thread] = []

    def tell(self, action: Notify, verdict: Verdict) -> None:
        """Begins to tell."""
        work = threading.Thread(target=self._tell, args=(action, verdict), name="holdfast-notify", daemon=True)
        self._threads = [*(one for one in self._threads if one.is_alive()), work]
        work.start()

    def close(self, seconds: float = ANSWER_SECONDS) -> None:
        """Waits for those that are being told, together for so long at most, and never longer than one may take."""
        end = time.monotonic() + min(seconds, ANSWER_SECONDS)
        for one in self._threads:
            one.join(max(0.0, end - time.monotonic()))

    def _tell(self, action: Notify, verdict: Verdict) -> None:
        try:
            if isinstance(action.to, str):
                post(action.to, self._run, verdict)
            else:
                action.to(verdict)
        except Exception as error:  # of the user's function, or of a server: neither ends a training
            text = f"{action.shown} was not told: {type(error).__name__}: {error}"
            logger.warning("%s", text)
            self._failed(text)


def post(address: str, run: str, verdict: Verdict) -> None:
    """Posts a verdict as JSON: ``text`` for chat services, and all of it under ``verdict``.

    Raises:
        OSError: the server does not answer, or refuses.
    """
    body = json.dumps({"text": f"{run}: {verdict}", "run": run, "verdict": verdict.data()}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        answer.read(1)
