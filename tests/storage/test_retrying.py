"""What may pass is tried again, what may not is told at once, and nothing is done twice that must not be."""

from __future__ import annotations

import errno
import http.server
import logging
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.catalog.objects import ListsFolders, create_once
from holdfast.errors import (
    Corrupt,
    InvalidInput,
    InvalidName,
    ObjectExists,
    ObjectMissing,
    StorageError,
    StorageFull,
    StorageReadOnly,
    StorageUnavailable,
)
from holdfast.ids import ObjectName
from holdfast.records import StoreInfo
from holdfast.storage.faults import CutRead, Fail, FaultyStorage, LoseAnswer, When
from holdfast.storage.local import LocalStorage
from holdfast.storage.memory import memory_storage
from holdfast.storage.retrying import Chance, Patience, RetryingStorage, may_pass, retrying
from holdfast.storage.tracing import TracingStorage
from holdfast.testing.faults import HookedFiles, Op
from holdfast.testing.storage import StorageContract

A, B = ObjectName("x/a"), ObjectName("x/b")
DOWN = StorageUnavailable("no answer", errno=errno.ETIMEDOUT)
VERBS = ("create", "read", "size", "list", "delete", "sink", "write", "source", "read_into", "sweep_unfinished")


class Clock:
    """Time that passes only while somebody sleeps; half of every pause is drawn."""

    def __init__(self, draw=0.5):
        self.time, self.pauses = 0.0, []
        self.chance = Chance(now=lambda: self.time, sleep=self.sleep, draw=lambda: draw)

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.time += seconds


def at_once():
    return Clock(draw=0.0).chance


def flaky(*faults, inner=None, patience=None, chance=None):
    storage = FaultyStorage(inner or memory_storage(), *faults)
    return retrying(storage, patience, chance or at_once())


def when(*verbs, **where):
    return When(verbs=frozenset(verbs), **where)


class TestOverMemory(StorageContract):
    test_create_has_one_winner_among_processes = None  # no other process can reach it

    @pytest.fixture
    def inner(self):
        return memory_storage()

    @pytest.fixture
    def storage(self, inner):
        return retrying(inner)

    def raw(self, storage, name):
        try:
            return bytes(self.memory(storage).get(name).bytes())
        except FileNotFoundError:
            return None

    def put_raw(self, storage, name, data):
        self.memory(storage).put(name, data)

    def memory(self, storage):
        return storage._inner._store


class TestOverFailingMemory(TestOverMemory):
    """Every second operation fails, but for commits, which cannot be made up for."""

    @pytest.fixture
    def storage(self, inner):
        faults = [
            Fail(error=DOWN, when=When(verbs=frozenset({verb}), at=at)) for verb in VERBS for at in range(1, 99, 2)
        ]
        return flaky(*faults, inner=inner, patience=Patience(attempts=50))

    def memory(self, storage):
        return storage._inner._inner._store


class TestOverLostAnswers(TestOverFailingMemory):
    """Every second answer is lost, but for those that tell who won."""

    @pytest.fixture
    def storage(self, inner):
        verbs = [verb for verb in VERBS if verb != "create"]
        faults = [
            LoseAnswer(error=DOWN, when=When(verbs=frozenset({verb}), at=at))
            for verb in verbs
            for at in range(1, 99, 2)
        ]
        return flaky(*faults, inner=inner, patience=Patience(attempts=50))


class TestOverDisk(StorageContract):
    @pytest.fixture
    def storage(self, fast_disk):
        return retrying(LocalStorage(fast_disk / "store"))

    def raw(self, storage, name):
        path = Path(storage.url) / name
        return path.read_bytes() if path.exists() else None

    def put_raw(self, storage, name, data):
        path = Path(storage.url) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def url_elsewhere(self, storage):
        return storage.url


def do(storage, verb):
    """One operation of each verb, and what came of it."""
    if verb in ("read", "size", "source", "read_into", "delete"):
        storage._inner._inner.create(A, b"abc")
    if verb == "create":
        storage.create(A, b"abc")
        return storage.read(A)
    if verb in ("sink", "write", "commit"):
        with storage.sink(A, 3) as sink:
            sink.write(0, b"abc")
            sink.commit(3)
        return storage.read(A)
    if verb in ("source", "read_into"):
        into = bytearray(3)
        with storage.source(A) as source:
            source.read_into(0, memoryview(into))
        return bytes(into)
    if verb == "list":
        return [*storage.list("x/")]
    if verb == "delete":
        storage.delete([A])
        return [*storage.list("")]
    return {"read": lambda: storage.read(A), "size": lambda: storage.size(A)}.get(verb, storage.sweep_unfinished)()


