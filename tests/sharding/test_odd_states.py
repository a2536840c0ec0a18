"""What sharded trainings trip over: evaluations, empty shards, scattered ones, ties across units, wrappers."""

import json

import pytest
import worlds

SCENARIOS = [
    "after_an_evaluation_and_an_exception_in_forward",
    "fewer_rows_than_ranks",
    "columns_and_scattered_rows",
    "values_that_are_not_reduced",
    "compiled_and_replicated",
    "an_average_beside_it",
    "meddling_with_shards_of_another_world",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    world = worlds.start(folder / "world", "odd_worker.py", 2, folder, *SCENARIOS).wait(300)

    def of(scenario):
        paths = [folder / f"{scenario}.rank{rank}.json" for rank in (0, 1)]
        assert all(path.exists() for path in paths), world.text
        return [json.loads(path.read_text()) for path in paths]

    return of


def values(found):
    assert all("error" not in one for one in found), [one.get("trace") for one in found]
    return [one["value"] for one in found]


def test_a_save_right_after_an_evaluation_or_a_failed_forward_has_the_shards(found):
    assert values(found("after_an_evaluation_and_an_exception_in_forward")) == [True, True]


def test_a_rank_without_rows_knows_of_ties_all_the_same(found):
    assert values(found("fewer_rows_than_ranks")) == [[True, 1], [True, 1]]


def test_columns_and_scattered_rows_load_into_any_other_form(found):
    assert values(found("columns_and_scattered_rows")) == [[True] * 4] * 2


def test_values_that_are_not_reduced_are_refused_with_the_way_out(found):
    for one in found("values_that_are_not_reduced"):
        assert "sum" in one["text"]
        assert "redistribute" in one["text"]


def test_a_compiled_wrapper_is_evidence_of_replicas(found):
    for new, anomalies in values(found("compiled_and_replicated")):
        assert new == 50 * 50 * 4
        assert anomalies == []


def test_modules_without_evidence_are_stored_beside_sharded_ones(found):
    assert values(found("an_average_beside_it")) == [2, 2]


def test_whoever_writes_to_a_shard_after_it_was_filled_is_found_out(found):
    """One rank has stored the tensor whole, so no stored digest is that of a shard."""
    for one in found("meddling_with_shards_of_another_world"):
        assert one["error"] == "RestoreFailed"
        assert "model/weight: other bytes than stored" in one["text"]
