"""What a save cost is in the record, the journal and the log, and on a bar for those who want one."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading

import pytest
import torch
from staged_kit import awaited
from tiny_training import launched, records_of
from torch import nn

import holdfast
from holdfast import Checkpointer, every, latest
from holdfast.catalog.journal.journal import read_journal
from holdfast.errors import StorageUnavailable
from holdfast.recovery.handover import bars
from holdfast.recovery.handover.progress_bar import ProgressBar
from holdfast.saver import starting
from holdfast.saver.coding import ENOUGH
from holdfast.saver.figures import figures, sentence
from holdfast.saver.messages import Progress
from holdfast.storage import opening
from holdfast.storage.files import Files
from holdfast.storage.local import LocalStorage


@pytest.fixture(params=["process", "inline"])
def saver(request, caplog):
    caplog.set_level(logging.INFO, "holdfast")
    return request.param


def events(store, kind):
    """Of one kind, in the order in which they were written."""
    opened = holdfast.open(store)
    return [entry.event for entry in read_journal(opened, opened.run(1).number).entries if entry.event.kind == kind]


# Figures


def test_every_save_is_reported_in_record_journal_and_log(tmp_path, saver, caplog):
    launched(tmp_path / "s", 4, saver=saver)
    for record, event in zip(records_of(tmp_path / "s"), events(tmp_path / "s", "saved"), strict=True):
        timing, sizes = record.timing, record.bytes
        assert timing.stall > 0
        assert timing.hashing > 0
        assert timing.writing > 0
        assert timing.durable >= max(timing.stall, timing.staging)
        assert 0 < sizes.stored <= sizes.new <= sizes.logical
        assert event.message == f"{record.address}: every(steps=2)"
        assert event.data == figures(record)
        assert f"saved {record.address}: every(steps=2); {sentence(record)}" in caplog.text
    assert len(records_of(tmp_path / "s")) == 2


def test_the_loop_waits_for_the_copy_alone_or_for_everything(tmp_path, saver):
    launched(tmp_path / "s", 2, saver=saver)
    (record,) = records_of(tmp_path / "s")
    timing = record.timing
    if saver == "process":
        assert 0 < timing.staging <= timing.stall < timing.durable
    else:
        assert timing.staging == 0
        assert timing.stall == timing.durable


def test_a_sentence_has_all_figures(tmp_path):
    launched(tmp_path / "s", 2)
    (record,) = records_of(tmp_path / "s")
    said = sentence(record)
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", said)]
    timing, sizes = record.timing, record.bytes
    seconds = [timing.stall, timing.staging, timing.hashing, timing.writing, timing.durable]
    assert numbers == pytest.approx([*seconds, sizes.new / 1e6, sizes.logical / 1e6, sizes.stored / 1e6], abs=0.06)
    for word in ("loop waited", "staging", "hashing", "writing", "durable", "new", "stored"):
        assert word in said


def test_failures_are_in_the_journal_as_well(tmp_path, saver, monkeypatch):
    """With their traceback, for whoever looks for the cause weeks later."""
    broken = "raise StorageUnavailable('the disk is gone')"
    lines = "import holdfast.saver.saving as s", "from holdfast.errors import StorageUnavailable"
    monkeypatch.setattr(starting, "prelude", "\n".join([*lines, f"def no(*a, **k): {broken}", "s.write_segments = no"]))

    def no(*given, **options):
        raise StorageUnavailable("the disk is gone")

    monkeypatch.setattr("holdfast.saver.saving.write_segments", no)
    with pytest.raises(StorageUnavailable, match="the disk is gone"):
        launched(tmp_path / "s", 2, saver=saver)
    failed = events(tmp_path / "s", "save failed")
    assert failed
    assert all("the disk is gone" in event.message for event in failed)


# The bar


class Seen(bars.NoBar):
    """A bar that remembers."""

    def __init__(self):
        self.reports, self.closed = [], 0

    def __call__(self, report):
        self.reports.append(report)

    def close(self):
        self.closed += 1


def test_progress_is_told_from_the_first_byte_to_the_last(tmp_path, saver, monkeypatch):
    seen = Seen()
    monkeypatch.setattr("holdfast.recovery.saving.making._progress_bar", lambda: seen)
    launched(tmp_path / "s", 4, saver=saver, progress=True)
    first, second = ([one for one in seen.reports if one.generation == number] for number in (1, 2))
    for reports in (first, second):
        total = reports[-1].total
        assert total == sum(spec for spec in large(tmp_path / "s"))
        assert [one.done for one in reports] == sorted(one.done for one in reports)
        assert reports[-1].done == total
    assert seen.closed >= 2


def large(store):
    from holdfast.catalog.manifests import read_manifest

    run = holdfast.open(store).run(1)
    manifest = read_manifest(run, run.records()[0].manifest_digest)
    return [spec.nbytes for spec in manifest.skeleton.tensors if not spec.inline]


def test_a_second_try_begins_its_progress_anew(tmp_path, monkeypatch):
    seen, links = Seen(), []

    class Once(Files):
        def link(self, source, target):
            if target.suffix == ".pack" and not links:
                links.append(target)
                raise OSError(5, "Input/output error")
            super().link(source, target)

    monkeypatch.setattr(opening, "LocalStorage", lambda root, **options: LocalStorage(root, files=Once(), **options))
    monkeypatch.setattr("holdfast.recovery.saving.making._progress_bar", lambda: seen)
    launched(tmp_path / "s", 2, saver="inline", progress=True)
    assert links
    assert max(one.done for one in seen.reports) == seen.reports[0].total
    assert seen.reports[-1].done == seen.reports[-1].total


def no_bar_is_left():
    refreshing = [thread for thread in threading.enumerate() if "Refresh" in type(thread).__name__]
    for thread in refreshing:
        thread.join(10)
    return not any(thread.is_alive() for thread in refreshing)


def test_a_bar_is_shown_on_standard_error_and_leaves_it_in_order(tmp_path, saver, capsys):
    launched(tmp_path / "s", 2, saver=saver, progress=True)
    shown = capsys.readouterr()
    assert "saving" in shown.err
    assert shown.out == ""
    assert no_bar_is_left()


def test_a_bar_of_a_save_that_failed_does_not_stay(capsys):
    bar = ProgressBar()
    bar(Progress(generation=1, done=1, total=9))
    bar.close()
    bar.close()
    assert no_bar_is_left()
    assert "saving" in capsys.readouterr().err


# The codec that is chosen

SLOW = """
import time
from holdfast.storage.direct import FileSink
write = FileSink.write
def slowly(self, offset, data):
    time.sleep(memoryview(data).nbytes / 16e6)
    write(self, offset, data)