@pytest.mark.parametrize("verb", [*VERBS, "commit"])
def test_every_operation_is_tried_again_until_it_succeeds(verb):
    expected = do(flaky(), verb)
    assert do(flaky(Fail(error=DOWN, when=when(verb, times=4))), verb) == expected


@pytest.mark.parametrize("verb", [*VERBS, "commit"])
def test_no_operation_is_tried_more_often_than_allowed(verb):
    storage = flaky(Fail(error=DOWN, when=when(verb, times=None)), patience=Patience(attempts=3))
    with pytest.raises(StorageUnavailable, match="no answer") as caught:
        do(storage, verb)
    assert storage._inner._counts == [3]
    assert caught.value.__notes__ == ["given up at attempt 3, 0.0 s after the first"]


@pytest.mark.parametrize("verb", ["read", "size", "list", "delete", "write", "source", "read_into"])
def test_lost_answers_do_no_harm(verb):
    expected = do(flaky(), verb)
    assert do(flaky(LoseAnswer(error=DOWN, when=when(verb, times=2))), verb) == expected


def test_a_create_whose_answer_was_lost_finds_its_own_object():
    """Hazards 1: it is for the caller to read back whose it is."""
    storage = flaky(LoseAnswer(error=DOWN, when=when("create")))
    with pytest.raises(ObjectExists):
        storage.create(A, b"mine")
    assert storage.read(A) == b"mine"
    create_once(flaky(LoseAnswer(error=DOWN, when=when("create"))), A, StoreInfo(id="mine", created="now"))


def test_a_create_whose_answer_was_lost_is_not_taken_for_somebody_elses():
    inner = memory_storage()
    create_once(inner, A, StoreInfo(id="theirs", created="now"))
    with pytest.raises(ObjectExists):
        create_once(flaky(Fail(error=DOWN), inner=inner), A, StoreInfo(id="mine", created="now"))


def test_a_commit_whose_answer_was_lost_is_told_as_it_was_and_not_made_twice():
    inner = TracingStorage(memory_storage())
    storage = flaky(LoseAnswer(error=DOWN, when=when("commit")), inner=inner)
    with storage.sink(A, 0) as sink:
        sink.write(0, b"abc")
        with pytest.raises(StorageUnavailable, match="no answer"):
            sink.commit(3)
    assert inner.read(A) == b"abc"
    assert [one.failed for one in inner.operations if one.verb == "commit"] == [None, "invalid-input"]


class FailsOnce(HookedFiles):
    """The next event of a kind fails; all of that kind are counted from then on."""

    def __init__(self, op, code):
        super().__init__()
        self.op, self.code, self.armed, self.count = op, code, False, 0

    def around(self, event, run):
        if not self.armed or event.op is not self.op:
            return run()
        self.count += 1
        if self.count == 1:
            raise OSError(self.code, os.strerror(self.code))
        return run()


@pytest.mark.parametrize("op", [Op.SYNC, Op.LINK, Op.SYNC_FOLDER])
def test_a_file_is_never_synced_again_after_an_error(fast_disk, op):
    """Hazards 12: the kernel has marked the lost pages clean, and the second sync would lie."""
    files = FailsOnce(op, errno.ETIMEDOUT)
    storage = retrying(LocalStorage(fast_disk / "store", files), chance=at_once())
    with storage.sink(A, 0) as sink:
        sink.write(0, b"abc")
        files.armed = True
        with pytest.raises(StorageUnavailable, match="cannot commit"):
            sink.commit(3)
    assert files.count == 1
    assert storage.sweep_unfinished() == 0


def test_a_write_into_a_sink_that_failed_is_made_up_for_by_the_same_one(fast_disk):
    """A write is not a sync: what was written again is there."""
    files = FailsOnce(Op.WRITE, errno.EAGAIN)
    storage = retrying(LocalStorage(fast_disk / "store", files), chance=at_once())
    files.armed = True
    with storage.sink(A, 0) as sink:
        sink.write(0, b"abc")
        sink.commit(3)
    assert files.count == 2
    assert storage.read(A) == b"abc"


