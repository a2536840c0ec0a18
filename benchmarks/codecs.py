"""What codecs make of the state of a small GPT that has trained for a while: how small, and how fast on one core.

python benchmarks/codecs.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import openzl.ext as zl
import torch
import zstandard
from blake3 import blake3
from harness.options import command, heading, parsed
from harness.report import machine, spread, table
from harness.states import Job, small_gpt

from holdfast.boxes import SEGMENT_BYTES
from holdfast.ids import Buffer
from holdfast.packs.codec import Codec, decode_into, encode

KINDS = {"model": "parameters", "exp_avg": "first moments", "exp_avg_sq": "second moments"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One segment."""

    kind: str
    dtype: str
    raw: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to store segments."""

    name: str
    encode: Callable[[Sample], Buffer]
    decode: Callable[[Sample, Buffer, memoryview], None]


@dataclass(slots=True)
class Figures:
    """What was measured of one method on one state; rates in GB of raw bytes a second."""

    ratios: dict[str, float] = field(default_factory=dict)
    encoding: list[float] = field(default_factory=list)
    decoding: list[float] = field(default_factory=list)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def trained(dtype: torch.dtype, steps: int, width: int) -> list[Sample]:
    """The state after ``steps``, the tensors of a kind joined to whole segments, as larger models fill them."""
    with default_dtype(dtype), tempfile.TemporaryDirectory() as folder:
        job, halves = small_gpt(Path(folder), every=1, width=width, batch=8)
        for _ in range(2 * steps):
            next(halves)
    return [sample for kind in KINDS for sample in _cut(job, kind, str(dtype).removeprefix("torch."))]


def _cut(job: Job, kind: str, dtype: str) -> Iterator[Sample]:
    tensors = [tensor for name, tensor in job.flat().items() if name.partition(".")[0] == kind]
    raw = memoryview(b"".join(one.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for one in tensors))
    for start in range(0, raw.nbytes, SEGMENT_BYTES):
        yield Sample(kind=kind, dtype=dtype, raw=raw[start : start + SEGMENT_BYTES])


def ours(codec: Codec) -> Method:
    """As a save and a load do it, the choice of what to do included."""
    used: dict[int, Codec] = {}

    def encoded(sample: Sample) -> Buffer:
        used[id(sample)], stored = encode(codec, sample.raw, sample.dtype)
        return stored

    def decoded(sample: Sample, stored: Buffer, into: memoryview) -> None:
        decode_into(used[id(sample)], memoryview(stored), into)

    return Method(name=str(codec), encode=encoded, decode=decoded)


def shuffled() -> Method:
    """The bytes of equal weight together, then zstd at its first level: what has been usual."""

    def lanes(sample: Sample) -> Buffer:
        width = 4 if sample.dtype == "float32" else 2
        apart = np.frombuffer(sample.raw, np.uint8).reshape(-1, width).T
        return zstandard.ZstdCompressor(level=1).compress(np.ascontiguousarray(apart))

    def back(sample: Sample, stored: Buffer, into: memoryview) -> None:
        width = 4 if sample.dtype == "float32" else 2
        apart = np.frombuffer(zstandard.ZstdDecompressor().decompress(stored), np.uint8).reshape(width, -1)
        np.copyto(np.frombuffer(into, np.uint8).reshape(-1, width), apart.T)

    return Method(name="bytes shuffled, zstd", encode=lanes, decode=back)


def deconstructed() -> Method:
    """OpenZL's own graph for floating-point numbers, a segment at a time: exponents Huffman-coded, the rest stored."""
    contexts: dict[str, tuple[zl.Compressor, zl.CCtx]] = {}

    def context(dtype: str) -> zl.CCtx:
        if dtype not in contexts:
            compressor, made = zl.Compressor(), zl.CCtx()
            compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
            node = zl.nodes.Float32Deconstruct() if dtype == "float32" else zl.nodes.BFloat16Deconstruct()
            compressor.select_starting_graph(node(compressor, zl.graphs.Store(), zl.graphs.Huffman()))
            made.ref_compressor(compressor)
            made.set_parameter(zl.CParam.StickyParameters, 1)
            contexts[dtype] = compressor, made
        return contexts[dtype][1]

    def encoded(sample: Sample) -> Buffer:
        numbers = sample.raw.cast("I" if sample.dtype == "float32" else "H")
        return context(sample.dtype).compress([zl.Input(zl.Type.Numeric, numbers)])

    def decoded(sample: Sample, stored: Buffer, into: memoryview) -> None:
        into[:] = zl.DCtx().decompress(bytes(stored))[0].content.as_bytes()

    return Method(name="OpenZL's own graph", encode=encoded, decode=decoded)


