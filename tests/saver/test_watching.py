"""The watchdog in the saver: whom it takes for hung, what it writes down, whom it ends, and whom it lets be."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pdb
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from staged_kit import awaited

from holdfast.catalog.journal.journal import JournalWriter, read_journal
from holdfast.catalog.store import open_store
from holdfast.saver.beats import Beats
from holdfast.saver.control import LENGTH, Control, Intent
from holdfast.saver.memory import Slab
from holdfast.saver.watching import Watching

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through pidfds")
NUMBER = signal.SIGRTMIN + 8
ABOVE_ONE_LOOK = 1.5
"""Seconds: more than one look counts, however long ago the last one was."""


class Trainer:
    """A forked process that does something, and has said when it last made a step."""

    def __init__(self, folder: Path, doing: Callable[[], object]) -> None:
        self.store = open_store(folder / "store", create=True)
        self.run = self.store.create_run("watched")
        self.slab = Slab.make(LENGTH)
        self.slab.reserve(0, LENGTH)
        self.beats = Beats(self.slab)
        self.file = os.memfd_create("stacks")
        ready, tell = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            faulthandler.register(NUMBER, file=self.file, all_threads=True)
            os.write(tell, b".")
            with contextlib.suppress(BaseException):
                doing()
            os._exit(7)
        os.read(ready, 1)
        self.pidfd = os.pidfd_open(self.pid)
        self.said: list[str] = []
        self.watching = Watching(
            beats=self.beats,
            pid=self.pid,
            pidfd=self.pidfd,
            number=NUMBER,
            stacks=self.file,
            rank=3,
            journal=JournalWriter(self.store, self.run.number, "saver-1-3-1"),
            say=lambda _, text: self.said.append(text),
            gone=lambda: False,
        )

    def look(self, *, hung: float = 0.001, end: float = 0.0, step: int = 41) -> None:
        self.beats.beat(step, hung, end)
        time.sleep(0.01)
        self.watching.look()

    def keep_looking(self, seconds: float = 60.0, *, until: str = "ended") -> None:
        """As the saver does, until it has ended the trainer, or noted something else."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and until not in self.kinds:
            time.sleep(0.05)
            self.watching.look()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    @property
    def events(self) -> list:
        return [entry.event for entry in read_journal(self.store, self.run.number).entries]

    @property
    def alive(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.beats.release()
        self.slab.close()
        os.close(self.file)


@pytest.fixture
def trainer(tmp_path) -> Iterator[Callable[[Callable[[], object]], Trainer]]:
    made: list[Trainer] = []

    def make(doing: Callable[[], object]) -> Trainer:
        made.append(Trainer(tmp_path, doing))
        return made[-1]

    yield make
    for one in made:
        one.end()


def stuck_in_a_place_with_a_name() -> None:
    threading.Event().wait()


def stuck_in_c() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")  # keeps the interpreter's lock for longer than anybody waits


def is_there(one: Trainer) -> None:
    """Waits until it stands where it stays: it sleeps, or has computed for long enough to be in there."""
    process = psutil.Process(one.pid)
    awaited(lambda: process.status() == psutil.STATUS_SLEEPING or process.cpu_times().user > 0.3, "it stands")


def test_a_training_without_a_step_has_its_stacks_in_the_journal(trainer):
    one = trainer(stuck_in_a_place_with_a_name)
    is_there(one)
    one.look()
    (event,) = one.events
    assert event.kind == "hung"
    assert "rank 3 has made no step after step 41" in event.message
    assert "stuck_in_a_place_with_a_name" in event.data["stacks"]
    assert "threading.py" in event.message  # where it is: innermost
    assert len(one.said) == 1
    assert one.alive


def test_stacks_come_out_of_a_process_that_runs_no_python_any_more(trainer):
    one = trainer(stuck_in_c)
    is_there(one)
    one.look()
    assert "stuck_in_c" in one.events[0].data["stacks"]


def test_one_silence_is_written_down_once(trainer):
    one = trainer(stuck_in_a_place_with_a_name)
    one.look()
    for _ in range(3):
        one.watching.look()
    assert len(one.events) == 1


def test_nobody_is_watched_who_rests_or_has_just_made_a_step(trainer):
    one = trainer(stuck_in_a_place_with_a_name)
    one.look(hung=60.0)
    one.beats.beat(42, 0.001, 0.0)
    one.beats.rest()
    time.sleep(0.01)
    one.watching.look()
    assert one.events == []


def test_that_it_goes_on_is_noted_too(trainer):
    one = trainer(stuck_in_a_place_with_a_name)
    one.look()
    one.beats.beat(42, 60.0, 0.0)
    one.watching.look()
    assert [event.kind for event in one.events] == ["hung", "recovered"]


def test_only_who_asks_for_it_is_ended(trainer):
    one = trainer(stuck_in_a_place_with_a_name)
    one.look(end=30.0)
    assert one.alive
    one.look(end=0.002)
    assert [event.kind for event in one.events][-1] == "ended"
    assert os.waitpid(one.pid, 0)[1] == signal.SIGKILL


def writing_to(descriptor: int) -> Callable[[], object]:
    """Hangs, with its standard error there."""

    def doing() -> None:
        os.dup2(descriptor, 2) if descriptor >= 0 else os.close(2)
        stuck_in_a_place_with_a_name()

    return doing


def ended_after_writing(one: Trainer, output: str) -> None:
    """Ends it, once its standard error is what it is to be."""
    stderr = Path(f"/proc/{one.pid}/fd/2")
    while (os.readlink(stderr) if stderr.is_symlink() else "") != output:
        time.sleep(0.01)
    one.look(end=0.002)
    assert os.waitpid(one.pid, 0)[1] == signal.SIGKILL


def test_who_is_ended_has_the_reason_in_the_file_that_its_output_goes_to(trainer, tmp_path):
    log = tmp_path / "job.out"
    log.write_text("earlier lines\n")
    with log.open("r+") as file:  # as `python train.py 2> job.out` has it: not for appending
        ended_after_writing(trainer(writing_to(file.fileno())), str(log))
    first, line = log.read_text().splitlines()
    assert first == "earlier lines"
    assert line.startswith("holdfast: rank 3 is ended by the watchdog after ")
    assert "s without a step after 41: SIGKILL" in line


def test_who_is_ended_has_the_reason_in_the_pipe_that_its_output_goes_to(trainer):
    read, write = os.pipe()
    ended_after_writing(trainer(writing_to(write)), os.readlink(f"/proc/self/fd/{write}"))
    assert os.read(read, 4096).startswith(b"holdfast: rank 3 is ended by the watchdog")


@pytest.mark.parametrize("how", ["closed", "full"])
def test_an_output_that_takes_nothing_keeps_nobody_from_being_ended(trainer, how):
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while how == "full":
            os.write(write, bytes(65536))
    path = "" if how == "closed" else os.readlink(f"/proc/self/fd/{write}")
    ended_after_writing(trainer(writing_to(-1 if how == "closed" else write)), path)
    os.close(read)


def test_whoever_was_ended_and_takes_its_time_to_die_is_not_ended_again(trainer):
    one = trainer(stuck_in_a_place_with_a_name)
    one.look(end=0.002)
    os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)  # it stays where it is, as one does that waits for a disk
    for _ in range(3):
        time.sleep(0.01)
        one.watching.look()
    assert one.kinds == ["hung", "ended"]


