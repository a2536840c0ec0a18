"""Restarts that end again and again: what is not to blame is not touched, and no restart storm lasts.

Users-ask 5: 44 identical restarts, until a person cancelled. Hazard 11: the five newest checkpoints were gone in the
morning for a slip in the script, or for one bad node. Every launch here is a process of its own, as a launcher starts
it; most are forked, for speed, and say themselves which code they run.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import tiny_training
from tiny_training import Stop, launched, steps_of

import holdfast
from holdfast.catalog import layout
from holdfast.catalog.journal.accounts import Account
from holdfast.catalog.journal.attempts import read_attempts
from holdfast.catalog.journal.events import Ending
from holdfast.catalog.journal.gathering import gather
from holdfast.catalog.journal.journal import read_journal
from holdfast.catalog.journal.timeline import timeline_of
from holdfast.catalog.marks import read_marks
from holdfast.cli.app import run
from holdfast.errors import Corrupt, CrashLoop, StorageUnavailable
from holdfast.ids import RunNumber
from holdfast.packs import reader
from holdfast.records import Owner
from holdfast.recovery.launching import beginning, proving
from holdfast.recovery.training import opening, restoring
from holdfast.testing.faults import flip_bit

KITS = Path(__file__).parents[1] / "kits"
STOPPED, CRASHED = 82, 1

SCRIPT = """
import sys
import holdfast
from holdfast import Checkpointer, every
from tiny_training import one_step, tiny

BUG = {bug}
store, total = sys.argv[1], int(sys.argv[2])
model, optimizer = tiny()
state = {{"model": model, "optimizer": optimizer}}
try:
    with Checkpointer(store, run="toy", state=state, save=every(steps=2), saver="inline") as ckpt:
        for step in ckpt.steps(total):
            one_step(model, optimizer)
            if BUG:
                {{}}["loss"]
except holdfast.errors.HoldfastError as error:
    print(error)
    raise SystemExit(error.exit_code)
print("done", ckpt.step)
"""


def restarted(script: Path, store: Path, restart: int, job: str = "nightly") -> subprocess.CompletedProcess[str]:
    """As torchrun starts it."""
    told = {"TORCHELASTIC_RUN_ID": job, "TORCHELASTIC_RESTART_COUNT": str(restart), "PYTHONPATH": str(KITS)}
    command = [sys.executable, str(script), str(store), "12"]
    return subprocess.run(command, env=os.environ | told, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Checkpoints of steps 2, 4 and 6."""
    launched(tmp_path / "s", 6, keep=holdfast.latest(9))
    return tmp_path / "s"


def forked(body: Callable[[], object]) -> int:
    """What a child of its own ends with: an exit code, or the number of a signal below zero."""
    child = os.fork()
    if child == 0:
        code = CRASHED
        try:
            body()
            code = 0
        except CrashLoop as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Job:
    """A job whose launches say which code they run and what becomes of them."""

    def __init__(self, store: Path, patch: pytest.MonkeyPatch) -> None:
        self.store, self.patch, self.code, self.name, self.restarts = store, patch, "code", "nightly", 0

    def start(self, prepare: Callable[[], object] = lambda: None, **options: object) -> int:
        """One launch; ``prepare`` runs in its process, before it begins."""

        def body() -> None:
            if self.name:
                os.environ["TORCHELASTIC_RUN_ID"] = self.name
                os.environ["TORCHELASTIC_RESTART_COUNT"] = str(self.restarts)
            self.patch.setattr(beginning, "code_digest", lambda: self.code)
            prepare()
            launched(self.store, 12, **{"keep": holdfast.latest(9)} | options)

        code = forked(body)
        self.restarts += 1
        return code

    def origins(self) -> list[int | None]:
        """The steps that the launches began with, as far as they came so far as to train."""
        starts = holdfast.open(self.store).run(1).starts()
        return [start.resumed_from.step if start.resumed_from else None for start in starts][1:]


