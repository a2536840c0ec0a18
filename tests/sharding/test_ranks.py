"""Two ranks: what they must agree on, what is said if they do not, and what is evidence of what."""

import itertools
import json

import pytest
import worlds

SCENARIOS = [
    "save_on_rank_0_only",
    "different_without_evidence",
    "small_values_that_differ",
    "equal_without_evidence",
    "drift",
    "drift_of_a_bias",
    "left_to_each_rank",
    "each_its_own",
    "names_of_their_own",
    "a_fork_without_the_optimizers",
    "a_signal_to_one_rank",
    "a_stop_that_leaves_no_time",
    "a_clock_of_one_rank",
    "a_metric_of_rank_0",
    "a_metric_of_all",
    "a_program_that_does_not_fit",
    "what_one_rank_cannot_save",
    "different_stores",
    "tags",
    "",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    world = worlds.start(folder / "world", "ranks_worker.py", 2, folder, *SCENARIOS)
    world.wait(300)

    def of(scenario):
        paths = [folder / f"{scenario}.rank{rank}.json" for rank in (0, 1)]
        assert all(path.exists() for path in paths), world.text
        return [json.loads(path.read_text()) for path in paths]

    return of


def values(found):
    assert all("error" not in one for one in found), found
    return [one["value"] for one in found]


def test_a_save_under_if_rank_0_is_named_as_what_it_is_on_all_ranks(found):
    for one in found("save_on_rank_0_only"):
        assert one["error"] == "SaveFailed"
        assert "every rank has to call it, not under 'if rank == 0'" in one["text"].replace("every rank has a part", "")


def test_equal_names_without_evidence_are_refused_where_their_content_differs(found):
    for one in found("different_without_evidence"):
        assert one["error"] in ("SaveFailed", "NotTogether")
        assert "model/0.weight is not the same on rank 0 and on rank 1" in one["text"]
        assert "per_rank()" in one["text"]
        assert "prefix=" in one["text"]


def test_values_that_differ_are_refused_by_name(found):
    for one in found("small_values_that_differ"):
        assert "scheduler/step_size is 3 on rank 0 and 4 on rank 1" in one["text"]


def test_equal_names_without_evidence_are_stored_once_where_their_content_is_equal(found):
    assert values(found("equal_without_evidence")) == [[16], [16]]


def test_a_bit_that_differs_between_replicas_is_found_and_named(found):
    """There is no one state then: nothing is saved, for what was saved would be no state that any rank ever had."""
    for one in found("drift"):
        assert "replicas have drifted apart: model/2.weight on rank 1 differs" in one["text"]


def test_a_bit_of_a_small_tensor_too(found):
    for one in found("drift_of_a_bias"):
        assert "replicas have drifted apart: model/2.bias on rank 1 differs" in one["text"]


def test_what_a_wrapper_leaves_to_each_rank_is_no_replica(found):
    for one in found("left_to_each_rank"):
        assert "model/0.weight is not the same on rank 0 and on rank 1" in one["text"]


def test_what_belongs_to_a_rank_comes_back_to_it(found):
    assert values(found("each_its_own")) == [[0.0] * 8, [1.0] * 8]


def test_a_prefix_tells_stages_apart_that_have_equal_names(found):
    assert values(found("names_of_their_own")) == [True, True]


def test_a_fork_leaves_what_is_named_on_every_rank_under_whatever_name_it_has_there(found):
    assert values(found("a_fork_without_the_optimizers")) == [[3, True, 0, 4], [3, True, 0, 4]]


def test_a_signal_to_one_rank_stops_all_at_the_same_step(found):
    (step, records), other = values(found("a_signal_to_one_rank"))
    assert other == [step, records]
    assert records == [[step, "preempted", records[0][2]]]
    assert step in (4, 5, 6)


def test_a_stop_that_is_asked_for_together_minds_the_time_of_the_rank_that_was_told(found):
    """Of the others nobody has said when they are killed."""
    for one in values(found("a_stop_that_leaves_no_time")):
        assert one == [[4, [], False], [4, [], False]]


def test_the_clock_of_rank_0_counts_for_all(found):
    first, second = values(found("a_clock_of_one_rank"))
    assert first == second
    assert len(first) >= 3
    steps = [step for step, _, _ in first[:-1]]
    assert all(b - a >= 2 for a, b in itertools.pairwise(steps)), "no wish is granted twice"


def test_the_metric_of_rank_0_counts_and_is_saved_a_step_later(found):
    first, second = values(found("a_metric_of_rank_0"))
    assert first == second
    steps = dict(first)
    assert {step: one["loss"] for step, one in steps.items()} == {2: 2.0, 4: 0.0, 6: 2.0}


def test_metrics_of_all_ranks_can_be_brought_together(found):
    assert values(found("a_metric_of_all"))[0][0] == {"loss": 0.5}


def test_what_does_not_fit_is_refused_on_all_ranks_and_changes_nothing(found):
    for text, same in values(found("a_program_that_does_not_fit")):
        assert "model/0.weight: stored shape [60, 40], live shape [61, 40]" in text
        assert same


def test_what_one_rank_cannot_save_is_refused_on_all_before_the_first_step(found):
    first, second = found("what_one_rank_cannot_save")
    assert second["error"] == "UnsupportedValue"
    assert "odd" in second["text"]
    assert first["error"] == "UnsupportedValue"
    assert first["text"].startswith("rank 1: ")


def test_ranks_that_do_not_share_a_store_are_refused_with_the_reason(found):
    for one in found("different_stores"):
        assert one["error"] == "InvalidInput"
        assert "do not share a store" in one["text"]


def test_a_tag_is_given_once(found):
    assert values(found("tags")) == [["at-0", "at-1"], ["at-0", "at-1"]]
