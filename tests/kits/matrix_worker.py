"""``save FOLDER``: trains and saves under every topology of this world; ``load FOLDER``: loads each of all worlds."""

import sys
from pathlib import Path

import topologies as t
import torch

import holdfast

STEPS = 3


def state(model, optimizer):
    return {"model": model, "optimizer": optimizer}


def opened(store, model, optimizer):
    return holdfast.Checkpointer(
        store, run="x", state=state(model, optimizer), save=holdfast.every(steps=1), saver="inline", peer_timeout=30
    )


def cases(worlds=None):
    for kind, by_world in (("net", t.NET), ("deep", t.DEEP)):
        for world, hows in by_world.items():
            if worlds is None or world in worlds:
                yield from ((kind, how) for how in hows)


def save(folder: Path) -> None:
    for kind, how in cases([t.world()]):
        model, optimizer = t.made(kind, how, seed=1)
        with opened(folder / f"{kind}-{how}", model, optimizer) as ckpt:
            for step in ckpt.steps(STEPS):
                t.train(kind, how, model, optimizer, step)
        wholes = t.everything(model, optimizer, how)
        rest = {"loss": loss(kind, model), "next": torch.rand(4)}
        if t.rank() == 0:
            torch.save(wholes, folder / f"{kind}-{how}.pt")
        torch.save(rest, folder / f"{kind}-{how}.rank{t.rank()}.pt")


def loss(kind, model):
    if kind == "deep":
        return torch.zeros(())
    inner = t.unwrapped(model)
    inner.eval()
    with torch.no_grad():
        return t.loss_of(model, 99, 0)


def load(folder: Path) -> None:
    for kind, how in cases([t.world()]):
        for source, saved in cases():
            if source == kind:
                load_one(folder, kind, saved, how)


def load_one(folder: Path, kind: str, saved: str, how: str) -> None:
    model, optimizer = t.made(kind, how, seed=2)
    with opened(folder / f"{kind}-{saved}", model, optimizer) as ckpt:
        ckpt.restore()
        assert ckpt.step == STEPS
    drawn = torch.rand(4)
    now, was = t.everything(model, optimizer, how), torch.load(folder / f"{kind}-{saved}.pt")
    odd = [k for k in was.keys() | now.keys() if k not in now or k not in was or not torch.equal(was[k], now[k])]
    assert not odd, f"{kind}: saved by {saved}, loaded by {how}: {sorted(odd)}"
    # Buffers of replicas are those of the first rank, so the loss is that of the first rank everywhere.
    wanted, found = torch.load(folder / f"{kind}-{saved}.rank0.pt")["loss"], loss(kind, model)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    if saved == how:
        assert torch.equal(found, wanted), (kind, saved, how, found, wanted)
        mine = torch.load(folder / f"{kind}-{saved}.rank{t.rank()}.pt")
        assert torch.equal(drawn, mine["next"]), (kind, saved, how, "random state")
    print("loaded", kind, saved, how, flush=True)


if __name__ == "__main__":
    t.begin()
    {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
    t.end()
