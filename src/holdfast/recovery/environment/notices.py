"""The notice that a cloud gives before it takes a machine back, from its metadata service.

Off unless asked for: a library that talks to the network unasked is a surprise. What a notice looks like is told by
one pure function per cloud; sources:

- AWS: "Spot Instance interruption notices", instance-action; session tokens of IMDSv2; two minutes.
- Google: "Spot VMs", preemption process; ``instance/preempted``; 30 seconds.
- Azure: "Scheduled Events", types Preempt and Terminate; at least 30 seconds.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from types import TracebackType
from typing import Self

from holdfast.errors import InvalidInput
from holdfast.recovery.environment.grace import Grace
from holdfast.recovery.environment.launcher import cloud_here, local_rank

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0
ANSWER_SECONDS = 2.0
SHORT = 30.0
"""Seconds that Google gives, and Azure at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The machine will be taken back."""

    text: str
    ends: float
    """Unix time."""


def notice_of_aws(body: str, now: float) -> Notice | None:
    """From ``spot/instance-action``, which is not there (404) as long as there is none.

    Example:
        >>> found = notice_of_aws('{"action": "terminate", "time": "2026-01-01T00:02:00Z"}', now=0.0)
        >>> found.text, found.ends
        ('AWS will terminate this machine', 1767225720.0)
    """
    found = json.loads(body)
    ends = datetime.strptime(found["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    return Notice(text=f"AWS will {found['action']} this machine", ends=ends.timestamp())


def notice_of_gce(body: str, now: float) -> Notice | None:
    """From ``instance/preempted``.

    Example:
        >>> notice_of_gce("FALSE", now=0.0) is None, notice_of_gce("TRUE", now=5.0).ends
        (True, 35.0)
    """
    if body.strip().upper() != "TRUE":
        return None
    return Notice(text="Google pre-empts this machine", ends=now + SHORT)


def notice_of_azure(body: str, now: float, machine: str = "") -> Notice | None:
    """From ``scheduledevents``; ``machine``: the name of this one, for a scale set shows the events of all.

    Example:
        >>> event = {"EventType": "Preempt", "Resources": ["vm1"], "NotBefore": "Thu, 01 Jan 1970 00:00:40 GMT"}
        >>> notice_of_azure(json.dumps({"Events": [event]}), now=0.0, machine="vm1").ends
        40.0
        >>> notice_of_azure(json.dumps({"Events": [event]}), now=0.0, machine="vm2") is None
        True
    """
    for event in json.loads(body).get("Events", []):
        mine = not machine or machine in event.get("Resources", [])
        if mine and event.get("EventType") in ("Preempt", "Terminate"):
            before = event.get("NotBefore")  # empty once it has started
            ends = parsedate_to_datetime(before).timestamp() if before else now + SHORT
            return Notice(text=f"Azure will {event['EventType'].lower()} this machine", ends=ends)
    return None


class Metadata:
    """The metadata service of one cloud. Belongs to one thread.

    Args:
        cloud: aws, gce or azure.
        base: where it answers; None: where that cloud has it.
    """

    def __init__(self, cloud: str, base: str | None = None) -> None:
        self._cloud = cloud
        self._base = base or ("http://metadata.google.internal" if cloud == "gce" else "http://169.254.169.254")
        self._known = ""
        # A proxy would answer for a machine of its own.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def look(self) -> Notice | None:
        """The notice, if there is one.

        Raises:
            OSError, HTTPException, ValueError, LookupError: no answer, or one that makes no sense.
        """
        now = time.time()
        if self._cloud == "gce":
            body = self._get("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
            return notice_of_gce(body, now)
        return self._look_aws(now) if self._cloud == "aws" else self._look_azure(now)

    def _look_aws(self, now: float) -> Notice | None:
        asks = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        self._known = self._known or self._get("/latest/api/token", asks, method="PUT")
        try:
            body = self._get("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._known})
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            self._known = ""  # the token has expired, perhaps
            raise
        return notice_of_aws(body, now)

    def _look_azure(self, now: float) -> Notice | None:
        asks = {"Metadata": "true"}
        path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        self._known = self._known or self._get(path, asks)
        return notice_of_azure(self._get("/metadata/scheduledevents?api-version=2020-07-01", asks), now, self._known)

    def _get(self, path: str, headers: Mapping[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(self._base + path, headers=dict(headers), method=method)
        with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
            text: str = answer.read(1 << 16).decode()
        return text


def metadata_of(notice: str | None) -> Metadata | None:
    """Whom to ask, on one process of each machine; None: nobody.

    Args:
        notice: aws, gce, azure, "auto" for what the firmware tables say, or None.

    Raises:
        InvalidInput: something else.
    """
    if notice not in (None, "auto", "aws", "gce", "azure"):
        raise InvalidInput(f"notice={notice!r}: there is aws, gce, azure, auto, or None")
    cloud = cloud_here() if notice == "auto" else notice
    return None if cloud is None or local_rank() else Metadata(cloud)


class Lookout:
    """A context in which a thread asks for the notice every few seconds.

    Args:
        metadata: whom to ask; None: nobody is asked.
        ask: told once, with a name for messages and the time that is left. Safe in another thread.
        pause: seconds between two looks.
    """

    def __init__(
        self, metadata: Metadata | None, ask: Callable[[str, Grace], None], pause: float = POLL_SECONDS
    ) -> None:
        self._metadata, self._ask, self._pause = metadata, ask, pause
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._over = threading.Event()
        if self._metadata is not None:
            threading.Thread(
                target=self._run, args=(self._metadata, self._over), name="holdfast-notice", daemon=True
            ).start()
        return self

    def __exit__(self, type_: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()

    def _run(self, metadata: Metadata, over: threading.Event) -> None:
        told = False
        while not over.is_set():
            try:
                notice = metadata.look()
            except (OSError, HTTPException, ValueError, LookupError) as error:
                level = logging.DEBUG if told else logging.WARNING
                logger.log(level, "the cloud's metadata service cannot be asked for notices: %s", error)
                notice, told = None, True
            if notice is not None:
                self._ask(notice.text, Grace(seconds=max(0.0, notice.ends - time.time()), why="the cloud's notice"))
                return
            over.wait(self._pause)
