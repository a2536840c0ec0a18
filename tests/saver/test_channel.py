"""The socket between trainer and saver: whole messages, descriptors with them, no wait without an end."""

from __future__ import annotations

import os
import signal

import msgspec
import pytest
from toy_training import ended, forked

from holdfast.errors import Corrupt, InvalidInput
from holdfast.records import Target
from holdfast.saver import channel as module
from holdfast.saver import messages
from holdfast.saver.channel import LONGEST, Channel, Closed, close_all

TARGET = Target(run=1, launch=2, timeline=0, step=9, id="0123456789abcdef")


@pytest.fixture
def ends():
    mine, other = Channel.pair()
    theirs = Channel(other)
    yield mine, theirs
    mine.close()
    theirs.close()


ALL = [
    messages.Hello(
        url="/s", run=1, launch=2, keep="latest(3)", codec="auto", nice=19, on_full="skip", slabs=[(3, 4096)]
    ),
    messages.NewSlab(serial=4, length=8192, instead=3),
    messages.Staged(),
    messages.Hurry(on=True),
    messages.AddMetrics(target=TARGET, metrics=b'{"loss":1}', number=3),
    messages.AddTag(target=TARGET, tag="mine", number=4),
    messages.AddMark(target=TARGET, kind="good", number=5),
    messages.FreeSpace(),
    messages.Rescue(kind="preempted", reason="SIGTERM"),
    messages.Goodbye(),
    messages.Ready(pid=77),
    messages.Committed(generation=3, record=b"{}"),
    messages.GivenUp(generation=3, kind="storage-full", text="no space", restage=True),
    messages.Followed(generation=3, damaged=["data/shared/a.pack"], deleted=["0123456789abcdef"]),
    messages.Noted(number=4),
    messages.Progress(generation=3, done=1, total=2),
    messages.Chosen(codec="zstd"),
    messages.Alive(),
    messages.Said(level=30, text="well"),
]


def test_no_message_is_forgotten_here():
    assert {type(message) for message in ALL} == set((messages.ToSaver | messages.ToTrainer).__args__)


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_every_message_arrives_as_it_was_sent(ends, message):
    mine, theirs = ends
    mine.send(message)
    assert theirs.receive() == (message, [])
    assert theirs.receive() is None


@pytest.mark.parametrize("data", [b"", b"\x80", b"junk", msgspec.msgpack.encode({"type": "Nobody"})])
def test_something_else_is_refused(data):
    with pytest.raises(Corrupt):
        messages.decode(data)


def test_messages_keep_their_order_and_their_ends(ends):
    mine, theirs = ends
    for number in range(50):
        mine.send(messages.Committed(generation=number, record=b"x" * 100 * number))
    found = [theirs.receive()[0] for _ in range(50)]
    assert [(one.generation, len(one.record)) for one in found] == [(number, 100 * number) for number in range(50)]


def test_the_longest_message_arrives(ends):
    mine, theirs = ends
    longest = messages.Committed(generation=1, record=b"x" * (LONGEST - 200))
    mine.send(longest)
    assert theirs.receive()[0] == longest


def test_descriptors_come_with_their_message_and_are_not_inherited(ends):
    mine, theirs = ends
    reader, writer = os.pipe()
    mine.send(messages.Staged())
    mine.send(messages.NewSlab(serial=1, length=1, instead=0), [writer])
    assert theirs.receive() == (messages.Staged(), [])
    _, (theirs_writer,) = theirs.receive()
    assert theirs_writer != writer
    assert not os.get_inheritable(theirs_writer)
    os.write(theirs_writer, b"hello")
    assert os.read(reader, 5) == b"hello"
    close_all([theirs_writer, theirs_writer])
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(theirs_writer)
    os.close(reader)
    os.close(writer)


# Nobody waits


def everything(mine, theirs):
    """What one end has to say, once the other one reads."""
    found = []
    while True:
        sent = mine.flush(0.0)
        while (received := theirs.receive()) is not None:
            found.append(received[0])
        if sent:
            return found


def test_whoever_does_not_read_stops_nobody_and_misses_nothing_but_reports(ends):
    mine, theirs = ends
    for number in range(300):
        mine.send(messages.Committed(generation=number, record=b"x" * 8000))
        mine.send(messages.Progress(generation=number, done=1, total=2))
        mine.send(messages.Alive())
    assert not mine.flush(0.0)
    found = everything(mine, theirs)
    committed = [one.generation for one in found if isinstance(one, messages.Committed)]
    assert committed == list(range(300))
    assert sum(isinstance(one, messages.Progress) for one in found) < 300
    assert sum(isinstance(one, messages.Alive) for one in found) < 300


def test_lines_of_the_log_are_not_kept_for_ever_and_what_becomes_of_saves_is(ends, monkeypatch):
    monkeypatch.setattr(module, "_WAITING", 10)
    mine, theirs = ends
    for number in range(300):
        mine.send(messages.Said(level=20, text="x" * 8000))
        mine.send(messages.Followed(generation=number, deleted=["0123456789abcdef"] * 100))
    found = everything(mine, theirs)
    assert [one.generation for one in found if isinstance(one, messages.Followed)] == list(range(300))
    assert sum(isinstance(one, messages.Said) for one in found) < 300


def test_what_is_too_long_for_the_other_side_is_refused_here(ends):
    mine, theirs = ends
    with pytest.raises(InvalidInput, match="at most"):
        mine.send(messages.Committed(generation=1, record=bytes(LONGEST)))
    mine.send(messages.Staged())
    assert theirs.receive() == (messages.Staged(), [])


def test_waiting_ends_with_a_message_or_with_time(ends):
    mine, theirs = ends
    assert not theirs.wait(0.0)
    mine.send(messages.Staged())
    assert theirs.wait(60.0)


# The end of the other side


def test_what_was_said_before_the_end_is_heard_and_then_the_end(ends):
    mine, theirs = ends
    mine.send(messages.Goodbye())
    mine.close()
    assert theirs.wait(60.0)
    assert theirs.receive() == (messages.Goodbye(), [])
    with pytest.raises(Closed):
        theirs.receive()
    with pytest.raises(Closed):
        theirs.send(messages.Staged())


def test_what_a_process_has_said_before_it_was_killed_is_heard():
    mine, other = Channel.pair()

    def work():
        channel = Channel(other)
        for number in range(5):
            channel.send(messages.Ready(pid=number))
        os.kill(os.getpid(), signal.SIGKILL)

    child = forked(work)
    other.close()
    assert ended(child) == -signal.SIGKILL
    assert [mine.receive()[0].pid for _ in range(5)] == list(range(5))
    with pytest.raises(Closed):
        mine.receive()
    mine.close()
    mine.close()


def test_what_it_has_said_is_heard_although_it_died_with_something_unread():
    """Linux then answers the first look with an error, before everything that lies there."""
    mine, other = Channel.pair()
    mine.send(messages.Staged())

    def work():
        channel = Channel(other)
        for number in range(5):
            channel.send(messages.Ready(pid=number))
        os.kill(os.getpid(), signal.SIGKILL)

    child = forked(work)
    other.close()
    assert ended(child) == -signal.SIGKILL
    assert [mine.receive()[0].pid for _ in range(5)] == list(range(5))
    with pytest.raises(Closed):
        mine.receive()
    mine.close()