def test_a_stopped_process_is_not_hung(trainer):
    one = trainer(stuck_in_a_place_with_a_name)
    os.kill(one.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, one.pid, os.WSTOPPED | os.WNOWAIT)
    one.look(end=0.002)
    assert one.events == []
    os.kill(one.pid, signal.SIGCONT)


def test_whoever_is_in_a_debugger_is_not_ended(trainer):
    reading, _ = os.pipe()
    prompted, prompt = os.pipe()

    def debugging() -> None:
        pdb.Pdb(stdin=os.fdopen(reading), stdout=os.fdopen(prompt, "w")).set_trace()
        time.sleep(600)

    one, shown = trainer(debugging), b""
    while b"(Pdb)" not in shown:
        shown += os.read(prompted, 1000)
    one.look(end=0.002)
    one.watching.look()
    assert [event.kind for event in one.events] == ["hung", "spared"]
    assert "a person steps through it" in one.events[-1].message
    assert one.alive


def test_time_in_which_it_was_stopped_does_not_count(trainer):
    """Job control, a debugger in C, `scontrol suspend`: it has lost nothing when it goes on."""
    one = trainer(stuck_in_a_place_with_a_name)
    os.kill(one.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, one.pid, os.WSTOPPED | os.WNOWAIT)
    one.beats.beat(41, ABOVE_ONE_LOOK, ABOVE_ONE_LOOK)
    one.keep_looking(ABOVE_ONE_LOOK + 0.2)
    os.kill(one.pid, signal.SIGCONT)
    one.watching.look()
    assert one.events == []
    assert one.alive


