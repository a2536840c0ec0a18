"""Peak memory: a restore holds no second copy of the state, and a capture one tensor at a time.

Users-ask 22: what fits from scratch must fit after a resume.
"""

import subprocess
import sys
import textwrap

COMMON = """
import threading, torch
from torch import nn
from holdfast.ids import Digest
from holdfast.state import Stored, capture, restore
from holdfast.trees import segments

MIB = 1 << 20

class Zeros:
    def need(self, parts):
        pass
    def read(self, wanted):
        for _, _, _, into in wanted:
            for start in range(0, len(into), MIB):
                into[start : start + MIB] = bytes(min(MIB, len(into) - start))

def stored(objects):
    snapshot = capture(objects)
    spans = [span for spec in snapshot.skeleton.tensors for span in segments(spec)]
    known = {n: Digest.of(bytes(n)) for n in {span.length for span in spans}}
    return Stored(
        skeleton=snapshot.skeleton, values=snapshot.values_bytes, inline=bytes(len(snapshot.inline)),
        own=snapshot.own, counts=(len(spans),), reader=Zeros(),
        digest=[known[span.length] for span in spans].__getitem__,
    )

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

class Peak:
    # The kernel's own high-water mark cannot be set back.
    def __enter__(self):
        self.start = self.peak = resident()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self
    def watch(self):
        while not self.done.wait(0.002):
            self.peak = max(self.peak, resident())
    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.growth = max(self.peak, resident()) - self.start
"""


def run(body):
    code = textwrap.dedent(COMMON) + textwrap.dedent(body)
    # The C library keeps freed blocks of this size to itself otherwise, and they would count.
    environment = {"PYTHONPATH": ":".join(sys.path), "MALLOC_MMAP_THRESHOLD_": "1000000"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_restore_in_place_needs_no_second_copy():
    run(
        """
        net = nn.ParameterList([nn.Parameter(torch.ones(8 * MIB // 4)) for _ in range(12)])
        optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
        for p in net.parameters():
            optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
        source = stored({"m": net, "o": optimizer})
        restore({"m": net}, source, only={"m"})
        with Peak() as peak:
            restore({"m": net, "o": optimizer}, source)
        assert all(not p.any() for p in net.parameters())
        assert peak.growth < 40 * MIB, peak.growth / MIB
        """
    )


def test_optimizer_state_that_is_made_anew_exists_once():
    run(
        """
        net = nn.ParameterList([nn.Parameter(torch.ones(8 * MIB // 4)) for _ in range(12)])
        optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
        for p in net.parameters():
            optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)
        source = stored({"m": net, "o": optimizer})
        optimizer.state.clear()
        with Peak() as peak:
            restore({"m": net, "o": optimizer}, source)
        assert peak.growth < (12 * 8 + 40) * MIB, peak.growth / MIB
        """
    )


def test_tensors_that_must_be_copied_for_a_save_are_copied_one_at_a_time():
    run(
        """
        net = nn.ParameterList([nn.Parameter(torch.ones(1024, 2048).t()) for _ in range(12)])
        snapshot = capture({"m": net})
        with Peak() as peak:
            total = sum(len(segment.data) for segment in snapshot.segments())
        assert total == 12 * 8 * MIB
        assert peak.growth < 40 * MIB, peak.growth / MIB
        """
    )