@pytest.fixture
def job(store: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(store, monkeypatch)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_it_loads(step: int) -> Callable[[], None]:
    """The process dies inside the load of one checkpoint, before a word of it could be said."""
    load = restoring.load

    def prepare() -> None:
        def dying(store, record, *more, **options):
            if record.step == step:
                _kill()
            return load(store, record, *more, **options)

        restoring.load = dying

    return prepare


def in_the_first_step(step: int) -> dict[str, object]:
    """It is killed in the first step after a checkpoint, before it has saved anything."""
    return {"then": lambda now, ckpt: _kill() if now == step else None}


def test_a_bug_of_the_script_stops_the_restarts_and_costs_no_checkpoint(job: Job) -> None:
    """Hazard 11 as it is told there: six restarts, and in the morning the typo is mended."""
    before = steps_of(job.store)

    def typo(step: int, ckpt: object) -> None:
        raise KeyError("loss")

    assert [job.start(then=typo) for _ in range(6)] == [CRASHED] * 2 + [STOPPED] * 4
    opened = holdfast.open(job.store)
    assert job.origins() == [6, 6]
    assert steps_of(job.store) == before
    assert not any(one.quarantined for one in read_marks(opened, RunNumber(1)).values())
    assert not any(read_attempts(opened, RunNumber(1), number).passed for number in range(1, 8))
    job.code = "mended"
    assert job.start() == 0
    assert job.origins() == [6, 6, 6]


def test_a_checkpoint_that_kills_the_process_while_it_loads_is_passed_over_and_not_for_ever(job: Job) -> None:
    """Hazard 11: the attempt is written before the load, else a crash inside it would never count."""
    fatal = killed_while_it_loads(6)
    assert [job.start(fatal), job.start(fatal)] == [-signal.SIGKILL] * 2
    assert job.origins() == [], "none of them lived to note a start"
    assert job.start(fatal, **in_the_first_step(5)) == -signal.SIGKILL
    assert job.origins() == [4], "an older one is tried by this job"
    job.code = "the code was changed"
    assert job.start() == 0
    assert job.origins() == [4, 6], "and what was suspicion is void with another code: nothing is lost"
    assert not any(one.quarantined for one in read_marks(holdfast.open(job.store), RunNumber(1)).values())


@pytest.mark.parametrize("change", ["config", "job", "by hand"])
def test_suspicion_holds_for_this_job_and_this_configuration_alone(job: Job, change: str) -> None:
    fatal = killed_while_it_loads(6)
    assert [job.start(fatal), job.start(fatal)] == [-signal.SIGKILL] * 2
    job.name = {"job": "another", "by hand": ""}.get(change, job.name)
    assert job.start(**({"config": {"lr": 0.02}} if change == "config" else {})) == 0
    assert job.origins() == [6]


def test_a_checkpoint_after_which_the_process_dies_soon_is_passed_over_aloud(job: Job, tmp_path: Path) -> None:
    assert [job.start(**in_the_first_step(6)) for _ in range(2)] == [-signal.SIGKILL] * 2
    log = tmp_path / "log"
    assert job.start(lambda: logging.basicConfig(filename=log, level=logging.WARNING, force=True)) == 0
    assert job.origins() == [6, 6, 4]
    assert "run-001@6" in log.read_text()
    assert "is tried after older ones: launches 2 and 3 of this job ended (killed)" in log.read_text()
    assert steps_of(job.store)[-1] == 12


def test_when_the_older_one_ends_alike_it_is_the_newest_again_and_then_it_ends(job: Job) -> None:
    """Neither an endless rollback nor a restart storm: at most one checkpoint is passed over, and six tries are all."""
    ends = [job.start(lambda: job.patch.setattr(restoring, "load", lambda *a, **k: _kill())) for _ in range(8)]
    assert ends == [-signal.SIGKILL] * 6 + [STOPPED] * 2
    opened = holdfast.open(job.store)
    tried = [[one.step for one in read_attempts(opened, RunNumber(1), number).tried] for number in range(2, 10)]
    assert tried == [[6], [6], [4], [4], [6], [6], [], []]
    entries = [entry.event for entry in read_journal(opened, RunNumber(1)).entries]
    assert "have all ended before they got on" in next(one.message for one in entries if one.kind == "crash loop")
    assert steps_of(job.store) == [2, 4, 6]
    job.code = "mended"
    assert job.start() == 0
    assert job.origins() == [6]


def test_a_restart_storm_from_zero_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path / "new", monkeypatch)
    ends = [job.start(**in_the_first_step(0)) for _ in range(7)]
    assert ends == [-signal.SIGKILL] * 6 + [STOPPED]