def test_time_in_which_the_saver_was_frozen_too_does_not_count(trainer):
    """A container that is paused, a machine that is moved: nobody was there to see that it stood still."""
    one = trainer(stuck_in_a_place_with_a_name)
    one.beats.beat(41, ABOVE_ONE_LOOK, ABOVE_ONE_LOOK)
    time.sleep(ABOVE_ONE_LOOK + 0.2)
    one.watching.look()
    assert one.events == []
    assert one.alive


def test_what_was_counted_is_void_when_it_gets_on(trainer):
    one = trainer(stuck_in_a_place_with_a_name)
    for step in range(4):
        one.beats.beat(step, ABOVE_ONE_LOOK, ABOVE_ONE_LOOK)
        one.keep_looking(ABOVE_ONE_LOOK / 3)
    assert one.events == []


def test_a_hang_is_found_all_the_same_by_looking(trainer):
    one = trainer(stuck_in_a_place_with_a_name)
    one.beats.beat(41, 0.5, 1.0)
    one.keep_looking()
    assert one.kinds == ["hung", "ended"]
    assert os.waitpid(one.pid, 0)[1] == signal.SIGKILL


def test_whoever_was_in_a_debugger_has_time_for_his_step_afterwards_and_is_watched(trainer):
    reading, typing = os.pipe()
    went_on, tell = os.pipe()

    def debugging() -> None:
        pdb.Pdb(stdin=os.fdopen(reading), stdout=open(os.devnull, "w")).set_trace()  # noqa: SIM115
        os.write(tell, b".")
        time.sleep(600)

    one = trainer(debugging)
    one.beats.beat(41, 0.5, 3.0)
    one.keep_looking(until="spared")
    assert one.kinds == ["hung", "spared"]
    os.write(typing, b"continue\n")
    os.read(went_on, 1)
    one.watching.look()
    assert one.kinds == ["hung", "spared"]
    assert one.alive
    one.keep_looking()
    assert one.kinds == ["hung", "spared", "ended"]


@pytest.mark.parametrize("compiling", [True, False])
def test_who_compiles_is_spared_and_who_hangs_in_what_was_compiled_is_ended(trainer, compiling):
    """Frames of Dynamo are on the stack of whatever it has compiled, for as long as that runs."""
    arrived, tell = os.pipe()

    def stuck_here() -> None:
        os.write(tell, b".")
        threading.Event().wait()

    def backend(graph, inputs):
        if compiling:
            stuck_here()
        return graph.forward

    @torch._dynamo.disable
    def in_the_middle() -> None:
        if not compiling:
            stuck_here()

    @torch.compile(backend=backend)
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        in_the_middle()
        return y * 2

    one = trainer(lambda: forward(torch.ones(2)))
    os.read(arrived, 1)
    one.look(end=0.002)
    assert "/torch/_dynamo/eval_frame.py" in one.events[0].data["stacks"]
    assert one.kinds == ["hung", "spared" if compiling else "ended"]


def test_signs_of_life_and_staged_states_share_a_slab_without_touching():
    slab = Slab.make(LENGTH)
    slab.reserve(0, LENGTH)
    control, beats = Control(slab), Beats(slab)
    for slot in range(3):
        control.describe(slot, Intent.SAVE, 1, 2, b"document")
        control.seal(slot, 10 + slot)
    beats.beat(2**40, 1.5, 9.0)
    now = beats.read()
    assert (now.step, now.hung, now.end) == (2**40, 1.5, 9.0)
    assert [row.generation for row in control.rows()] == [10, 11, 12]
    beats.release()
