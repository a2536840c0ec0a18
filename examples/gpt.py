"""Train a small character GPT on the source code of Python's own standard library, and survive anything.

Kill it at any moment, in any way, and run the same command again: it goes on from its last checkpoint and ends with
the very weights that an undisturbed run would have had.

    python examples/gpt.py --store checkpoints --steps 150
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import holdfast
from holdfast import every, latest

VOCABULARY = 128  # ASCII; anything else is read as 127


class Text(Dataset):
    """Windows of `context` characters, each with the same window moved on by one."""

    def __init__(self, context: int, limit: int = 2_000_000) -> None:
        source = bytearray()
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
            source += path.read_bytes()
            if len(source) >= limit:
                break
        self.tokens = torch.tensor(source[:limit], dtype=torch.uint8).clamp(max=VOCABULARY - 1)
        self.context = context

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        window = self.tokens[index * self.context : (index + 1) * self.context + 1].long()
        return window[:-1], window[1:]


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.mlp(self.before_mlp(x)))


class GPT(nn.Module):
    def __init__(self, width: int = 256, layers: int = 6, heads: int = 8, context: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout=0.1) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight
        self.apply(self._init)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places(places))))

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", default="checkpoints", help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--save-every", type=int, default=10, metavar="STEPS")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)  # another number of threads adds in another order
    torch.use_deterministic_algorithms(True)

    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.steps)
    loader = DataLoader(Text(context=64), batch_size=8, shuffle=True, num_workers=args.workers)

    with holdfast.Checkpointer(
        args.store,
        run="gpt",
        config={"steps": args.steps, "seed": args.seed},
        state={"model": model, "optimizer": optimizer, "scheduler": scheduler},
        save=every(steps=args.save_every),
        keep=latest(3),
    ) as ckpt:
        for step, (tokens, following) in ckpt.batches(loader, total_steps=args.steps):
            loss = functional.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            ckpt.log(loss=loss)
            print(f"step {step + 1} loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
