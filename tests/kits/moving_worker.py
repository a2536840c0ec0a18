"""``FOLDER TOTAL``: trains up to a step with whatever ranks there are, and writes down which samples were used when."""

import json
import sys
from pathlib import Path

import topologies as t
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import holdfast
from holdfast import every, latest


class Numbers(Dataset):
    def __len__(self):
        return 90

    def __getitem__(self, number):
        return number, torch.full((40,), number / 90)


class Adapted(nn.Module):
    """A frozen base and a small part that is trained, in bfloat16 with moments in float32."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(40, 400_000, bias=False)
        self.base.requires_grad_(False)
        self.adapter = nn.Linear(400_000, 4).to(torch.bfloat16)

    def forward(self, x):
        return self.adapter(self.base(x).to(torch.bfloat16)).float()


class WideMoments(torch.optim.Optimizer):
    """Momentum in float32 for parameters of any kind."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01})

    def step(self, closure=None):
        with torch.no_grad():
            for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
                state["momentum"].mul_(0.9).add_(parameter.grad.float())
                parameter.add_(state["momentum"].to(parameter.dtype), alpha=-0.01)


def main(folder, total):
    torch.manual_seed(t.rank())
    if t.world() > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        with torch.device("meta"):
            model = Adapted()
        mesh = init_device_mesh("cpu", (t.world(),))
        for unit in (model.base, model.adapter, model):
            fully_shard(unit, mesh=mesh)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    else:
        model = Adapted()
    optimizer = WideMoments(model.adapter.parameters())
    data = Numbers()
    sampler = holdfast.Sampler(data, batch_size=12 // t.world(), rank=t.rank(), world=t.world())
    state = {"model": model, "optimizer": optimizer}
    used = []
    with holdfast.Checkpointer(
        folder / "s", run="x", state=state, save=every(steps=2), keep=latest(20), peer_timeout=30
    ) as ckpt:
        for step, (numbers, x) in ckpt.batches(DataLoader(data, batch_sampler=sampler), total_steps=total):
            used.append((step, numbers.tolist()))
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                model(x)  # an evaluation: the next save finds root parameters that are not sharded
    moments = {str(state["momentum"].dtype) for state in optimizer.state.values()}
    (folder / f"used-{total}.rank{t.rank()}.json").write_text(json.dumps({"used": used, "moments": sorted(moments)}))


if __name__ == "__main__":
    t.begin()
    main(Path(sys.argv[1]), int(sys.argv[2]))
    t.end()
