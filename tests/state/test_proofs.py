"""What counts as verified in place, and what ends it."""

from __future__ import annotations

import torch

from holdfast.state import tensors
from holdfast.state.proofs import Proofs


def proven(proofs):
    return sorted(entry for entry, _, _ in proofs.standing())


def memory(tensor):
    return tensors.live_bytes(tensor)


def test_memory_that_nobody_else_touches_stands():
    proofs, kept = Proofs(), [torch.zeros(100), torch.zeros(100)]
    for entry, tensor in enumerate(kept):
        proofs.verified(entry, memory(tensor))
    assert proofs.standing() == {(entry, tensor.data_ptr(), 400) for entry, tensor in enumerate(kept)}


def test_neighbours_in_one_storage_do_not_disturb_each_other():
    proofs, base = Proofs(), torch.zeros(100)
    proofs.verified(0, memory(base[:50]))
    proofs.verified(1, memory(base[50:]))
    assert proven(proofs) == [0, 1]


def test_all_that_overlap_fall_together_even_through_a_third():
    proofs, base = Proofs(), torch.zeros(100)
    for entry, (begin, end) in enumerate([(0, 90), (10, 20), (80, 95), (95, 100)]):
        proofs.verified(entry, memory(base[begin:end]))
    assert proven(proofs) == [3]


def test_a_write_into_the_same_storage_ends_it():
    proofs, base, other = Proofs(), torch.zeros(100), torch.zeros(100)
    proofs.verified(0, memory(base[:50]))
    proofs.verified(1, memory(other))
    proofs.written(base.view(10, 10).t())
    assert proven(proofs) == [1]


def test_code_that_may_write_anywhere_ends_all():
    proofs = Proofs()
    proofs.verified(0, memory(torch.zeros(100)))
    proofs.forget()
    assert proofs.standing() == set()
