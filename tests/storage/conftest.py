import multiprocessing
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def processes():
    """Processes that start quickly, from a parent without threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["holdfast.testing.storage", "holdfast.testing.faults"])
    return context


@pytest.fixture
def small_disk(tmp_path):
    """A real filesystem of 16 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"may not mount a small disk here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def fast_disk(tmp_path):
    """A folder where a sync costs nothing, for tests that make hundreds and lose no power."""
    if not os.path.isdir("/dev/shm"):
        yield tmp_path
        return
    place = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="holdfast-test-"))
    yield place
    shutil.rmtree(place)
