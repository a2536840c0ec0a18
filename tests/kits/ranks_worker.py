"""Scenarios of two ranks, one after the other in one world; each writes what it found into a file of its own."""

import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path

import topologies as t
import torch
from torch import nn

import holdfast
from holdfast import best, errors, every
from holdfast.catalog.naming.tags import read_tags
from holdfast.recovery.saving.checkpoints import Checkpoints

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
RANK = t.rank()


class Logged(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def model(seed=0, how="ddp"):
    torch.manual_seed(seed)
    made = t.spread(nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 8)), "one")
    return nn.parallel.DistributedDataParallel(made) if how == "ddp" else made


def checkpointer(name, state, **options):
    options = {"save": every(steps=1000), "saver": "inline", "peer_timeout": 10} | options
    return holdfast.Checkpointer(FOLDER / name, run="x", state=state, **options)


def step(module, optimizer, number):
    torch.manual_seed(number)
    module(torch.randn(4, 40)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def train(ckpt, module, optimizer, steps, body=lambda number: None):
    for number in ckpt.steps(steps):
        step(module, optimizer, number)
        body(number)


def records(name):
    return [(r.step, str(r.kind), r.reason) for r in holdfast.open(FOLDER / name).run(1).records()]


def made(how="ddp"):
    module = model(how=how)
    return module, torch.optim.AdamW(module.parameters())


def save_on_rank_0_only():
    module, optimizer = made()
    with checkpointer("alone", {"model": module, "optimizer": optimizer}, saver="process", save=every(steps=2)) as ckpt:
        train(ckpt, module, optimizer, 6, lambda number: ckpt.save() if RANK == 0 and number == 2 else None)


def different_without_evidence():
    module, optimizer = made(how="plain")
    with torch.no_grad():
        module[0].weight += RANK
    with checkpointer("different", {"model": module}, on_save_error=1) as ckpt:
        for _ in ckpt.steps(1):
            optimizer.step()


def small_values_that_differ():
    scheduler = torch.optim.lr_scheduler.StepLR(made()[1], step_size=3 + RANK)
    with checkpointer("values", {"scheduler": scheduler}, on_save_error=1) as ckpt:
        ckpt.save()


def equal_without_evidence():
    module, optimizer = made(how="plain")
    with checkpointer("equal", {"model": module, "optimizer": optimizer}) as ckpt:
        train(ckpt, module, optimizer, 2)
    return [r.tensors for r in holdfast.open(FOLDER / "equal").run(1).records()]


def drifted(name, change):
    module, optimizer = made()
    with checkpointer(name, {"model": module, "optimizer": optimizer}, on_save_error=1) as ckpt:
        train(ckpt, module, optimizer, 2)
        if RANK == 1:
            change(module.module[2])


def flip(tensor, *place):
    tensor.data.view(torch.int32)[place] ^= 1


def drift():
    drifted("drift", lambda layer: flip(layer.weight, 3, 5))


def drift_of_a_bias():
    drifted("bias", lambda layer: flip(layer.bias, 1))


def left_to_each_rank():
    torch.manual_seed(RANK)
    inner = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 8))
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(inner, ["0.weight"])
    with checkpointer("left", {"model": nn.parallel.DistributedDataParallel(inner)}, on_save_error=1) as ckpt:
        ckpt.save()


def each_its_own():
    statistics = nn.BatchNorm1d(8)
    statistics.running_mean.fill_(RANK)
    with checkpointer("own", {"model": made()[0], "statistics": holdfast.per_rank(statistics)}) as ckpt:
        ckpt.save()
    fresh = nn.BatchNorm1d(8)
    with checkpointer("own", {"model": made()[0], "statistics": holdfast.per_rank(fresh)}) as ckpt:
        ckpt.restore()
    return fresh.running_mean.tolist()


def names_of_their_own():
    module = model(seed=RANK, how="plain")
    with checkpointer("prefix", {"model": module}, prefix=f"stage{RANK}.") as ckpt:
        ckpt.save()
    fresh = model(seed=7, how="plain")
    with checkpointer("prefix", {"model": fresh}, prefix=f"stage{RANK}.") as ckpt:
        ckpt.restore()
    return all(torch.equal(a, b) for a, b in zip(module.parameters(), fresh.parameters(), strict=True))


def a_fork_without_the_optimizers():
    def started(run, **options):
        module = model(seed=RANK, how="plain")
        optimizer = torch.optim.AdamW(module.parameters())
        state = {"model": module, "optimizer": holdfast.per_rank(optimizer)}
        options = {"save": every(steps=1000), "saver": "inline", "peer_timeout": 10} | options
        return (
            module,
            optimizer,
            holdfast.Checkpointer(FOLDER / "fork", run=run, state=state, prefix=f"stage{RANK}.", **options),
        )

    module, optimizer, ckpt = started("a")
    with ckpt:
        train(ckpt, module, optimizer, 3)
    fork, fresh, ckpt = started("b", resume="a@3", not_restored=["optimizer"])
    with ckpt:
        ckpt.restore()
        same = all(torch.equal(a, b) for a, b in zip(module.parameters(), fork.parameters(), strict=True))
        return [ckpt.step, same, len(fresh.state), len(optimizer.state)]