FileSink.write = slowly
"""


class Even(nn.Module):
    """40 MB that any codec makes short."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter((torch.arange(10 << 20) // 1000).float())


def auto(store, steps, saver, *, then=lambda step, ckpt: None):
    model = Even()
    settings = {"run": "r", "save": every(steps=1), "keep": latest(99), "codec": "auto", "saver": saver}
    with Checkpointer(store, state={"model": model}, **settings) as ckpt:
        for step in ckpt.steps(steps):
            ckpt._training._checkpoints.drain()
            then(step, ckpt)
            with torch.no_grad():
                model.weight.add_(1)
    return [record.codec for record in records_of(store)]


@pytest.fixture
def slow(saver, monkeypatch):
    """A storage that takes 64 MB a second."""
    if saver == "process":
        monkeypatch.setattr(starting, "prelude", SLOW)
        return
    from holdfast.storage.direct import FileSink

    monkeypatch.setattr(FileSink, "write", FileSink.write)
    exec(SLOW, {})


def test_auto_is_decided_once_by_what_the_storage_takes_and_said(tmp_path, saver, slow, caplog):
    codecs = auto(tmp_path / "s", 3, saver)
    assert codecs[0] == "raw", "it is measured without"
    assert codecs[1] == codecs[2] != "raw"
    assert caplog.text.count(f'codec="auto" is {codecs[1]} for this launch') == 1
    (event,) = events(tmp_path / "s", "codec")
    assert codecs[1] in event.message
    first, second, _ = records_of(tmp_path / "s")
    assert second.bytes.stored < second.bytes.new / 4
    assert first.bytes.stored == first.bytes.new


def test_the_decision_outlives_the_saver_that_made_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(starting, "prelude", SLOW)
    caplog.set_level(logging.INFO, "holdfast")

    def then(step, ckpt):
        if step == 2:
            process = ckpt._training._checkpoints._saves.process
            os.kill(process.pid, signal.SIGKILL)
            awaited(lambda: (ckpt._training._checkpoints.listen(), process.starts)[1] == 2, "there is another one")

    codecs = auto(tmp_path / "s", 4, "process", then=then)
    assert codecs[1:] == [codecs[1]] * 3
    assert codecs[1] != "raw"
    assert caplog.text.count('codec="auto" is') == 1


def test_a_small_save_decides_nothing(tmp_path, saver, caplog):
    launched(tmp_path / "s", 4, saver=saver, codec="auto")
    assert 'codec="auto"' not in caplog.text
    assert [record.codec for record in records_of(tmp_path / "s")] == ["raw", "raw"]
    assert sum(record.bytes.stored for record in records_of(tmp_path / "s")) < ENOUGH
