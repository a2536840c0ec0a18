"""What is gathered for the checks at each boundary, and of which step it is."""

from __future__ import annotations

import torch
from streams_kit import SimStreams

from holdfast.health import Watch, nonfinite
from holdfast.recovery.caring.needs import Needs
from holdfast.recovery.caring.observing import Observing
from holdfast.recovery.caring.vitals import Vitals
from holdfast.state import probing
from holdfast.state.probing import Prober

NAN = float("nan")


def test_two_looks_at_one_step_lose_nothing_that_was_logged_for_it(monkeypatch):
    """A loader without a length is at its end only after the last batch: then the same boundary is looked at again."""
    streams = SimStreams(everywhere=0)
    streams.stuck = True
    monkeypatch.setattr(probing, "streams_in_use", lambda: streams)
    observing = Observing(Watch([nonfinite("loss")]), Vitals(None), Prober(lambda: []), Needs)
    found = [*observing.at(7, {"loss": torch.tensor(NAN)}), *observing.at(7, {})]
    assert [dict(one.metrics) for one in found] == [{}, {}]
    streams.finish()
    earlier, now = observing.at(8, {"loss": 1.0})
    assert (earlier.step, now.step) == (7, 8)
    assert str(earlier.metrics) == "{'loss': nan}"