def test_and_by_no_other(fast_disk):
    files = FailsOnce(Op.WRITE, errno.EIO)
    storage = retrying(LocalStorage(fast_disk / "store", files), chance=at_once())
    files.armed = True
    with storage.sink(A, 0) as sink:
        with pytest.raises(StorageError):
            sink.write(0, b"abc")
        sink.write(3, b"def")
        with pytest.raises(StorageUnavailable, match="an earlier write failed"):
            sink.commit(6)
    assert [*storage.list("")] == []


@pytest.mark.parametrize("op", [Op.CREATE, Op.WRITE, Op.SYNC, Op.LINK, Op.MAKE_FOLDER, Op.SYNC_FOLDER])
def test_a_small_object_is_written_afresh_after_an_error(fast_disk, op):
    files = FailsOnce(op, errno.ESTALE)
    storage = retrying(LocalStorage(fast_disk / "store", files), chance=at_once())
    files.armed = True
    storage.create(A, b"abc")
    assert files.count > 1
    assert storage.read(A) == b"abc"
    assert storage.sweep_unfinished() == 0
    assert [item.name for item in storage.list("")] == [A]


def test_an_object_whose_folder_was_not_synced_is_found_to_exist(fast_disk):
    """The last step fails when the object is there already, whole: that is a lost answer as any other."""
    store = fast_disk / "store"
    LocalStorage(store).create(B, b"")
    files = FailsOnce(Op.SYNC_FOLDER, errno.ETIMEDOUT)
    storage = retrying(LocalStorage(store, files), chance=at_once())
    storage.create(ObjectName("x/c"), b"")
    files.armed = True
    with pytest.raises(ObjectExists):
        storage.create(A, b"abc")
    assert (storage.read(A), files.count) == (b"abc", 2)


