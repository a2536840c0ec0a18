"""Holdfast beneath torch.distributed.checkpoint: the same state at any number of ranks, whole, verified, unpickled."""

from __future__ import annotations

import collections
import pickle

import dcp_worker
import pytest
import torch
import torch.distributed.checkpoint as dcp
import worlds
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

import holdfast
from holdfast import Checkpointer, errors
from holdfast.catalog.launches import begin_launch
from holdfast.catalog.verifying.verify import verify
from holdfast.integrations.dcp import StorageReader, StorageWriter

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def save(folder, state, step=1, *, run="toy", planner=None, **more):
    writer = StorageWriter(folder, run=run, step=step, **more)
    dcp.save(state, storage_writer=writer, planner=planner, no_dist=True)
    return writer.record


def load(folder, state, reference="toy", planner=None):
    dcp.load(state, storage_reader=StorageReader(folder, reference), planner=planner, no_dist=True)
    return state


def steps(folder, run="toy"):
    store = holdfast.open(folder)
    return [record.step for record in store.run(store.named(run)[-1].number).records()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What worlds of one, two and four ranks have saved, and what went wrong on the way."""
    found = tmp_path_factory.mktemp("dcp")
    dcp_worker.save(found)
    worlds.run(found / "4", "dcp_worker.py", 4, "save", found)
    worlds.run(found / "2", "dcp_worker.py", 2, "save", "unchanged", "failing", "in_background", found)
    return found


@pytest.fixture(scope="module")
def loading(folder):
    return worlds.start(folder / "load", "dcp_worker.py", 2, "load", "dying", folder).wait(300)


def test_two_ranks_load_what_one_two_and_four_have_saved(loading):
    for log in loading.logs:
        lines = log.read_text().splitlines()
        assert {"loaded one", "loaded fsdp2", "loaded fsdp2tp2"} <= set(lines), log.read_text()


def test_one_process_loads_what_several_have_saved(folder):
    dcp_worker.load(folder)


def test_nothing_is_visible_of_a_save_in_which_a_rank_is_killed(folder, loading):
    assert loading.codes[1] == -9
    assert "done load" in loading.text
    assert "done dying" not in loading.text
    assert steps(folder / "store", "dying") == []


def test_a_rank_that_fails_fails_all_and_the_step_can_be_saved_again(folder):
    text = "".join(log.read_text() for log in (folder / "2").glob("*.log"))
    assert text.count("failed, and went on") == 2


def test_only_what_has_changed_is_written_again_by_another_writer_of_the_process(folder):
    said = [line.split() for line in (folder / "2" / "rank-0.log").read_text().splitlines() if line.startswith("new")]
    assert int(said[0][2]) > int(said[1][2]) == 30 * 30 * 4


def test_saves_in_threads_and_in_processes_of_dcp_are_checkpoints_of_one_line(folder):
    assert steps(folder / "store", "background") == [5, 6, 7]
    store = holdfast.open(folder / "store")
    run = store.run(store.named("background")[-1].number)
    assert [record.launch for record in run.records()] == [1, 2, 2]
    state = {"w": torch.zeros(4000), "mine": {"w0": torch.ones(5000, dtype=int), "w1": torch.zeros(5000, dtype=int)}}
    load(folder / "store", state, "background@7")
    assert [state["w"].unique(), state["mine"]["w0"].unique(), state["mine"]["w1"].unique()] == [3, 0, 1]


def test_what_was_saved_is_a_store_like_any_other(folder, loading):
    report = verify(holdfast.open(folder / "store"))
    assert not report.problems, report.problems


VALUES = {
    "tuple": (1, 2.5, None),
    "nan": float("nan"),
    "list": [1, [2.5, "x"]],
    "counts": collections.deque([{3: "x"}]),
    "rng": ("MT19937", [1, 2], 624),
    "dtype": torch.bfloat16,
    "name/with ~ and /": "text",
}


def test_values_come_back_without_pickle_in_either_direction(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle")

    for module, name in ((torch, "load"), (torch, "save"), (pickle, "loads"), (pickle, "load"), (pickle, "dumps")):
        monkeypatch.setattr(module, name, refuse)
    state = {"values": VALUES, "w": torch.arange(6000.0), "small": torch.tensor(3, dtype=torch.int64)}
    save(tmp_path, state)
    found = {"values": dict.fromkeys(VALUES), "w": torch.zeros(6000), "small": torch.tensor(0)}
    load(tmp_path, found)
    assert repr(found["values"]) == repr(VALUES)
    assert torch.equal(found["w"], state["w"])
    assert found["small"] == 3


def test_arrays_and_tensors_within_values_come_back(tmp_path):
    numpy = pytest.importorskip("numpy")
    rng = numpy.random.RandomState(3).get_state()
    save(tmp_path, {"rng": rng, "none": collections.deque([torch.empty(0, 3), torch.ones(2)])})
    found = load(tmp_path, {"rng": None, "none": None})
    assert found["rng"][0] == "MT19937"
    assert numpy.array_equal(found["rng"][1], rng[1])
    assert found["none"][0].shape == (0, 3)
    assert torch.equal(found["none"][1], torch.ones(2))


@pytest.mark.parametrize(
    ("value", "named"),
    [(object(), "extra.odd is a builtins.object|extra.odd is a object"), (torch.zeros(5).to_sparse(), "extra.odd")],
)
def test_what_cannot_be_stored_is_refused_by_its_name(tmp_path, value, named):
    with pytest.raises(CheckpointException, match=named):
        save(tmp_path, {"extra": {"odd": value}, "w": torch.ones(3)})
    assert steps(tmp_path) == []
    save(tmp_path, {"w": torch.ones(3)})
    assert steps(tmp_path) == [1]


def test_a_flipped_bit_is_found_and_the_pack_is_named(tmp_path):
    state = {"w": torch.arange(100_000.0)}
    (pack,) = save(tmp_path, state).packs
    data = bytearray((tmp_path / pack).read_bytes())
    data[200_000] ^= 4
    (tmp_path / pack).chmod(0o644)
    (tmp_path / pack).write_bytes(data)
    with pytest.raises(CheckpointException, match=pack):
        load(tmp_path, {"w": torch.zeros(100_000)})


def test_a_planner_with_bytes_of_its_own_is_refused_and_one_that_loads_them_gets_them(tmp_path):
    class Making(DefaultSavePlanner):
        def transform_object(self, write_item, object):  # noqa: A002
            return super().transform_object(write_item, object)

    class Loading(DefaultLoadPlanner):
        def load_bytes(self, read_item, value):
            super().load_bytes(read_item, value)

    with pytest.raises(CheckpointException, match=r"step would be bytes that Making\.transform_object makes"):
        save(tmp_path, {"step": 3}, planner=Making())
    save(tmp_path, {"step": 3})
    assert load(tmp_path, {"step": 0}, planner=Loading()) == {"step": 3}


def test_plans_of_an_earlier_save_are_refused(tmp_path):
    save(tmp_path, {"w": torch.ones(3)}, 1, planner=DefaultSavePlanner(enable_plan_caching=True))
    with pytest.raises(CheckpointException, match="without enable_plan_caching"):
        save(tmp_path, {"w": torch.ones(3)}, 2, planner=DefaultSavePlanner(enable_plan_caching=True))


def test_tensors_are_loaded_in_the_dtype_that_is_there_and_without_a_state_to_load_into(tmp_path):
    weights = torch.randn(300, 40)
    save(tmp_path, {"model": {"w": weights}, "lr": 0.5})
    found = load(tmp_path, {"model": {"w": torch.zeros(300, 40, dtype=torch.bfloat16)}})
    assert torch.equal(found["model"]["w"], weights.bfloat16())
    empty: dict = {}
    _load_state_dict(empty, StorageReader(tmp_path), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    assert torch.equal(empty["model"]["w"], weights)
    assert empty["lr"] == 0.5


def test_a_step_that_is_saved_again_opens_a_timeline_and_nothing_is_overwritten(tmp_path):
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 4.0)):
        save(tmp_path, {"w": torch.full((1000,), value)}, step)
    assert load(tmp_path, {"w": torch.zeros(1000)}, "toy@2")["w"][0] == 4
    assert load(tmp_path, {"w": torch.zeros(1000)}, "toy@1")["w"][0] == 1
    records = holdfast.open(tmp_path).run(1).records()
    assert [(one.launch, one.timeline, one.step) for one in records] == [(1, 0, 1), (1, 0, 2), (1, 0, 3), (1, 1, 2)]


def test_the_checkpoint_id_of_dcp_says_the_step(tmp_path):
    writer, reader = StorageWriter(tmp_path, run="toy"), StorageReader(tmp_path, "toy")
    for step in (5, 10):
        dcp.save({"w": torch.full((9,), step)}, storage_writer=writer, checkpoint_id=f"out/step-{step}", no_dist=True)
    state = {"w": torch.zeros(9, dtype=int)}
    dcp.load(state, storage_reader=reader, checkpoint_id="out/step-5", no_dist=True)
    assert state["w"][0] == 5
    dcp.load(state, storage_reader=reader, checkpoint_id="toy@last", no_dist=True)
    assert state["w"][0] == 10
    with pytest.raises(errors.InvalidInput, match="does not end in a step"):
        writer.reset("latest")


def test_retention_removes_what_the_policy_does_not_keep(tmp_path):
    for step in range(1, 5):
        save(tmp_path, {"w": torch.full((2000,), step)}, step, keep=holdfast.latest(2))
    assert steps(tmp_path) == [3, 4]


def test_a_launch_that_took_over_the_run_is_not_fenced_by_the_next_save(tmp_path):
    save(tmp_path, {"w": torch.ones(3)}, 1)
    begin_launch(holdfast.open(tmp_path).run(1))
    for step in (2, 3):
        with pytest.raises(CheckpointException, match="a newer launch owns the run"):
            save(tmp_path, {"w": torch.ones(3)}, step)
    assert steps(tmp_path) == [1]


def test_a_process_has_one_launch_of_a_run_whatever_it_calls_it(tmp_path):
    for step, run in enumerate(("toy", "run-001", 1), 1):
        save(tmp_path, {"w": torch.ones(3)}, step, run=run)
    assert [record.launch for record in holdfast.open(tmp_path).run(1).records()] == [1, 1, 1]


def test_ranks_that_have_found_different_checkpoints_load_none(tmp_path):
    plans = [LoadPlan([], storage_data="run-001@1 (ab)"), LoadPlan([], storage_data="run-001@2 (cd)")]
    with pytest.raises(errors.InvalidInput, match=r"different checkpoints.*name a step"):
        StorageReader(tmp_path).prepare_global_plan(plans)


def test_a_codec_packs_what_is_written(tmp_path):
    record = save(tmp_path, {"w": torch.zeros(100_000)}, codec="zstd")
    assert record.bytes.stored < record.bytes.new
    assert load(tmp_path, {"w": torch.ones(100_000)})["w"].eq(0).all()
    with pytest.raises(errors.InvalidInput, match="codec='auto'"):
        StorageWriter(tmp_path, run="toy", codec="auto")


def test_a_writer_does_not_save_twice_under_one_step_by_mistake(tmp_path):
    writer = StorageWriter(tmp_path, run="toy", step=3)
    dcp.save({"w": torch.ones(3)}, storage_writer=writer, no_dist=True)
    with pytest.raises(CheckpointException, match="set step before each save"):
        dcp.save({"w": torch.ones(3)}, storage_writer=writer, no_dist=True)


def test_without_a_step_or_without_collectives_nothing_is_begun(tmp_path):
    with pytest.raises(CheckpointException, match="the step is not known"):
        dcp.save({}, storage_writer=StorageWriter(tmp_path / "s", run="toy"), no_dist=True)
    with pytest.raises(errors.InvalidInput, match="use_collectives=False"):
        StorageWriter(tmp_path / "s", run="toy", step=1).set_up_storage_writer(True, rank=0, use_collectives=False)
    assert not (tmp_path / "s").exists()


def test_a_checkpointer_and_dcp_do_not_take_each_others_checkpoints(tmp_path):
    save(tmp_path, {"w": torch.ones(3)})
    model = torch.nn.Linear(2, 2)
    with pytest.raises(errors.StateMismatch, match="StorageReader"):
        Checkpointer(tmp_path, run="toy", state={"model": model}).restore("toy@1")
    ckpt = Checkpointer(tmp_path, run="other", state={"model": model})
    ckpt.save()
    ckpt.close()
    with pytest.raises(CheckpointException, match=r"Checkpointer\(...\).restore"):
        load(tmp_path, {"w": torch.ones(3)}, "other")


def test_a_writer_can_be_pickled_and_is_no_stager(tmp_path):
    writer = StorageWriter(tmp_path, run="toy", step=3)
    assert not isinstance(writer, AsyncStager)
    dcp.save({"w": torch.ones(3)}, storage_writer=writer, no_dist=True)
    twin = pickle.loads(pickle.dumps(writer))
    twin.step = 4
    dcp.save({"w": torch.ones(3)}, storage_writer=twin, no_dist=True)
    assert steps(tmp_path) == [3, 4]


def test_a_tensor_of_which_a_part_is_missing_is_not_saved(tmp_path):
    class Half(DefaultSavePlanner):
        def create_local_plan(self):
            plan = super().create_local_plan()
            plan.items[0].tensor_data.chunk.sizes = torch.Size([2])
            return plan

        def resolve_data(self, write_item):
            return super().resolve_data(write_item)[:2]

    with pytest.raises(CheckpointException, match=r"w of shape \[1000\] is not complete: nobody has \[2:1000\]"):
        save(tmp_path, {"w": torch.ones(1000)}, planner=Half())
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "launches"]
    assert sorted(left) == ["holdfast.json", "run.json"]
