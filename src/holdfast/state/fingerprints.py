"""Fingerprints by which a frozen tensor is recognised as unchanged, where it lives, without copying it.

A fingerprint covers dtype, shape, memory order and every bit, each at its
place. It depends on a key of 64 random bits, so no two contents are confused in
one process after another, and it is compared with fingerprints of the same key
and the same kind of device only. It never names stored bytes: those are known
by their BLAKE3 digest, and a tensor that was recognised is marked ``by:
fingerprint`` and hashed in full every so many saves.

*On the CPU*: XXH3-128, seeded with the key; of large tensors the digests of
pieces, in order. Two contents that were not made to collide do so with
probability 2^-128, and nobody chooses weights to deceive their own checkpoint.
Against somebody who does, XXH3 is no help: collisions for every seed can be
constructed, which is why nothing is stored by it. Source:
https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md.

*Elsewhere*: a tree of two independent lanes, in the device's integer
arithmetic. A row of words ``x`` (32 bits each, signed) becomes ``sum(c[i] *
x[i])`` modulo 2^64 in each lane, with coefficients ``c``: random odd numbers of
64 bits for every level, lane and place. The sums, as words, are the rows of the
next level. As coefficients are odd, a change inside one word is always seen. Of
other changes a level of one lane misses one with probability 2^-63 if some word
changed in its lowest bit, and 2^-32 at worst, if all changes are multiples of
2^31 (signs of floats); with both lanes and three levels 2^-60 at worst. Sources:
Carter and Wegman, Universal classes of hash functions (1979); Lemire and Kaser,
Strongly universal string hashing is fast (2014), whose multilinear family this
is, with the lower halves kept.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from functools import cached_property

import torch
import xxhash
from torch import Tensor

from holdfast.errors import InvalidInput
from holdfast.packs.threads import in_parallel
from holdfast.state.tensors import dim_order, flat_bytes, plain, row_bytes

FINGERPRINT_BYTES = 16
"""Length of a fingerprint."""

_PIECE = 4 * 1024 * 1024
"""On the CPU: what one thread hashes in one go."""

_ROW = 4096
"""Elsewhere: words of a row."""

_CHUNK = 1024 * _ROW
"""Elsewhere: words that are multiplied in one go; the products take four times the memory of their bytes."""

_LEVELS = 4
"""Elsewhere: levels of the tree. Each leaves one word of 2048, so four are enough for 2^47 bytes."""

_WORD = 4


class Fingerprints:
    """Fingerprints under one key. Thread-safe.

    Args:
        key: 64 bits, to compare with the fingerprints of another process; by default random ones.

    Raises:
        InvalidInput: a key of more than 64 bits, or a negative one.

    Example:
        >>> fingerprints = Fingerprints()
        >>> weight = torch.arange(12.0).reshape(3, 4)
        >>> before = fingerprints.of([weight])
        >>> weight[1, 2] += 1
        >>> fingerprints.of([weight]) == before, len(before[0])
        (False, 16)
    """

    def __init__(self, key: int | None = None) -> None:
        if key is not None and not 0 <= key < 1 << 64:
            raise InvalidInput(f"a key of fingerprints has 64 bits; {key} has not")
        self._key = secrets.randbits(64) if key is None else key
        self._on: dict[torch.device, Tensor] = {}

    def of(self, tensors: Sequence[Tensor]) -> list[bytes]:
        """The fingerprints of ``tensors``, 16 bytes each; waits for the devices that hold them.

        Args:
            tensors: plain ones, as `holdfast.state.tensors.check_plain` has it. On the CPU one that is neither
                dense nor row-major is copied, as is elsewhere one that begins in the middle of a word.
        """
        return self.begin(tensors).read()

    def begin(self, tensors: Sequence[Tensor], *, by_device: bool = False) -> Pending:
        """As `of`, without waiting: the tensors may change as soon as this returns.

        What lives elsewhere than on the CPU is computed on the device's current stream, in order with what was put
        there before and after.

        Args:
            tensors: as of `of`.
            by_device: use the arithmetic of other devices on the CPU as well.
        """
        elsewhere = {
            place: self._lanes(_dense(tensor))
            for place, tensor in enumerate(tensors)
            if by_device or tensor.device.type != "cpu"
        }
        here = {place: self._here(_dense(one)) for place, one in enumerate(tensors) if place not in elsewhere}
        return Pending(self._key, [_outside(tensor) for tensor in tensors], here, elsewhere)

    def _here(self, tensor: Tensor) -> bytes:
        view = row_bytes(tensor)
        pieces = [view[at : at + _PIECE] for at in range(0, len(view), _PIECE)]
        return b"".join(in_parallel(lambda piece: xxhash.xxh3_128_digest(piece, seed=self._key), pieces))

    def _lanes(self, tensor: Tensor) -> Tensor:
        """Two numbers of 64 bits, where the tensor lives."""
        levels = self._coefficients(tensor.device)
        content = flat_bytes(tensor)
        parts = (content[at : at + _CHUNK * _WORD] for at in range(0, max(1, len(content)), _CHUNK * _WORD))
        sums = torch.cat([_row_sums(_words(part).expand(2, -1), levels[0]) for part in parts], 1)
        for level in levels[1:]:
            if sums.shape[1] > 1:
                words = sums.view(torch.int32)
                starts = range(0, words.shape[1], _CHUNK)
                sums = torch.cat([_row_sums(words[:, at : at + _CHUNK], level) for at in starts], 1)
        return sums[:, 0]

    def _coefficients(self, device: torch.device) -> Tensor:
        if device not in self._on:
            self._on[device] = self._drawn.to(device)
        return self._on[device]

    @cached_property
    def _drawn(self) -> Tensor:
        """Odd numbers of 64 bits, ``[level, lane, place]``, that follow from the key alone."""
        stream = hashlib.shake_256(b"holdfast fingerprints" + self._key.to_bytes(8, "little"))
        raw = bytearray(stream.digest(_LEVELS * 2 * _ROW * 8))
        return torch.frombuffer(raw, dtype=torch.int64).reshape(_LEVELS, 2, _ROW) | 1


class Pending:
    """Fingerprints that may still be on their way."""

    def __init__(self, key: int, outsides: list[bytes], here: dict[int, bytes], elsewhere: dict[int, Tensor]) -> None:
        self._key = key
        self._outsides = outsides
        self._here = here
        self._elsewhere = elsewhere

    def read(self) -> list[bytes]:
        """One of 16 bytes for each tensor, in order; 16 bytes each come from the devices, which are waited for."""
        by_device: dict[torch.device, list[int]] = {}
        for place, lanes in self._elsewhere.items():
            by_device.setdefault(lanes.device, []).append(place)
        for places in by_device.values():
            rows = torch.stack([self._elsewhere.pop(place) for place in places]).cpu()
            self._here.update(zip(places, map(bytes, rows.view(torch.uint8).numpy()), strict=True))
        contents = (self._here[place] for place in range(len(self._outsides)))
        together = zip(self._outsides, contents, strict=True)
        return [xxhash.xxh3_128_digest(outside + content, seed=self._key) for outside, content in together]


def _dense(tensor: Tensor) -> Tensor:
    """The same values, row-major in memory: in the same memory if that is dense in any order."""
    tensor = plain(tensor).resolve_conj().resolve_neg()
    return tensor.permute(dim_order(tensor) or tuple(range(tensor.ndim))).contiguous()


def _outside(tensor: Tensor) -> bytes:
    """What its bytes do not tell: 12 floats may be 3 rows or 4."""
    return f"{tensor.dtype} {tuple(tensor.shape)} {dim_order(tensor)} ".encode()


def _words(part: Tensor) -> Tensor:
    """Bytes as words; the last one is filled up with zeros, which the shape gives away."""
    if len(part) % _WORD == 0 and part.storage_offset() % _WORD == 0:
        return part.view(torch.int32)
    padded = part.new_zeros(-(-len(part) // _WORD) * _WORD)
    padded[: len(part)] = part
    return padded.view(torch.int32)


def _row_sums(words: Tensor, coefficients: Tensor) -> Tensor:
    """``[lane, row]`` from ``[lane, word]``; the last row may be shorter. Sums wrap around."""
    whole = words.shape[1] - words.shape[1] % _ROW
    rows = words[:, :whole].reshape(2, -1, _ROW)
    rest = words[:, whole:]
    sums = (rows * coefficients[:, None]).sum(2)
    # At least one, so that an empty tensor has its zeros.
    last = (rest * coefficients[:, : rest.shape[1]]).sum(1, keepdim=True)
    return torch.cat([sums, last], 1) if rest.shape[1] or not whole else sums