def test_a_model_that_does_not_fit_is_no_crash_inside_the_load(job: Job) -> None:
    """It would be taken for a checkpoint that kills, and the newest be passed over."""

    def wider() -> None:
        job.patch.setattr(tiny_training, "tiny", lambda: made(width=48))

    made = tiny_training.tiny
    assert [job.start(wider) for _ in range(3)] == [CRASHED, CRASHED, STOPPED]
    job.code = "mended"
    assert job.start() == 0
    assert job.origins() == [6]


def raising(where: ModuleType, name: str, error: BaseException) -> Callable[[], None]:
    """In the process of the launch, a function that it needs raises."""

    def prepare() -> None:
        def away(*_: object, **__: object) -> None:
            raise error

        setattr(where, name, away)

    return prepare


def accounts(store: Path) -> Sequence[Account]:
    return timeline_of(gather(holdfast.open(store).run(1)).history).accounts


def test_a_load_that_fails_for_the_storage_is_told_as_that_and_six_in_a_row_are_a_storm(job: Job) -> None:
    """It was told as a launch that was killed. Told as one that somebody has left, it would end every series."""
    away = raising(restoring, "load", StorageUnavailable("EIO"))
    assert [job.start(away) for _ in range(8)] == [CRASHED] * 6 + [STOPPED] * 2
    first, *loads, stopped, again = accounts(job.store)
    assert [(one.ending, one.why) for one in loads] == [(Ending.FAILED, "StorageUnavailable: EIO")] * 6
    assert [one.why.partition(":")[0] for one in (stopped, again)] == ["CrashLoop"] * 2
    assert (first.useful, first.lost) == (6, 0), "what did not begin takes nothing away from what was there"


def test_a_launch_that_cannot_make_its_saver_says_so(job: Job) -> None:
    """It is a launch already, and no training yet; it has tried no checkpoint, so it speaks against none."""
    assert [job.start(raising(opening, "open_checkpoints", OSError("fork"))) for _ in range(7)] == [CRASHED] * 7
    assert {(one.ending, one.why) for one in accounts(job.store)[1:]} == {(Ending.FAILED, "OSError: fork")}
    assert job.start() == 0


def test_who_starts_it_by_hand_is_told_and_never_stopped(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    def crash(step: int, ckpt: object) -> None:
        raise Stop("always")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beginning, "code_digest", lambda: "code")
        for _ in range(8):
            with pytest.raises(Stop):
                launched(store, 12, then=crash)
        assert "it was started by hand, so it is tried again" in caplog.text
        assert launched(store, 12).ckpt.step == 12


def test_the_launcher_may_restart_for_ever_what_gets_on(job: Job) -> None:
    """The same exception every time, and a checkpoint between: that is no loop."""

    def crash(step: int, ckpt: object) -> None:
        if step % 3 == 2:
            raise Stop("now and then")

    assert [job.start(then=crash, save=holdfast.every(steps=1)) for _ in range(2)] == [CRASHED, CRASHED]
    assert steps_of(job.store)[-1] > 7


