"""Packs against the bare device: the same bytes, with digests and without, taking turns.

    PYTHONPATH=src python benchmarks/packs_raw.py [--folder DIR] [--gigabytes 1.5] [--rounds 5] [--threads 3]

Writing: from ordinary memory to committed packs, fsync included, against direct writes from
aligned memory and fsync; "in place" is the same from aligned memory that is promised not to
change. Reading: verified into ordinary memory, page cache dropped, against direct reads. The
bare side uses 8 MiB pieces and as many threads.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from holdfast.packs.codec import Codec
from holdfast.packs.index import SegmentIndex
from holdfast.packs.reader import read_segments
from holdfast.packs.writer import write_segments
from holdfast.storage.local import LocalStorage

PIECE = 8 << 20
FOLDER = "data/runs/001/"


def in_pieces(size, threads, action):
    starts, lock = iter(range(0, size, PIECE)), threading.Lock()

    def work():
        buffer = mmap.mmap(-1, PIECE)
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            action(start, min(PIECE, size - start), buffer)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()


def raw_write(path, data, threads):
    view = memoryview(data)
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT | os.O_TRUNC)
    os.posix_fallocate(file, 0, len(view))
    in_pieces(len(view), threads, lambda start, size, _: os.pwrite(file, view[start : start + size], start))
    os.fsync(file)
    os.close(file)


def raw_read(path, threads):
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    in_pieces(path.stat().st_size, threads, lambda start, _, buffer: os.preadv(file, [buffer], start))
    os.close(file)


def pack_write(storage, segments, threads, stable=False):
    expected = sum(map(len, segments))
    return write_segments(
        storage,
        FOLDER,
        segments,
        known=lambda _: False,
        codec=Codec.RAW,
        threads=threads,
        expected=expected,
        stable=stable,
    )


def pack_read(storage, written, targets, threads):
    index = SegmentIndex.of(storage, [pack.name for pack in written.packs])
    read_segments(storage, index.get, zip(written.digests, targets, strict=True), threads=threads)


def drop_cache(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def seconds(action, *arguments):
    begin = time.perf_counter()
    result = action(*arguments)
    return time.perf_counter() - begin, result


def cut(memory, offset):
    view = memoryview(memory)[offset:]
    return [view[start : start + PIECE] for start in range(0, len(view), PIECE)]


def one_round(folder, aligned, segments, targets, threads):
    raw = folder / "raw.bin"
    store = folder / "store"
    times = {"raw write": seconds(raw_write, raw, aligned, threads)[0]}
    storage = LocalStorage(store)
    times["pack write"], written = seconds(pack_write, storage, segments, threads)
    times["in place"], again = seconds(pack_write, storage, cut(aligned, 0), threads, True)
    storage.delete([pack.name for pack in again.packs])
    drop_cache(folder)
    times["raw read"] = seconds(raw_read, raw, threads)[0]
    times["pack read"] = seconds(pack_read, storage, written, targets, threads)[0]
    storage.delete([pack.name for pack in written.packs])
    raw.unlink()
    return times, written


def filled(size, offset=0):
    memory = mmap.mmap(-1, size + offset)
    block = random.Random(1).randbytes(PIECE)
    for number, start in enumerate(range(offset, size + offset, PIECE)):
        end = min(start + PIECE, size + offset)
        memory[start:end] = (number.to_bytes(8, "little") + block)[: end - start]
    return memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=3)
    options = parser.parse_args()
    size = int(options.gigabytes * 1e9) // 4096 * 4096
    aligned, ordinary, into = filled(size), filled(size, 16), mmap.mmap(-1, size + 16)
    ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(into)), 0, len(into))
    segments, targets = cut(ordinary, 16), cut(into, 16)
    rounds = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for _ in range(options.rounds):
            times, written = one_round(Path(folder), aligned, segments, targets, options.threads)
            rounds.append(times)
            print("  ".join(f"{name} {value:.3f}s" for name, value in times.items()), flush=True)
    assert all(a == b for a, b in zip(segments, targets, strict=True)), "what was read is not what was written"
    middle = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    print(f"{size / 1e9:.2f} GB, {options.threads} threads, {len(written.packs)} packs; medians of {options.rounds}:")
    for name, value in middle.items():
        print(f"  {name:11} {value:.3f} s  {size / value / 1e9:.2f} GB/s")
    print(f"  writing, pack to raw: {middle['pack write'] / middle['raw write']:.2f}", end="")
    print(f" (in place {middle['in place'] / middle['raw write']:.2f})")
    print(f"  reading, pack to raw: {middle['pack read'] / middle['raw read']:.2f}")


if __name__ == "__main__":
    main()
