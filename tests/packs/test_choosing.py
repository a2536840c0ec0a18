from __future__ import annotations

import pytest
from packs_kit import weights

from holdfast.errors import InvalidInput
from holdfast.packs import choosing, floats
from holdfast.packs.choosing import Choice, Trial, choose, decide, trials
from holdfast.packs.codec import Codec
from holdfast.packs.segment import Segment

MIB = 1 << 20
ZSTD = Trial(Codec.ZSTD, 0.9, 0.5e9, 4)
OPENZL = Trial(Codec.OPENZL, 0.7, 1.2e9, 1)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (0.05e9, Codec.OPENZL),
        (0.5e9, Codec.OPENZL),
        (1.0e9, Codec.OPENZL),  # 1/1.2 against 1/1.0 saves 17 %
        (1.1e9, Codec.RAW),  # saves 8 %
        (3e9, Codec.RAW),
        (float("inf"), Codec.RAW),
    ],
)
def test_the_faster_the_link_the_less_a_codec_pays(link, expected):
    assert decide(link, [ZSTD, OPENZL]).codec is expected


def test_threads_help_only_codecs_that_let_them():
    slow = ZSTD._replace(rate=0.1e9, parallel=1)
    link = 0.2e9
    assert decide(link, [slow]).codec is Codec.RAW
    assert decide(link, [slow._replace(parallel=4)]).codec is Codec.ZSTD


@pytest.mark.parametrize(("ratio", "codec"), [(0.89, Codec.ZSTD), (0.91, Codec.RAW), (1.0, Codec.RAW)])
def test_a_tenth_of_the_time_must_be_saved(ratio, codec):
    assert decide(1e6, [ZSTD._replace(ratio=ratio)]).codec is codec


def test_the_reason_has_the_figures():
    assert decide(0.5e9, [ZSTD, OPENZL]) == Choice(
        Codec.OPENZL,
        "openzl, as it stores 0.70 of the bytes at 1.20 GB/s: over a link of 0.50 GB/s that saves 30 % of the time",
    )
    assert decide(1.1e9, [OPENZL]).why == (
        "raw, as even openzl stores 0.70 of the bytes at 1.20 GB/s: "
        "over a link of 1.10 GB/s that saves only 8 % of the time"
    )
    assert "over a link of 12.5 MB/s" in decide(12.5e6, [OPENZL]).why
    assert decide(2.4e9, [OPENZL]).why.endswith("over a link of 2.40 GB/s that takes 100 % more time")


@pytest.mark.parametrize("link", [0, -1.0, float("nan")])
def test_a_link_that_takes_nothing_is_refused(link):
    with pytest.raises(InvalidInput):
        decide(link, [ZSTD])


def test_without_samples_nothing_is_chosen():
    assert choose(1e6, [], 4) == Choice(Codec.RAW, "raw, as there was nothing to measure codecs with")


def test_over_a_slow_link_real_segments_are_encoded_and_over_a_fast_one_not(rng):
    samples = [Segment(memoryview(weights(rng, MIB)), "float32"), Segment(memoryview(bytes(MIB)), "int64")]
    assert choose(1e6, samples, 4).codec is (Codec.OPENZL if floats.available() else Codec.ZSTD)
    assert choose(1e15, samples, 4).codec is Codec.RAW


def test_noise_stays_raw_over_any_link(rng):
    assert choose(1e6, [Segment(memoryview(rng.randbytes(2 * MIB)), "float32")], 4).codec is Codec.RAW


def test_every_installed_codec_is_tried_on_a_few_megabytes(rng, monkeypatch):
    asked = []
    real = choosing.encode
    monkeypatch.setattr(choosing, "encode", lambda codec, *rest: asked.append((codec, *rest)) or real(codec, *rest))
    segment = Segment(memoryview(rng.randbytes(MIB)), "float32")
    tried = trials([segment] * 1000, 64)
    assert [trial.codec for trial in tried] == [codec for codec in Codec if codec is not Codec.RAW][: len(tried)]
    assert len(tried) == 1 + floats.available()
    assert len(asked) <= len(tried) * 17
    assert all(trial.ratio == 1.0 for trial in tried)


@pytest.mark.parametrize(("threads", "processors", "together"), [(4, 8, 4), (8, 2, 2), (1, 8, 1)])
def test_threads_count_as_far_as_there_are_processors_and_not_for_openzl(
    rng, monkeypatch, threads, processors, together
):
    monkeypatch.setattr(choosing, "_processors", lambda: processors)
    tried = trials([Segment(memoryview(rng.randbytes(1000)), "float32")], threads)
    assert {trial.codec: trial.parallel for trial in tried}[Codec.ZSTD] == together
    assert all(trial.parallel == 1 for trial in tried if trial.codec is Codec.OPENZL)


def test_a_codec_that_is_not_installed_is_not_tried(rng, monkeypatch):
    monkeypatch.setattr(floats, "available", lambda: False)
    samples = [Segment(memoryview(weights(rng, 100_000)), "float32")]
    assert [trial.codec for trial in trials(samples, 2)] == [Codec.ZSTD]
