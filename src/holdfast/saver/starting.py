"""How a saver process is started: the same interpreter, with nothing of the trainer but one socket."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

_DEPENDENCIES = ("msgspec", "blake3", "zstandard", "psutil", "obstore", "numpy", "openzl", "xxhash")

_BOOT = """
import importlib.util, json, os, sys
_, package, places, socket = sys.argv
# Libraries that are loaded for one function of theirs must not start threads of their own.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
# Behind everything else: a module of the user's that is called types.py or token.py must not be taken for Python's.
sys.path += [place for place in json.loads(places) if place not in sys.path]
folder = package.rpartition("/")[0]
spec = importlib.util.spec_from_file_location("holdfast", package, submodule_search_locations=[folder])
sys.modules["holdfast"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
# prelude
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
    package = Path(__file__).resolve().parent.parent / "__init__.py"
    boot = _BOOT.replace("# prelude", prelude)
    return subprocess.Popen(
        [sys.executable, "-I", "-c", boot, str(package), json.dumps(_places()), str(socket)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=[socket],
        start_new_session=True,
        cwd="/",
    )


def error_file() -> IO[bytes]:
    """Where a saver's last words go; it has no name and vanishes with its users."""
    return tempfile.TemporaryFile(prefix="holdfast-saver-")


def _places() -> list[str]:
    """Where the trainer has found what a saver needs: it may be somewhere that only the trainer's path knows."""
    files = (getattr(sys.modules.get(name), "__file__", None) for name in _DEPENDENCIES)
    return sorted({str(Path(file).resolve().parent.parent) for file in files if file})
