"""Worlds of ranks for tests/recovery/test_group.py, forked from one process that has imported torch.

``python group_worker.py`` reads orders, one JSON document a line: ``{"play": NAME, "size": 2, "timeout": 3.0, ...}``.
It forks the ranks, each plays the function of that name below, and prints what they said: for each rank its exit status
and a list. A rank that is left over is killed, since a stopped one never ends by itself.

``python group_worker.py PLAY TIMEOUT`` is one rank, as a launcher starts it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from functools import partial

import msgspec
import torch
import torch.distributed as dist

from holdfast import errors
from holdfast.errors import HoldfastError
from holdfast.recovery.environment.launcher import LauncherFacts, launcher_facts
from holdfast.recovery.ranks.group import Alone, Ranks, open_group

LIMIT = 60.0
"""Seconds after which a world has hung."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank may be told."""

    step: int
    names: tuple[str, ...]


class Rank:
    """One rank of a world, and what it says."""

    def __init__(self, order, rank, say):
        self.order, self.rank, self.say = order, rank, say
        self.size = order["size"]

    def open(self):
        facts = LauncherFacts(job=None, restarts=0, rank=7, world=9)  # what torch.distributed says goes first
        return open_group(facts, self.order["timeout"])

    def tell(self, do):
        """Says the value of ``do``, or its error."""
        try:
            self.say(do())
        except Exception as error:
            said = [type(error).__name__, str(error), list(getattr(error, "ranks", ()))]
            self.say([*said, error.__notes__] if hasattr(error, "__notes__") else said)


# --- plays


def values(me):
    group = me.open()
    choice = group.told(lambda: Choice(step=500 + me.rank, names=("a", "b")), "the choice", Choice)
    me.say([group.rank, group.size, choice.step, choice.names == ("a", "b")])
    me.say([group.told(lambda: None, "nothing", Choice | None), group.told(lambda: me.rank, "a number")])
    me.say(len(group.told(lambda: b"x" * 3_000_000, "many bytes", bytes)))
    me.say(group.agreed(lambda: me.rank * 10, "a thing of each"))
    me.say([one.decode() for one in group.gathered(b"r" * me.rank, "names")])
    flags = bytearray(b"\1" * 1000)
    flags[me.rank] = 0
    me.say([i for i, flag in enumerate(group.everywhere(flags, "flags")) if not flag])
    me.say(len(group.everywhere(b"", "no flags")))
    me.say(group.result())
    group.post([me.rank, -me.rank, 2**62 if me.rank == 1 else -(2**62)])
    me.say(group.result())
    me.say(group.result())
    group.close()
    group.close()
    me.tell(lambda: group.told(lambda: 1, "too late"))


def failures(me):
    """Every class of error, made by rank 0 or by the last rank."""
    group = me.open()
    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, HoldfastError)]
    for kind in kinds:
        me.tell(partial(group.told, partial(_fail, kind(f"no {kind.kind}")), "a value"))
        mine = kind(f"no {kind.kind}") if me.rank == me.size - 1 else None
        me.tell(partial(group.agreed, partial(_fail, mine), "a deed"))
    me.say([kind.__name__ for kind in kinds])


def _fail(error):
    if error is not None:
        raise error


def foreign(me):
    """Errors that are not ours, errors of several ranks, and values that cannot travel; then all is well again."""
    group = me.open()
    me.tell(lambda: group.told(lambda: {}["weights"], "a value"))
    mine = ValueError(f"from {me.rank}") if me.rank else None
    try:
        group.agreed(lambda: _fail(mine), "a deed")
    except Exception as error:
        me.say([type(error).__name__, str(error), error is mine])
    me.tell(lambda: group.told(lambda: object(), "an object"))
    me.tell(lambda: group.told(lambda: "text", "a number", int))
    me.tell(lambda: len(group.told(lambda: bytes(65 * 1024 * 1024), "too much", bytes)))
    me.tell(lambda: len(group.gathered(bytes(40 * 1024 * 1024 if me.rank else 1), "too much")))
    me.tell(lambda: group.everywhere(bytes(me.rank + 3), "flags"))
    me.say(group.told(lambda: "well", "a word"))


def beside(me):
    """Collectives of the user in between, in another order on each rank."""
    group = me.open()
    right = True
    for step in range(40):
        group.post([step * 10 + me.rank])
        theirs = [torch.full((1000,), float(me.rank)) for _ in range(3)]
        works = [dist.all_reduce(one, async_op=True) for one in theirs]
        if (step + me.rank) % 2:
            for work in works:
                work.wait()
        told = group.told(lambda step=step: step, "a step") if step % 3 == 0 else step
        group.agreed(lambda: None, "a step taken")
        posted = group.result() if (step + me.rank) % 3 else None
        for work in works:
            work.wait()
        dist.barrier()
        posted = posted or group.result()
        total = float(sum(range(me.size)))
        right &= posted == [step * 10 + me.size - 1] and told == step and all(float(one[7]) == total for one in theirs)
    me.say(right)


