"""Two ranks with what sharded trainings trip over; each scenario says what it found."""

import contextlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import topologies as t
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import holdfast
from holdfast import every

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else ".")


def opened(name, state, **options):
    options = {"save": every(steps=1), "saver": "inline", "peer_timeout": 10, "on_save_error": 1} | options
    return holdfast.Checkpointer(FOLDER / name, run="x", state=state, **options)


def made(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(30, 50), nn.Linear(50, 30))
    for part in (*model, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    return model, torch.optim.AdamW(model.parameters())


def step(model, optimizer):
    model(torch.ones(4, 30)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def wholes(model, optimizer):
    states = [t.whole(v) for state in optimizer.state.values() for v in state.values()]
    return [*(t.whole(p) for p in model.parameters()), *states]


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def after_an_evaluation_and_an_exception_in_forward():
    model, optimizer = made()
    with opened("after", {"model": model, "optimizer": optimizer}, save=every(steps=1000)) as ckpt:
        for number in ckpt.steps(2):
            step(model, optimizer)
            with torch.no_grad():
                model(torch.ones(2, 30))
            if number == 1:
                with contextlib.suppress(RuntimeError):
                    model(torch.ones(2, 31))
        ckpt.save()
    model.apply(lambda module: module.reshard() if hasattr(module, "reshard") else None)
    was = wholes(model, optimizer)
    fresh, other = made(seed=1)
    with opened("after", {"model": fresh, "optimizer": other}) as ckpt:
        ckpt.restore()
    return same(was, wholes(fresh, other))


def fewer_rows_than_ranks():
    mesh = init_device_mesh("cpu", (2,))
    tensor = distribute_tensor(torch.arange(3000.0).reshape(1, 3000), mesh, [Shard(0)])
    tied = {"a": nn.Parameter(tensor), "b": None}
    tied["b"] = tied["a"]
    with opened("few", {"t": nn.ParameterDict(tied)}) as ckpt:
        ckpt.save()
    fresh = nn.Parameter(distribute_tensor(torch.zeros(1, 3000), mesh, [Shard(0)]))
    with opened("few", {"t": nn.ParameterDict({"a": fresh, "b": fresh})}) as ckpt:
        ckpt.restore()
    tensors = holdfast.open(FOLDER / "few").run(1).records()[-1].tensors
    return [torch.equal(t.whole(fresh), t.whole(tensor)), tensors]


def columns_and_scattered_rows():
    mesh = init_device_mesh("cpu", (2,))
    content = torch.arange(700.0 * 90).reshape(700, 90)
    columns = distribute_tensor(content, mesh, [Shard(1)])
    rows = torch.cat([part.chunk(2)[t.rank()] for part in content.chunk(5)])
    scattered = DTensor.from_local(
        rows, mesh, [_StridedShard(0, split_factor=5)], run_check=False, shape=(700, 90), stride=(90, 1)
    )
    with opened("odd", {"columns": columns, "scattered": scattered}) as ckpt:
        ckpt.save()
    turned = distribute_tensor(torch.zeros(700, 90), mesh, [Shard(0)])
    plain = torch.zeros(700, 90)
    with opened("odd", {"columns": turned, "scattered": plain}) as ckpt:
        ckpt.restore()
    back = distribute_tensor(torch.zeros(700, 90), mesh, [Shard(1)])
    again = DTensor.from_local(
        torch.zeros_like(rows),
        mesh,
        [_StridedShard(0, split_factor=5)],
        run_check=False,
        shape=(700, 90),
        stride=(90, 1),
    )
    with opened("odd", {"columns": back, "scattered": again}) as ckpt:
        ckpt.restore("run-001@0")
    return [
        torch.equal(t.whole(turned), content),
        torch.equal(plain, content),
        torch.equal(back.to_local(), columns.to_local()),
        torch.equal(again.to_local(), rows),
    ]


def values_that_are_not_reduced():
    partial = DTensor.from_local(torch.ones(700), init_device_mesh("cpu", (2,)), [Partial()], run_check=False)
    with opened("partial", {"sum": partial}) as ckpt:
        ckpt.save()


def compiled_and_replicated():
    torch.manual_seed(0)
    model = torch.compile(nn.parallel.DistributedDataParallel(nn.Linear(50, 50)), backend="eager")
    with opened("compiled", {"model": model}) as ckpt:
        ckpt.save()
    record = holdfast.open(FOLDER / "compiled").run(1).records()[-1]
    return [record.bytes.new, record.anomalies]


def an_average_beside_it():
    model, optimizer = made()
    average = torch.optim.swa_utils.AveragedModel(nn.Linear(40, 40))
    with opened("average", {"model": model, "optimizer": optimizer, "average": average}) as ckpt:
        for _ in ckpt.steps(1):
            step(model, optimizer)
            average.update_parameters(average.module)
    return holdfast.open(FOLDER / "average").run(1).records()[-1].world


class Meddling(nn.Module):
    """Its extra state, once it is set, wipes out the weight that was just loaded."""

    def __init__(self, meddles=False):
        super().__init__()
        self.weight, self.meddles = nn.Parameter(torch.ones(64, 16)), meddles

    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        if self.meddles:
            with torch.no_grad():
                self.weight.to_local().zero_()


def meddling_with_shards_of_another_world():
    first, folder = Meddling(), FOLDER / "meddled"
    if t.rank() == 0:
        _save_alone(first, folder)
    torch.distributed.barrier()
    second = Meddling(meddles=True)
    mesh = init_device_mesh("cpu", (2,))
    second.weight = nn.Parameter(distribute_tensor(second.weight.data, mesh, [Shard(0)]))
    with opened("meddled", {"model": second}) as ckpt:
        ckpt.restore()


def _save_alone(model, folder):
    """By a process of its own, which knows of no ranks."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import holdfast, odd_worker\n"
        "with holdfast.Checkpointer(sys.argv[2], run='x', state={'model': odd_worker.Meddling()}) as ckpt: ckpt.save()"
    )
    environ = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    words = [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)]
    subprocess.run(words, env=environ, check=True, timeout=300)


def run(scenario):
    found = {}
    try:
        found["value"] = scenario()
    except Exception as error:
        found |= {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
    (FOLDER / f"{scenario.__name__}.rank{t.rank()}.json").write_text(json.dumps(found))
    torch.distributed.barrier()


if __name__ == "__main__":
    t.begin()
    for name in sys.argv[2:]:
        run(globals()[name])
    t.end()
