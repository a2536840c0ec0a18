"""What one rank of several reads wrong: all of them read again, or take an older checkpoint, together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from ranks_kit import launched, launches_of, records_of
from ranks_training import Job, train

import holdfast
from holdfast.catalog.journal.attempts import read_attempts
from holdfast.catalog.marks import read_marks
from holdfast.errors import Corrupt
from holdfast.ids import RunNumber
from holdfast.packs import reader

TOTAL = 6


def flipping(times: int):
    """On rank 1 so many segments are wrong on their way from the disk."""

    def work(job: Job) -> str:
        left = [times]
        init = dist.init_process_group

        def begun(*given, **named):
            init(*given, **named)
            if dist.get_rank() == 1:
                reader.check_raw = flipped  # in this process, which is the rank's own

        def flipped(pack, entry, raw):
            if left[0] > 0:
                left[0] -= 1
                raise Corrupt(f"{pack}: flipped", pack=pack, digest=entry.digest)

        dist.init_process_group = begun
        return train(job)

    return work


def job_in(place: Path, total: int = TOTAL) -> Job:
    return Job(store=place / "store", notes=place / "notes", how="fsdp", total=total)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """After six steps, with checkpoints of 2, 4 and 6."""
    launched(tmp_path, job_in(tmp_path)).wait().check().family.await_savers_end()
    return job_in(tmp_path, total=TOTAL + 2)


def begun_with(job: Job) -> int | None:
    start = holdfast.open(job.store).run(1).starts()[-1]
    return start.resumed_from.step if start.resumed_from else None


def test_what_one_rank_has_misread_once_is_read_again_by_all(job: Job, tmp_path: Path) -> None:
    world = launched(tmp_path / "again", job, work=flipping(1)).wait().check()
    assert begun_with(job) == TOTAL, world.text
    assert "read again, past the page cache, it is whole" in world.log(1)


def test_what_one_rank_reads_wrong_twice_is_noted_for_all_and_condemns_nothing(job: Job, tmp_path: Path) -> None:
    """Rank 0 keeps the notes, and has itself read everything right."""
    world = launched(tmp_path / "again", job, work=flipping(10**9)).wait()
    assert all(world.codes.values()), "whatever rank 1 reads is wrong, so there is nothing to go on with"
    opened, last = holdfast.open(job.store), launches_of(job.store)[-1]
    found = read_attempts(opened, RunNumber(1), last).mismatches
    assert found, world.text
    packs = {pack for record in records_of(job.store) for pack in record.packs}
    assert {one.pack for one in found} <= packs
    assert not any(one.quarantined for one in read_marks(opened, RunNumber(1)).values())
