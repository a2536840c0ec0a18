"""How the ranks of a training find each other, through the store by which torch.distributed started."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store
from torch.distributed import distributed_c10d

from holdfast.errors import PeerLost
from holdfast.recovery.ranks.wire import EVERY_RANK, Late, Wire, asking, bounded, first_line, named

_met = itertools.count()
"""How many groups this process opened; every rank opens as many."""


def meet(rank: int, size: int, timeout: float) -> Wire:
    """A gloo group of all ranks, within ``timeout`` seconds.

    Raises:
        PeerLost: somebody did not come, or does not answer.
    """
    end = time.monotonic() + timeout - asking(timeout)
    number = next(_met)
    try:
        # In a thread, since a store whose server is stopped may never answer.
        return bounded(lambda: _meet(number, rank, size, timeout, end), timeout)
    except Late:
        raise PeerLost(
            f"rank {rank} could not meet the other ranks within {timeout:g} s: the store of torch.distributed (kept by "
            "rank 0, or by torchrun) or one of them does not answer; start the job again"
        ) from None
    except RuntimeError as error:
        raise PeerLost(
            f"rank {rank} could not connect to the other ranks ({first_line(error)}); start the job again, and name "
            "the network interface in GLOO_SOCKET_IFNAME if it happens again"
        ) from error


def _meet(number: int, rank: int, size: int, timeout: float, end: float) -> Wire:
    store = PrefixStore(f"holdfast/{number}", _own(distributed_c10d._get_default_store(), timeout))
    store.set(f"arrived/{rank}", "yes")
    if missing := _called_over(store, size, end, timeout) if rank == 0 else _heard(store, size, end, timeout):
        came = f"{named(missing)} did not come within {timeout:g} s, says rank {rank}"
        raise PeerLost(f"{came}; {EVERY_RANK}", ranks=tuple(missing))
    left = timedelta(seconds=max(0.001, end - time.monotonic()))
    return Wire(store, ProcessGroupGloo(PrefixStore("gloo", store), rank, size, left), rank, size, timeout)


def _own(store: Store, timeout: float) -> Store:
    """A connection of our own; an older torch cannot make one.

    Operations on one connection wait for each other, and the user's may take half an hour.
    """
    if not hasattr(store, "clone"):
        return store
    own: Store = store.clone()
    own.set_timeout(timedelta(seconds=timeout))
    return own


def _called_over(store: Store, size: int, end: float, timeout: float) -> Sequence[int]:
    """Who is missing, as rank 0 finds it; the others read it, since a store has other things to do than N x N looks."""
    _await(store, [f"arrived/{rank}" for rank in range(size)], end)
    missing = _absent(store, size, timeout)
    store.set("missing", json.dumps(missing))
    if missing:
        # This rank may keep the store, and is about to end: the others need a moment to read in it.
        time.sleep(asking(timeout) / 2)
    return missing


def _heard(store: Store, size: int, end: float, timeout: float) -> Sequence[int]:
    """Who is missing, as rank 0 says; without its word what can be seen from here."""
    if not _await(store, ["missing"], end):
        return _absent(store, size, timeout) or [0]
    missing: list[int] = json.loads(store.get("missing"))
    return missing


def _absent(store: Store, size: int, timeout: float) -> list[int]:
    end = time.monotonic() + asking(timeout) / 4
    return [rank for rank in range(size) if time.monotonic() < end and not store.check([f"arrived/{rank}"])]


def _await(store: Store, keys: list[str], end: float) -> bool:
    """Whether all ``keys`` came in time."""
    pause = 0.001
    while not (there := store.check(keys)) and time.monotonic() < end:
        time.sleep(pause := min(2 * pause, 0.05))
    return there
