"""Several ranks of which one hangs: it is found and named, the group is started again, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hanging_worker import OPTIONS, hangs_at_step_7
from ranks_kit import launched, launches_of, problems_of, records_of, resumed_from
from ranks_training import Job
from toy_training import KILLED
from worlds import KITS

import holdfast
from holdfast.catalog.journal.journal import read_journal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through pidfds")
TOTAL = 10


def checked(found: Job, digests: list[str], wanted: tuple[list[str], dict[int, str]]) -> None:
    """Rank 1 was found where it hung, rank 0 where it waits for it; the next start has brought it to the same end."""
    store = holdfast.open(found.store)
    told = [entry.event for entry in read_journal(store, store.run(1).number).by_time()]
    hung = {event.data["rank"]: event.message for event in told if event.kind == "hung"}
    assert "rank 1 has made no step after step 7" in hung[1]
    assert f'called from File "{KITS}/hanging_worker.py"' in hung[1]
    assert "in stuck_for_ever" in hung[1]
    assert "rank 0 has made no step after step 7" in hung[0]
    assert "it waits for other ranks" in hung[0]
    assert f'"{KITS}/ranks_training.py"' in hung[0]
    assert 1 in {event.data["rank"] for event in told if event.kind == "ended"}
    assert digests == wanted[0]
    assert {one.step: one.manifest for one in records_of(found.store)} == wanted[1]
    assert launches_of(found.store) == [1, 2]
    assert resumed_from(found.store, 2) in (4, 6)
    assert problems_of(found.store) == []


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[int, str]]:
    """What a training that nobody disturbs comes to."""
    place = tmp_path_factory.mktemp("undisturbed")
    job = Job(store=place / "store", notes=place / "notes", total=TOTAL)
    world = launched(place, job).wait().check()
    world.family.await_savers_end()
    return world.digests(), {one.step: one.manifest for one in records_of(job.store)}


def test_a_rank_that_hangs_is_named_and_ended_and_the_next_launch_ends_as_if_nothing_had_happened(
    tmp_path: Path, wanted
) -> None:
    job = Job(store=tmp_path / "store", notes=tmp_path / "notes", total=TOTAL, then=hangs_at_step_7, options=OPTIONS)
    world = launched(tmp_path / "one", job).wait()
    assert world.codes[1] == KILLED, world.text
    assert world.codes[0] != 0, world.text
    heir = (
        launched(tmp_path / "two", replace(job, then=lambda *_: None, options={}), family=world.family).wait().check()
    )
    heir.family.await_savers_end()
    checked(job, heir.digests(), wanted)


@pytest.mark.soak
def test_torchrun_starts_the_group_again_after_a_hang(tmp_path: Path, wanted) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=1", "--nproc-per-node=2"]
    path = os.pathsep.join([str(KITS), str(Path(holdfast.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [*launcher, str(KITS / "hanging_worker.py"), str(tmp_path), str(TOTAL)]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    digests = [(tmp_path / f"rank-{rank}.result").read_text() for rank in (0, 1)]
    checked(Job(store=tmp_path / "store", notes=tmp_path / "notes"), digests, wanted)