def a_signal_to_one_rank():
    module, optimizer = made()

    def body(number):
        if number == 3 and RANK == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with checkpointer("signal", {"model": module, "optimizer": optimizer}) as ckpt:
        train(ckpt, module, optimizer, 50, body)
        return [ckpt.step, records("signal")]


def a_stop_that_leaves_no_time():
    """Asked for together, in the body: a save that is too late is not begun, behind a break or at the boundary."""
    Checkpoints.typical, typical = 100.0, Checkpoints.typical
    try:
        return [_stopped_late(leave) for leave in (True, False)]
    finally:
        Checkpoints.typical = typical


def _stopped_late(leave):
    module, optimizer = made()
    store = f"late-{leave}"
    with checkpointer(store, {"model": module, "optimizer": optimizer}, grace=30.0) as ckpt:
        for number in ckpt.steps(50):
            step(module, optimizer, number)
            if number == 3 and RANK == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if ckpt.should_stop(together=True) and leave:
                break
    return [ckpt.step, records(store), ckpt.preempted.durable]


def a_clock_of_one_rank():
    module, optimizer = made()
    seconds = every(seconds=0.3 if RANK == 0 else 10_000)
    keep = every(steps=1)  # retention on rank 0 may be at work while another rank looks
    with checkpointer("clock", {"model": module, "optimizer": optimizer}, save=seconds, keep=keep) as ckpt:
        train(ckpt, module, optimizer, 12, lambda number: __import__("time").sleep(0.1))
    return records("clock")


def a_metric_of_rank_0():
    module, optimizer = made()
    with checkpointer("best", {"model": module, "optimizer": optimizer}, save=best("loss")) as ckpt:
        train(ckpt, module, optimizer, 6, lambda number: ckpt.log(loss=abs(3 - number) + 10 * RANK))
    return [(r.step, r.metrics) for r in holdfast.open(FOLDER / "best").run(1).records()]


def a_metric_of_all():
    module, optimizer = made()
    with checkpointer("mean", {"model": module, "optimizer": optimizer}, save=every(steps=1)) as ckpt:
        train(ckpt, module, optimizer, 1, lambda number: ckpt.log(loss=float(RANK), reduce="mean"))
    return [r.metrics for r in holdfast.open(FOLDER / "mean").run(1).records()]


def a_program_that_does_not_fit():
    module, optimizer = made()
    with checkpointer("fit", {"model": module, "optimizer": optimizer}) as ckpt:
        train(ckpt, module, optimizer, 1)
    other = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(40, 61), nn.ReLU(), nn.Linear(61, 8)))
    before = [p.clone() for p in other.parameters()]
    try:
        with checkpointer("fit", {"model": other, "optimizer": torch.optim.AdamW(other.parameters())}) as ckpt:
            ckpt.restore()
    except errors.StateMismatch as error:
        same = all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
        return [str(error), same]


def what_one_rank_cannot_save():
    module, _ = made()
    with checkpointer("refused", {"model": module}) as ckpt:
        ckpt.values["odd"] = object() if RANK == 1 else 1
        for _ in ckpt.steps(1):
            return "begun"
    return None


def different_stores():
    with checkpointer(f"store-{RANK}", {"model": made()[0]}) as ckpt:
        ckpt.save()


def tags():
    module, optimizer = made()
    with checkpointer("tags", {"model": module, "optimizer": optimizer}) as ckpt:
        train(ckpt, module, optimizer, 2, lambda number: ckpt.save(tag=f"at-{number}"))
    return sorted(tag for tags in read_tags(holdfast.open(FOLDER / "tags")).by_record().values() for tag in tags)


def run(scenario):
    logged = Logged()
    logging.getLogger("holdfast").addHandler(logged)
    found = {}
    try:
        found["value"] = scenario()
    except Exception as error:
        found |= {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
    finally:
        logging.getLogger("holdfast").removeHandler(logged)
    found["log"] = logged.lines
    (FOLDER / f"{scenario.__name__}.rank{RANK}.json").write_text(json.dumps(found, default=str))
    torch.distributed.barrier()


if __name__ == "__main__":
    logging.getLogger("holdfast").setLevel(logging.INFO)
    t.begin()
    for scenario in sys.argv[2:]:
        run(globals()[scenario])
    t.end()