def hashed() -> Method:
    """What every segment goes through anyway, for comparison."""

    def digest(sample: Sample) -> Buffer:
        blake3(sample.raw).digest()
        return sample.raw

    def again(sample: Sample, _: Buffer, into: memoryview) -> None:
        blake3(sample.raw).digest()
        into[:] = sample.raw

    return Method(name="(BLAKE3)", encode=digest, decode=again)


def methods() -> list[Method]:
    return [hashed(), ours(Codec.ZSTD), ours(Codec.OPENZL), shuffled(), deconstructed()]


def timed(work: Callable[[], object]) -> float:
    """Processor time of this thread: what else runs on the machine is not counted."""
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def measure(samples: list[Sample], rounds: int) -> dict[str, Figures]:
    """Every method in turn, and again; what is decoded is compared once."""
    figures = {method.name: Figures() for method in methods()}
    target = memoryview(bytearray(SEGMENT_BYTES))
    total = sum(sample.raw.nbytes for sample in samples) / 1e9
    for turn in range(rounds):
        for method in methods():
            found = figures[method.name]
            stored: list[Buffer] = []
            found.encoding.append(total / timed(partial(_encode, method, samples, stored)))
            found.decoding.append(total / timed(partial(_decode, method, samples, stored, target)))
            if not turn:
                _check(method, samples, stored, target)
                found.ratios = _ratios(samples, stored)
    return figures


def _encode(method: Method, samples: list[Sample], stored: list[Buffer]) -> None:
    stored.extend(map(method.encode, samples))


def _decode(method: Method, samples: list[Sample], stored: list[Buffer], target: memoryview) -> None:
    for sample, content in zip(samples, stored, strict=True):
        method.decode(sample, content, target[: sample.raw.nbytes])


def _check(method: Method, samples: list[Sample], stored: list[Buffer], target: memoryview) -> None:
    for sample, content in zip(samples, stored, strict=True):
        method.decode(sample, content, target[: sample.raw.nbytes])
        if target[: sample.raw.nbytes] != sample.raw:
            raise SystemExit(f"{method.name} does not give back what it was given")


def _ratios(samples: list[Sample], stored: list[Buffer]) -> dict[str, float]:
    sizes: dict[str, list[int]] = {}
    for sample, content in zip(samples, stored, strict=True):
        for kind in (sample.kind, "all"):
            both = sizes.setdefault(kind, [0, 0])
            both[0] += memoryview(content).nbytes
            both[1] += sample.raw.nbytes
    return {kind: small / large for kind, (small, large) in sizes.items()}


def report(results: dict[str, dict[str, Figures]], megabytes: dict[str, float], args: argparse.Namespace) -> str:
    lines = [
        heading("Codecs", args),
        f"{machine()}, torch {torch.__version__}; `{command()}`. AdamW state of examples/gpt.py, {args.width} wide, "
        f"after {args.steps} steps, in segments of 8 MiB. Rates in GB of raw bytes a second of one core's time: "
        f"medians (lowest-highest) of {args.rounds} interleaved rounds; a decoded segment ends where the load wants "
        "it. OpenZL holds Python's interpreter lock, so in one process more threads do not make it faster.",
    ]
    head = ["codec", "stored / raw", *KINDS.values(), "encode", "decode"]
    for dtype, figures in results.items():
        rows = [
            [
                name,
                *(f"{found.ratios[kind]:.3f}" for kind in ("all", *KINDS)),
                *(spread(rates) for rates in (found.encoding, found.decoding)),
            ]
            for name, found in sorted(figures.items(), key=lambda item: item[1].ratios["all"])
        ]
        lines += [f"State in {dtype}, {megabytes[dtype]:.0f} MB:", table(head, rows).rstrip()]
    return "\n\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    args = parsed(parser, {"steps": 2, "width": 64, "rounds": 1})
    results: dict[str, dict[str, Figures]] = {}
    megabytes: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        samples = trained(dtype, args.steps, args.width)
        megabytes[samples[0].dtype] = sum(sample.raw.nbytes for sample in samples) / 1e6
        results[samples[0].dtype] = measure(samples, args.rounds)
    print(report(results, megabytes, args), flush=True)


if __name__ == "__main__":
    main()