ERRORS = [
    *((StorageUnavailable("x", errno=code), True) for code in (errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY)),
    *((StorageUnavailable("x", errno=code), True) for code in (errno.ESTALE, errno.ECONNRESET, errno.EINTR)),
    *((StorageUnavailable("x", errno=code), True) for code in (errno.ESHUTDOWN, errno.ENOTCONN)),
    (StorageUnavailable("x", errno=errno.EIO), False),
    (StorageUnavailable("x", errno=errno.ENOENT), False),
    (StorageUnavailable("x", errno=errno.ENOTDIR), False),
    (StorageUnavailable("x"), False),
    (StorageError("x"), False),
    *((StorageFull("x", errno=code), False) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
    *((StorageReadOnly("x", errno=code), False) for code in (errno.EROFS, errno.EACCES, errno.EPERM)),
    (ObjectExists("x", errno=errno.EEXIST), False),
    (ObjectMissing("x", errno=errno.ENOENT), False),
    (Corrupt("x"), False),
    (InvalidName("x"), False),
    (TimeoutError(), True),
    (ConnectionResetError(), True),
    (KeyError(), False),
]


@pytest.mark.parametrize(("error", "passes"), ERRORS, ids=lambda one: getattr(one, "errno", None) or type(one).__name__)
def test_only_what_waiting_may_mend_is_tried_again(error, passes):
    assert may_pass(error) is passes


@pytest.mark.parametrize("error", [one for one, passes in ERRORS if isinstance(one, StorageError) and not passes])
def test_everything_else_is_told_at_once(error):
    clock = Clock()
    storage = flaky(Fail(error=error, when=when("read")), chance=clock.chance)
    with pytest.raises(type(error)):
        storage.read(A)
    assert storage._inner._counts == [1]
    assert clock.pauses == []


def test_cut_objects_are_no_matter_of_patience():
    storage = flaky(CutRead(when=when("read_into")))
    storage.create(A, b"abc")
    with storage.source(A) as source, pytest.raises(Corrupt):
        source.read_into(0, memoryview(bytearray(3)))


class Server(http.server.BaseHTTPRequestHandler):
    """An object store that answers with one status, or not at all."""

    answer = 503

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.server.answer is None:
            self.connection.close()
            return
        self.send_response(self.server.answer)
        self.send_header("content-length", "0")
        self.end_headers()

    do_PUT = do_GET  # noqa: N815


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def s3(port):
    from datetime import timedelta

    from obstore.store import S3Store

    return S3Store(
        "bucket",
        endpoint=f"http://127.0.0.1:{port}",
        access_key_id="k",
        secret_access_key="s",
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
    )


@pytest.mark.parametrize(
    ("answer", "passes"),
    [(500, True), (503, True), (429, True), (408, True), (None, True)]
    + [(code, False) for code in (400, 401, 403, 404, 412, 416, 501)],
)
def test_what_an_object_store_says_is_understood(server, answer, passes):
    server.answer = answer
    store = s3(server.server_port)
    for call in (lambda: store.get("a"), lambda: store.put("a", b"x", mode="create", use_multipart=False)):
        with pytest.raises(Exception, match=r".") as caught:
            call()
        assert may_pass(caught.value) is passes, caught.value


def test_a_store_that_is_not_there_yet_may_come():
    with pytest.raises(Exception, match="HTTP error") as caught:
        s3(1).get("a")
    assert may_pass(caught.value)


def test_a_wrong_setting_of_an_object_store_does_not_pass():
    from obstore.exceptions import GenericError

    assert not may_pass(GenericError('Generic S3 error: Metadata value for "region" was not valid'))


def test_pauses_double_up_to_a_limit_and_are_drawn_at_random():
    patience = Patience(attempts=8, seconds=1e9, first_pause=1.0, longest_pause=10.0)
    for draw in (0.0, 0.5, 0.999):
        clock = Clock(draw)
        with pytest.raises(StorageUnavailable):
            flaky(Fail(error=DOWN, when=When(times=None)), patience=patience, chance=clock.chance).read(A)
        assert clock.pauses == [pytest.approx(draw * pause) for pause in (1, 2, 4, 8, 10, 10, 10)]


def test_many_failures_do_not_overflow_the_pause():
    assert Patience(longest_pause=3.0).pause(10**6) == 3.0


def test_nobody_waits_beyond_the_deadline():
    clock = Clock(draw=1.0)
    patience = Patience(attempts=10**6, seconds=60.0, first_pause=1.0, longest_pause=10.0)
    with pytest.raises(StorageUnavailable) as caught:
        flaky(Fail(error=DOWN, when=When(times=None)), patience=patience, chance=clock.chance).read(A)
    assert clock.time == 1 + 2 + 4 + 8 + 10 + 10 + 10 + 10  # another pause would end after 65 seconds
    assert "given up at attempt 9, 55.0 s after" in caught.value.__notes__[0]


def test_one_attempt_is_no_retry():
    storage = flaky(Fail(error=DOWN), patience=Patience(attempts=1))
    with pytest.raises(StorageUnavailable):
        storage.read(A)


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"seconds": -1.0}, {"first_pause": -1.0}, {"longest_pause": -1.0}])
def test_impatience_has_its_limits(wrong):
    with pytest.raises(InvalidInput):
        Patience(**wrong)


def test_every_repetition_is_logged_once_with_what_and_which(caplog):
    clock = Clock()
    storage = flaky(Fail(error=DOWN, when=When(times=2)), chance=clock.chance)
    with caplog.at_level(logging.DEBUG, logger="holdfast"):
        storage.create(A, b"abc")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "cannot create x/a in memory://: no answer; attempt 2 of 5 follows in 0.1 s",
        "cannot create x/a in memory://: no answer; attempt 3 of 5 follows in 0.2 s",
    ]


def test_chance_is_not_taken_from_the_training():
    """Else a run would go on otherwise after a retry than without."""
    before = random.getstate()
    patience = Patience(first_pause=0.001)
    FaultyStorage(memory_storage(), Fail(error=DOWN))
    RetryingStorage(FaultyStorage(memory_storage(), Fail(error=DOWN)), patience).create(A, b"abc")
    assert random.getstate() == before


class Breaking(TracingStorage):
    """Its listings break off after so many names, as many times as there are numbers."""

    def __init__(self, inner, *after):
        super().__init__(inner)
        self.after = list(after)

    def list(self, prefix):
        found = super().list(prefix)
        return self._broken(found, self.after.pop(0)) if self.after else found

    def _broken(self, found, count):
        for _ in range(count):
            yield next(found)
        raise StorageUnavailable("cut", errno=errno.ECONNRESET)


def names(count):
    inner = memory_storage()
    for number in range(count):
        inner.create(ObjectName(f"x/{number}"), b"abc")
    return inner


