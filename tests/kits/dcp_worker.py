"""Ranks that save and load through torch.distributed.checkpoint: ``dcp_worker.py PLAY... FOLDER``."""

import os
import signal
import sys
import warnings
from pathlib import Path

import topologies as t
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

import holdfast
from holdfast.integrations.dcp import StorageReader, StorageWriter

HOW = {1: "one", 2: "fsdp2", 4: "fsdp2tp2"}


def state_of(model, optimizer):
    found, moments = get_state_dict(model, optimizer)
    return {"model": found, "optim": moments, "extra": {"step": 3, "name": "run", "betas": (0.9, 0.95)}}


def made(how, seed):
    model, optimizer = t.made("net", how, seed)
    model.unused.requires_grad_(False)  # for DCP a parameter that was never stepped has moments in the program alone
    return model, optimizer


def trained(how, seed=1):
    model, optimizer = made(how, seed)
    for step in range(3):
        t.train("net", how, model, optimizer, step)
    if t.world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    return model, optimizer


def writer(folder, run, step):
    return StorageWriter(folder / "store", run=run, step=step)


def save(folder):
    how = HOW[t.world()]
    model, optimizer = trained(how)
    dcp.save(state_of(model, optimizer), storage_writer=writer(folder, how, 3))
    wholes = t.everything(model, optimizer, how)
    if t.rank() == 0:
        torch.save(wholes, folder / f"{how}.pt")


def load(folder):
    how = HOW[t.world()]
    for saved in ("one", "fsdp2", "fsdp2tp2"):
        model, optimizer = made(how, seed=2)
        state = state_of(model, optimizer)
        state["extra"] = {"step": 0, "name": "", "betas": None}
        dcp.load(state, storage_reader=StorageReader(folder / "store", f"{saved}@3"))
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
        assert state["extra"] == {"step": 3, "name": "run", "betas": (0.9, 0.95)}, state["extra"]
        now, was = t.everything(model, optimizer, how), torch.load(folder / f"{saved}.pt")
        odd = [k for k in was.keys() | now.keys() if k not in now or k not in was or not torch.equal(was[k], now[k])]
        assert not odd, f"saved by {saved}, loaded by {how}: {sorted(odd)}"
        print("loaded", saved, flush=True)


def unchanged(folder):
    """Another writer of the same process, another rank's tensor changed: only that is written."""
    model, optimizer = trained("fsdp2")
    state = {"model": get_state_dict(model, optimizer)[0]}
    for step in (1, 2):
        one = writer(folder, "unchanged", step)
        dcp.save(state, storage_writer=one)
        if t.rank() == 0:
            print("new", step, one.record.bytes.new, len(one.record.packs), flush=True)
        with torch.no_grad():
            state["model"]["big"].add_(1)


class Failing(StorageWriter):
    def write_data(self, plan, planner):
        super().write_data(plan, planner).wait()
        if t.rank() == 1:
            raise RuntimeError("the disk of rank 1 is gone")


def failing(folder):
    """One rank fails after it has written; then the same step is saved again, and a value cannot be stored."""
    state = {"w": torch.full((4000,), float(t.rank())), "mine": {f"w{t.rank()}": torch.full((5000,), t.rank())}}
    failed_with("the disk of rank 1 is gone", state, Failing(folder / "store", run="failing", step=7))
    store = holdfast.open(folder / "store")
    run = store.run(store.named("failing")[-1].number)
    assert run.records() == []
    failed_with(f"mine.odd{t.rank()}", {"mine": {f"odd{t.rank()}": object()}}, writer(folder, "failing", 7))
    dcp.save(state, storage_writer=writer(folder, "failing", 7))
    assert [record.step for record in run.records()] == [7]
    dist.barrier()
    holds = [one.name for one in store.storage.list(f"catalog/runs/{run.number.folder}/holds/")]
    assert not holds, holds
    packs = {one.name for one in store.storage.list(f"data/runs/{run.number.folder}/")}
    assert packs == set(run.records()[0].packs), "what the failed save has written is gone"
    print("failed, and went on", flush=True)


def failed_with(text, state, one):
    said = "nothing"
    try:
        dcp.save(state, storage_writer=one)
    except CheckpointException as error:
        said = str(error)
    assert text in said, said


def in_background(folder):
    state = {"w": torch.full((4000,), 3.0), "mine": {f"w{t.rank()}": torch.full((5000,), t.rank())}, "step": 5}
    process = AsyncCheckpointerType.PROCESS
    for step, way in ((5, AsyncCheckpointerType.THREAD), (6, process), (7, process)):
        future = dcp.async_save(state, storage_writer=writer(folder, "background", step), async_checkpointer_type=way)
        future.result()
        dist.barrier()
    print("saved in background", flush=True)


class Dying(StorageWriter):
    def write_data(self, plan, planner):
        if t.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write_data(plan, planner)


def dying(folder):
    state = {"mine": {f"w{t.rank()}": torch.full((5000,), t.rank())}}
    dcp.save(state, storage_writer=Dying(folder / "store", run="dying", step=1))


PLAYS = {one.__name__: one for one in (save, load, unchanged, failing, in_background, dying)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    t.begin()
    *plays, where = sys.argv[1:]
    for play in plays:
        PLAYS[play](Path(where))
        print("done", play, flush=True)
    t.end()
