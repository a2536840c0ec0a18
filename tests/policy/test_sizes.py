"""Amounts of bytes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.policy.sizes import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("4096B", 4096),
        ("8GB", 8 * 10**9),
        ("8GiB", 8 << 30),
        ("8G", 8 * 10**9),
        ("8Gi", 8 << 30),
        (" 8 gib ", 8 << 30),
        ("1.5kB", 1500),
        ("0.1KiB", 102),
        ("2TB", 2 * 10**12),
        ("3PiB", 3 << 50),
        ("0.3GB", 300_000_000),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "8 GX",
        "-8GB",
        "8iB",
        "8e9",
        "1_000",
        ".5GB",
        "5.",
        "0",
        "0.5",
        "0GB",
        "8GB 8GB",
        "८",
        "9" * 5000,
        "nan",
    ],
    ids=lambda text: text[:10],
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidInput, match=r"not a size|less than one byte"):
        parse_size(text)


@given(st.integers(1, 1 << 60))
def test_a_number_of_bytes_is_exact(count):
    assert parse_size(str(count)) == count


@given(st.integers(1, 1 << 60))
def test_what_is_shown_is_about_what_it_was(count):
    assert abs(parse_size(show_size(count)) - count) <= count * 0.05


def test_sizes_are_shown_by_powers_of_1024():
    assert [show_size(n) for n in (0, 1023, 1024, 1536 << 20, 5 << 40, 1 << 60)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 GiB",
        "5.0 TiB",
        "1024.0 PiB",
    ]