@pytest.mark.parametrize("after", [(0,), (3,), (9,), (10,), (3, 3), (3, 5, 1, 9)])
def test_a_listing_that_breaks_off_goes_on_where_it_was(after):
    """A listing that ends early would let a sweep delete what it did not see."""
    inner = names(10)
    storage = retrying(Breaking(inner, *after), chance=at_once())
    assert [*storage.list("x/")] == [*inner.list("x/")]


def test_a_listing_that_keeps_breaking_off_is_an_error_and_not_the_end():
    storage = retrying(Breaking(names(10), *range(5)), chance=at_once())
    seen = []
    with pytest.raises(StorageUnavailable, match="cut"):
        seen.extend(item.name for item in storage.list("x/"))
    assert len(seen) < 10


def test_a_listing_that_breaks_off_does_not_show_what_was_deleted_meanwhile_twice():
    inner = names(4)
    storage = retrying(Breaking(inner, 2), chance=at_once())
    listing = storage.list("x/")
    first = [next(listing).name, next(listing).name]
    inner.delete([ObjectName("x/0"), ObjectName("x/2")])
    inner.create(ObjectName("x/00"), b"")
    assert first + [item.name for item in listing] == ["x/0", "x/1", "x/3"]


def test_folders_are_named_where_the_storage_can(fast_disk):
    storage = retrying(LocalStorage(fast_disk / "store"))
    storage.create(A, b"")
    assert isinstance(storage, ListsFolders)
    assert storage.folders("") == ("x",)
    assert not isinstance(retrying(memory_storage()), ListsFolders)


class Stale(TracingStorage):
    """Its sources stop working after their first read, as a handle does whose server was started again."""

    def source(self, name):
        return StaleSource(super().source(name))


class StaleSource:
    def __init__(self, inner):
        self.inner, self.reads, self.size, self.alignment = inner, 0, inner.size, inner.alignment

    def read_into(self, offset, into):
        self.inner.read_into(offset, into)
        self.reads += 1
        if self.reads > 1:
            raise StorageUnavailable("stale", errno=errno.ESTALE)

    def close(self):
        self.inner.close()


def test_a_handle_that_went_stale_is_opened_again():
    inner = Stale(memory_storage())
    inner.create(A, bytes(range(10)))
    with retrying(inner, chance=at_once()).source(A) as source:
        for at in range(10):
            into = bytearray(1)
            source.read_into(at, memoryview(into))
            assert into == bytes([at])
    with pytest.raises(InvalidInput):
        source.read_into(0, memoryview(bytearray(1)))


def test_an_object_is_opened_once_if_nothing_fails():
    inner = TracingStorage(memory_storage())
    inner.create(A, b"abc")
    with retrying(inner).source(A) as source:
        for _ in range(5):
            source.read_into(0, memoryview(bytearray(3)))
    assert [one.verb for one in inner.operations].count("source") == 1


def test_names_that_can_be_gone_through_only_once_are_deleted_all_the_same():
    inner = names(4)
    storage = flaky(Fail(error=DOWN, when=when("delete", at=3)), inner=inner)
    storage.delete(item.name for item in [*inner.list("x/")])
    assert [*inner.list("")] == []


def test_an_object_that_went_away_meanwhile_is_missed():
    inner = Stale(memory_storage())
    inner.create(A, b"abc")
    with retrying(inner, chance=at_once()).source(A) as source:
        source.read_into(0, memoryview(bytearray(3)))
        inner.delete([A])
        with pytest.raises(ObjectMissing):
            source.read_into(0, memoryview(bytearray(3)))


def test_threads_may_read_while_another_one_opens_again(fast_disk):
    data = random.Random(7).randbytes(100_000)
    inner = LocalStorage(fast_disk / "store")
    inner.create(A, data)
    faults = [Fail(error=DOWN, when=when("read_into", at=at)) for at in range(1, 400, 3)]
    storage = flaky(*faults, inner=inner, patience=Patience(attempts=50))

    def part(at):
        into = bytearray(500)
        source.read_into(at, memoryview(into))
        return bytes(into)

    with storage.source(A) as source, ThreadPoolExecutor(8) as pool:
        assert b"".join(pool.map(part, range(0, 100_000, 500))) == data
        opened = list(source._opened)
    assert len(opened) > 1
    for one in opened:
        with pytest.raises(InvalidInput):
            one._inner.read_into(0, memoryview(bytearray(1)))
