"""How a saver process is started: the same interpreter, with nothing of the trainer but one socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import holdfast

_DEPENDENCIES = ("msgspec", "blake3", "zstandard", "psutil", "obstore", "numpy", "openzl", "xxhash")

_BOOT = """
import importlib.util, json, sys
_, package, places, prelude, socket = sys.argv
# Behind everything else: a module of the user's that is called types.py or token.py must not be taken for Python's.
sys.path += [place for place in json.loads(places) if place not in sys.path]
folder = package.rpartition("/")[0]
spec = importlib.util.spec_from_file_location("holdfast", package, submodule_search_locations=[folder])
sys.modules["holdfast"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
exec(prelude)
from holdfast.saver.main import main
main(int(socket))
"""

prelude = ""
"""Code that a saver runs first: for tests that make things fail in it."""


def start(socket: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """A saver process at the other end of ``socket``; what it cannot tell otherwise goes to ``errors``.

    Its own session, so that what ends a terminal or a process group does not end it. Nothing inherited but the
    socket, so that nobody waits for an output that it holds open. Python in isolated mode: neither the working folder
    nor the environment says what is imported.
    """
    package = Path(holdfast.__file__).resolve()
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _BOOT, str(package), json.dumps(_places()), prelude, str(socket)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=[socket],
        start_new_session=True,
        cwd="/",
        env=_environment(),
    )


def error_file() -> IO[bytes]:
    """Where a saver's last words go; it has no name and vanishes with its users."""
    return tempfile.TemporaryFile(prefix="holdfast-saver-")


def _places() -> list[str]:
    """Where the trainer has found what a saver needs: it may be somewhere that only the trainer's path knows."""
    files = (getattr(sys.modules.get(name), "__file__", None) for name in _DEPENDENCIES)
    return sorted({str(Path(file).resolve().parent.parent) for file in files if file})


def _environment() -> dict[str, str]:
    """The trainer's, without what would make a helper of libraries start threads of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