def strange(me):
    """Device, mode and timeouts of the user are not ours."""
    group = me.open()
    with torch.device("meta"), torch.inference_mode():
        group.post([me.rank])
        me.say(group.told(lambda: "well", "a word"))
        me.say([group.result(), list(group.everywhere(bytes([1, me.rank]), "flags"))])
        me.say(len(group.gathered(b"abc", "words")))
    me.say(dist.distributed_c10d._get_default_store().timeout.total_seconds())


def late(me):
    """Rank 0 evaluates for longer than the deadline, while the others are in a collective of their own."""
    group = me.open()
    if me.rank == 0:
        time.sleep(me.order["timeout"] + 1)
    group.post([me.rank])
    dist.barrier()
    me.say(group.result())


def parting(me):
    """All but some come to their end, while a post is in flight; the others go on, and notice nothing."""
    group = me.open()
    group.post([me.rank])
    if me.rank not in me.order["busy"]:
        time.sleep(me.order.get("late", {}).get(str(me.rank), 0))
        me.say(group.at_the_end(f"from {me.rank}", 0 if me.rank in me.order.get("refuse", []) else me.order["seconds"]))
    me.say(group.result())


def lost(me):
    """One rank ends or stops; the others wait for it, twice."""
    group = me.open()
    group.agreed(lambda: None, "all are there")
    if me.rank == me.order["victim"]:
        time.sleep(0.3)
        os.kill(os.getpid(), getattr(signal, me.order["by"]))
    waits = {
        "told": lambda: group.told(lambda: 1, "a choice"),
        "agreed": lambda: group.agreed(lambda: 1, "a deed"),
        "result": lambda: (group.post([1]), group.result()),
        "everywhere": lambda: group.everywhere(b"\1", "flags"),
    }
    if me.order.get("flying"):
        group.post([5])
    me.tell(waits[me.order["wait"]])
    begin = time.monotonic()
    me.tell(lambda: group.told(lambda: me.say("made"), "more"))
    me.tell(group.result)
    me.tell(lambda: group.post([1]))
    group.close()
    me.say(time.monotonic() - begin < me.order["timeout"] / 2)
    if me.rank == 0:
        time.sleep(1)  # it keeps the store, in which the others may still be asking


def missing(me):
    """Not all ranks open a group."""
    if me.rank in me.order["absent"]:
        time.sleep(me.order["timeout"] + 1)
    else:
        me.tell(me.open)


def stopped_server(me):
    """The store does not answer any more."""
    dist.barrier()  # before that, the other rank may still need it to begin
    if me.rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.3)
    me.tell(me.open)


def differ(me):
    """Ranks that are not in the same call."""
    group = me.open()
    calls = {
        "told": lambda: group.told(lambda: 1, "a choice"),
        "agreed": lambda: group.agreed(lambda: 1, "a deed"),
        "post": lambda: group.post([1, 2]),
        "result": group.result,
        "flags": lambda: group.everywhere(b"\1" * 100, "flags"),
    }
    for call in me.order["calls"][me.rank]:
        me.tell(calls[call])


def interrupted(me):
    """Ctrl-C in what rank 0 makes."""
    group = me.open()

    def make():
        raise KeyboardInterrupt

    if me.rank == 0:
        try:
            group.told(make, "a choice")
        except KeyboardInterrupt:
            me.say("interrupted")
    me.tell(lambda: group.told(make, "a choice"))


def alarmed(me):
    """A handler of a signal raises while a rank waits; rank 0 comes later."""
    group = me.open()

    def rang(*_):
        raise TimeoutError("rang")

    if me.rank:
        signal.signal(signal.SIGALRM, rang)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        begin = time.monotonic()
        me.tell(lambda: group.agreed(lambda: 1, "a deed"))
        me.say(time.monotonic() - begin < me.order["timeout"] / 2)
    else:
        time.sleep(1.5)
    me.tell(lambda: group.agreed(lambda: 1, "a deed"))


def many(me):
    """Groups come and go, and leave nothing behind."""

    def held():
        gc.collect()
        dist.barrier()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def anywhere(flag):
        """Ranks that looped on what each sees alone would leave each other in the barrier of `held`."""
        dist.all_reduce(flags := torch.tensor(int(flag)), dist.ReduceOp.MAX)
        return bool(flags)

    def cycle(number):
        group = me.open()
        group.post([number])
        right = group.told(lambda: number, "a number") == number and group.result() == [number]
        group.close()
        return right

    right = all(cycle(number) for number in range(5))
    before = held()
    right &= all(cycle(number) for number in range(50))
    # What the other side closed is let go of a moment later.
    end = time.monotonic() + 10
    while anywhere((after := held()) != before and time.monotonic() < end):
        time.sleep(0.1)
    me.say([right, after[0] - before[0], after[1] - before[1]])