def test_the_code_that_is_looked_at_is_that_of_the_script(store: Path, tmp_path: Path) -> None:
    """Whole processes, as torchrun starts them: the script is mended, and nothing else is."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(bug=True))
    ends = [restarted(script, store, count) for count in range(3)]
    assert [one.returncode for one in ends] == [CRASHED, CRASHED, STOPPED], ends[2].stderr
    assert "launches 2 and 3 have all ended with 'KeyError: 'loss''" in ends[2].stdout
    assert "no checkpoint was touched" in ends[2].stdout
    script.write_text(SCRIPT.format(bug=False))
    assert "done 12" in restarted(script, store, 3).stdout


# What a bad node finds


def _flips(patch: pytest.MonkeyPatch, times: int = 10**9) -> None:
    """In this process what is read has a bit flipped on its way: a bad memory or network card."""
    left = [times]

    def check_raw(pack, entry, raw):
        if left[0] > 0:
            left[0] -= 1
            raise Corrupt(f"{pack}: flipped", pack=pack, digest=entry.digest)

    patch.setattr(reader, "check_raw", check_raw)


def test_one_bad_node_quarantines_nothing_for_the_others(job: Job) -> None:
    """Hazard 11: whatever it reads is wrong, also the second time, so it can use nothing, and says so."""
    assert [job.start(lambda: _flips(job.patch)) for _ in range(3)] == [CRASHED] * 3
    opened = holdfast.open(job.store)
    assert read_attempts(opened, RunNumber(1), 2).mismatches, "it was noted"
    assert not any(one.quarantined for one in read_marks(opened, RunNumber(1)).values())
    assert job.start() == 0
    assert job.origins() == [6], "another node goes on from the newest"


def test_a_node_that_misreads_the_newest_alone_does_not_take_it_from_the_others(job: Job) -> None:
    """It goes on from an older one, which makes that the head; as long as it gets nowhere the newest is tried again."""

    def prepare() -> None:
        load = restoring.load

        def misread(store, record, *more, **options):
            if record.step == 6:
                raise Corrupt("flipped", pack=record.packs[-1], digest=bytes(32))
            return load(store, record, *more, **options)

        restoring.load = misread

    assert job.start(prepare, **in_the_first_step(5)) == -signal.SIGKILL
    assert job.start() == 0
    assert job.origins() == [4, 6]


def test_a_flip_that_does_not_repeat_costs_no_checkpoint(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _flips(patch, times=1)
        assert launched(store, 12).steps[0] == 6
    assert "read again, past the page cache, it is whole" in caplog.text


def test_what_two_machines_find_is_proof(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that is wrong on the disk: the second machine that says so has it quarantined, the first has not."""
    opened = holdfast.open(store)
    newest = opened.run(1).records()[-1]
    flip_bit(store / newest.packs[-1], 8 * 5000)

    def on(host: str, boot: str) -> None:
        def mine(pack, digest, owner):
            return made(pack, digest, Owner(host=host, boot=boot, pid=1, started="1"))

        made = proving.mismatch_of
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(proving, "mismatch_of", mine)
            with pytest.raises(Stop):
                launched(store, 12, resume="auto", then=lambda step, ckpt: (_ for _ in ()).throw(Stop("soon")))

    def quarantined() -> bool:
        return read_marks(holdfast.open(store), RunNumber(1))[newest.address.id].quarantined

    for host, boot in (("a/1/id-of-a", "1"), ("a/1/id-of-a", "2"), ("pod/7", "3")):
        on(host, boot)
        assert not quarantined(), (
            "neither a reboot of the same machine nor a container, on that machine perhaps, is a second one"
        )
    on("b/1/id-of-b", "4")
    assert quarantined()


def test_a_disk_that_does_not_answer_proves_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StorageUnavailable("EIO", errno=5)

    record = holdfast.open(store).run(1).records()[-1]
    error = Corrupt("flipped", pack=record.packs[0], digest=bytes(32))
    monkeypatch.setattr(proving, "open_pack", away)
    assert proving.repeats(holdfast.open(store), error) is None


def _why(place: Path) -> tuple[str, str | None]:
    out = StringIO()
    with redirect_stdout(out):
        assert run(["why", "run-001", "--json", "--store", str(place)]) == 0
    document = json.loads(out.getvalue())
    return document["resume"], document["restart"]


def test_what_a_restart_would_pass_over_or_refuse_can_be_asked_for(job: Job) -> None:
    """``holdfast why`` named the checkpoint that a person would get, and said nothing of the launcher."""
    newest = str(holdfast.open(job.store).run(1).records()[-1].address)
    assert _why(job.store) == (newest, None)
    assert [job.start(**in_the_first_step(6)) for _ in range(2)] == [-signal.SIGKILL] * 2
    resume, restart = _why(job.store)
    assert resume == newest
    assert restart is not None
    assert restart.startswith(
        f"a restart of job torchrun:nightly passes {newest} over: launches 2 and 3 of this job ended"
    )
    assert not (job.store / layout.attempts_folder(RunNumber(1), 4)).exists(), "asking notes nothing"
    assert job.start(**in_the_first_step(4)) == -signal.SIGKILL
    assert job.origins() == [6, 6, 4]
    assert _why(job.store)[0] == newest, "what got nowhere with an older one does not make that the head"
