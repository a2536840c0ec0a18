"""``FOLDER``: makes the golden stores of this world, with the digests of what is in them.

Golden stores are made once for each format, and read for ever (tests/golden):

    python tests/kits/golden_worker.py --all tests/golden/format-1
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import topologies as t
import worlds
from blake3 import blake3

import holdfast

STEPS = 2
CODECS = ("raw", "zstd", "openzl")


def cases():
    """Name, kind, topology and codec of the stores of this world."""
    for how in t.NET[t.world()]:
        yield f"net-{how}", "net", how, "raw"
    if t.world() == 2:
        yield "deep-pp2", "deep", "pp2", "raw"
    if t.world() == 1:
        yield from ((f"net-one-{codec}", "net", "one", codec) for codec in CODECS[1:])


def digests(kind, how, model, optimizer):
    del kind
    found = t.everything(model, optimizer, how)
    return {name: blake3(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in sorted(found.items())}


def make(folder):
    for name, kind, how, codec in cases():
        model, optimizer = t.made(kind, how, seed=1)
        state = {"model": model, "optimizer": optimizer}
        options = {"save": holdfast.every(steps=STEPS), "saver": "inline", "peer_timeout": 30, "codec": codec}
        with holdfast.Checkpointer(folder / name, run="golden", state=state, **options) as ckpt:
            ckpt.values["text"] = "kept"
            for step in ckpt.steps(STEPS):
                t.train(kind, how, model, optimizer, step)
                ckpt.log(loss=1.5)
        found = digests(kind, how, model, optimizer)
        if t.rank() == 0:
            (folder / f"{name}.json").write_text(json.dumps(found, indent=1))


def pack(source, target):
    """A store as one file, in which the zeros between segments take no room."""
    target.mkdir(parents=True, exist_ok=True)
    for store in sorted(path for path in source.iterdir() if (path / "holdfast.json").exists()):
        with tarfile.open(target / f"{store.name}.tar.xz", "w:xz") as archive:
            archive.add(store, store.name)
        (target / f"{store.name}.json").write_text((source / f"{store.name}.json").read_text() + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--all":
        with tempfile.TemporaryDirectory() as folder:
            for size in (1, 2, 4):
                worlds.run(Path(folder) / f"log-{size}", "golden_worker.py", size, folder)
            for log in Path(folder).glob("log-*"):
                subprocess.run(["rm", "-r", str(log)], check=True)
            pack(Path(folder), Path(sys.argv[2]))
    else:
        t.begin()
        make(Path(sys.argv[1]))
        t.end()