def closing(me):
    """Whoever is ready first closes at once."""
    right = True
    for number in range(20):
        group = me.open()
        right &= group.told(lambda number=number: number, "a number") == number
        group.post([number])
        if me.order["awaited"]:
            right &= group.result() == [number]
        group.close()
    me.say(right)


def fake(me):
    """The backend of the user carries nothing."""
    group = me.open()
    theirs = torch.full((1,), float(me.rank))
    dist.all_reduce(theirs)
    me.say([isinstance(group, Ranks), float(theirs), group.told(lambda: "well", "a word"), group.rank])


def alone(me):
    me.say(isinstance(me.open(), Alone))


def cost(me):
    """Microseconds of a post and its result, and of a reduction as large on the user's group."""
    group = me.open()
    theirs = torch.zeros(16, dtype=torch.int64)
    ours = _timed(lambda: (group.post([1, 2, 3]), group.result()))
    me.say([ours, _timed(lambda: dist.all_reduce(theirs)), _timed(lambda: group.agreed(lambda: 1, "a deed"))])


def _timed(do, count=2000):
    spent = []
    for _ in range(count):
        begin = time.perf_counter()
        do()
        spent.append(time.perf_counter() - begin)
    return round(sorted(spent)[count // 2] * 1e6)


# --- worlds


def play(order, rank, listening, say):
    store = dist.TCPStore(
        "localhost",
        listening.getsockname()[1],
        order["size"],
        rank == 0,
        timeout=timedelta(seconds=LIMIT),
        master_listen_fd=listening.fileno() if rank == 0 else None,
    )
    backend = order.get("backend", "gloo")
    if backend == "fake":
        import torch.testing._internal.distributed.fake_pg  # noqa: F401 - registers it
    dist.init_process_group(backend, store=store, rank=rank, world_size=order["size"])
    globals()[order["play"]](Rank(order, rank, say))
    if order["play"] not in ("lost", "missing", "differ", "stopped_server"):
        dist.barrier() if backend == "gloo" else time.sleep(1)  # rank 0 keeps the store


def forked(order, rank, listening):
    """A rank as a child, and where to read what it says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        sys.stdin.close()
        with os.fdopen(writing, "w", buffering=1) as out:
            play(order, rank, listening, lambda said: out.write(json.dumps(said) + "\n"))
        status = 0
    finally:
        if status:
            sys.excepthook(*sys.exc_info())
        os._exit(status)


def world(order):
    """Plays one world; ranks that stopped end when the others have."""
    with socket.create_server(("localhost", 0)) as listening:
        os.set_inheritable(listening.fileno(), True)
        children = [forked(order, rank, listening) for rank in range(order["size"])]
        statuses = dict.fromkeys(range(order["size"]))
        end = time.monotonic() + LIMIT
        waited = [rank for rank in statuses if rank != order.get("stops")]
        while any(statuses[rank] is None for rank in waited) and time.monotonic() < end:
            for rank in waited:
                if statuses[rank] is None and (found := os.waitpid(children[rank][0], os.WNOHANG))[0]:
                    statuses[rank] = os.waitstatus_to_exitcode(found[1])
            time.sleep(0.02)
    for rank, (child, _) in enumerate(children):
        if statuses[rank] is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return [{"status": statuses[rank], "said": _read(reading)} for rank, (_, reading) in enumerate(children)]


def _read(descriptor):
    with os.fdopen(descriptor) as source:
        return [json.loads(line) for line in source]


def single(name, timeout):
    """One rank with the environment of a launcher; it ends as programs end."""
    facts = launcher_facts()
    dist.init_process_group("gloo")
    order = {"size": facts.world, "timeout": float(timeout)}
    out = os.fdopen(os.dup(1), "w", buffering=1)
    globals()[name](Rank(order, facts.rank, lambda said: out.write(json.dumps([facts.rank, said]) + "\n")))


def launched(me):
    group = open_group(launcher_facts(), me.order["timeout"])
    me.say(group.told(lambda: f"well from {me.rank}", "a word"))
    group.post([me.rank])
    me.say(group.result())
    group.close()
    dist.destroy_process_group()


def last_words(me):
    """The other rank stops; this one ends with posts in flight, after it has given up, and without closing."""
    group = me.open()
    second = me.open()
    group.agreed(lambda: None, "all are there")
    second.agreed(lambda: None, "all are there")
    if me.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.3)
    second.post([1])
    group.post([1])
    me.tell(group.result)


if __name__ == "__main__":
    if sys.argv[1:]:
        single(*sys.argv[1:])
    else:
        for line in sys.stdin:
            sys.stdout.write(json.dumps(world(json.loads(line))) + "\n")
            sys.stdout.flush()
