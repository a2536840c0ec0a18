"""Each command on a store as training left it, and on one where things went wrong."""

from __future__ import annotations

import json
import re

import pytest
from blake3 import blake3

from holdfast.catalog import layout
from holdfast.catalog.repacking.repack import plan_repack
from holdfast.catalog.store import open_store
from holdfast.cli.finding import find_address
from holdfast.errors import Corrupt, Missing, StillNeeded, UnknownFormat
from holdfast.ids import RunNumber
from holdfast.storage.durable import unfinished_name

from .conftest import flip, unfinished

RUN = RunNumber(1)


def files(place) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def steps(cli, place, run="run-001") -> list[int]:
    return [row["step"] for row in cli(place, "ls", run, "--json").document["checkpoints"]]


def test_looking_changes_nothing(cli, place):
    before = files(place)
    looks = ("runs", "ls", "show @last", "log", "why", "verify --deep", "tag", "gc --dry-run")
    # The newest run is a fork without a checkpoint of its own: what it begins with is its last one.
    assert [cli(place, *words.split()).code for words in looks] == [0] * len(looks)
    assert files(place) == before


def test_runs_shows_forks_and_where_each_run_stands(cli, place, records):
    rows = cli(place, "runs", "--json").document["runs"]
    assert [(row["run"], row["step"], row["checkpoints"], row["launches"]) for row in rows] == [
        ("run-001", 8, 4, 2),
        ("run-002", 2, 1, 1),
        ("run-003", None, 0, 0),
    ]
    assert rows[2]["forked_from"] == str(records[3].address)


def test_ls_lists_newest_first_with_marks_and_tags(cli, place, records):
    rows = cli(place, "ls", "gpt2-small", "--json").document["checkpoints"]
    assert [row["step"] for row in rows] == [8, 6, 4, 2]
    assert [row["id"] for row in rows] == [record.id for record in reversed(records)]
    assert [row["head"] for row in rows] == [True, False, False, False]
    assert rows[0]["tags"] == ["baseline"]
    assert "good" in rows[2]["marks"]
    assert "pinned" in rows[3]["marks"]


def test_ls_of_a_fork_says_where_it_begins(cli, place, records):
    assert cli(place, "ls", "run-003").out.splitlines()[1] == f"no checkpoints yet; it begins at {records[3].address}"


def test_ls_names_a_damaged_record_and_lists_the_others(cli, place, records):
    flip(place / records[2].name)
    assert records[2].name in cli(place, "ls", "run-001").out
    assert steps(cli, place) == [8, 4, 2]


def test_ls_tells_what_a_rollback_left_behind(cli, place, store, records):
    from holdfast.catalog.launches import begin_launch

    begin_launch(store.run(1), deadline=0).record_start(0, records[0].address, "test")
    found = cli(place, "ls", "run-001")
    assert re.findall(r"^([x* ]) +\d+  [0-9a-f]{8} ", found.out, re.MULTILINE) == ["x", "x", "x", "*"]
    assert "left behind" in found.out


def test_a_save_that_was_given_up_is_no_checkpoint(cli, place, store):
    from holdfast.catalog.holds import find_saves, give_up

    attempt = unfinished(store, 1, 99)
    (held,) = find_saves(store, RUN)
    give_up(store, held, "test")
    assert steps(cli, place) == [8, 6, 4, 2]
    assert cli(place, "verify").code == 0
    attempt.abandon()


def test_a_save_in_flight_is_no_damage(cli, place, store):
    attempt = unfinished(store, 1, 99)
    assert cli(place, "verify").code == 0
    assert steps(cli, place) == [8, 6, 4, 2]
    attempt.abandon()


def test_show_tells_tensors_values_and_metrics(cli, place, records):
    found = cli(place, "show", "run-001@8", "--json").document
    assert found["record"]["id"] == records[3].id
    assert found["tags"] == ["baseline"]
    assert {"name": "model/weight", "dtype": "float32", "shape": [40, 40], "lifetime": "parameter"} in found["tensors"]
    shown, timing = cli(place, "show", "run-001@8").out, records[3].timing
    assert "loss" in shown
    assert f"{timing.stall:.2f} stall, {timing.durable:.2f} durable" in shown


def test_show_of_a_damaged_manifest_shows_the_record_and_fails(cli, place, records):
    flip(place / layout.tree(RUN, records[3].manifest_digest))
    found = cli(place, "show", "baseline")
    assert found.code == Corrupt.exit_code
    assert str(records[3].address) in found.out
    assert "Traceback" not in found.err


def test_log_is_in_the_order_of_time(cli, place):
    events = cli(place, "log", "gpt2-small", "--json").document["events"]
    assert [one["time"] for one in events] == sorted(one["time"] for one in events)
    assert {"launch", "start", "save"} <= {one["what"] for one in events}


def test_why_tells_what_resume_takes_and_what_retention_keeps(cli, place, records):
    found = cli(place, "why", "run-001", "--keep", "latest(1)", "--json").document
    assert found["resume"] == str(records[3].address)
    assert found["policy_from"] == "--keep"
    assert set(found["keep"]) == {records[0].id, records[1].id, records[3].id}
    assert "pinned" in found["keep"][records[0].id]
    assert "the head" in found["keep"][records[3].id]
    assert found["delete"] == [str(records[2].address)]


def test_why_tells_what_is_passed_over(cli, place, records):
    flip(place / records[3].name)
    found = cli(place, "why", "run-001", "--json").document
    assert found["resume"] == str(records[2].address)
    assert any(records[3].name in line for line in found["passed_over"])


def test_why_of_a_bad_policy_is_an_error(cli, place):
    found = cli(place, "why", "run-001", "--keep", "latest(banana)")
    assert (found.code, found.out) == (13, "")


def test_verify_names_damage_what_it_affects_and_what_to_do(cli, place, records):
    pack = records[3].packs[0]
    flip(place / pack, at=5000)
    assert cli(place, "verify").code == 0  # a bit within a segment is seen by reading it only
    found = cli(place, "verify", "--deep", "--json")
    assert found.code == 40
    problem = next(one for one in found.document["problems"] if one["object"] == pack)
    assert str(records[3].address) in problem["affects"]
    assert problem["remedy"]
    people = cli(place, "verify", "--deep")
    assert people.code == 40
    assert pack in people.out
    assert "what to do:" in people.out


def test_verify_of_one_checkpoint_does_not_mind_another_ones_damage(cli, place, records):
    flip(place / layout.tree(RUN, records[0].manifest_digest))
    assert cli(place, "verify", "run-001@8").code == 0
    assert cli(place, "verify", "run-001@2").code == 40


def test_a_lost_pack_is_found_without_deep(cli, place, records):
    (place / records[3].packs[0]).unlink()
    found = cli(place, "verify", "--json")
    assert found.code == 40
    assert Missing.kind in {problem["kind"] for problem in found.document["problems"]}


def test_a_record_of_an_unknown_format_is_said_to_be_newer(cli, place, records):
    path = place / records[3].name
    body = path.read_bytes()[: -len('  "seal": ""\n}\n') - 64].replace(b'"format": 1', b'"format": 7')
    path.write_bytes(body + b'  "seal": "' + blake3(body).hexdigest().encode() + b'"\n}\n')
    assert cli(place, "show", records[3].id).code == UnknownFormat.exit_code
    assert "upgrade" in cli(place, "ls", "run-001").out
    assert UnknownFormat.kind in cli(place, "verify").out


def test_a_tag_is_made_listed_and_removed(cli, place, records):
    assert cli(place, "tag", "run-001@2", "release", "--note", "first").code == 0
    tags = cli(place, "tag", "--json").document["tags"]
    assert [(tag["tag"], tag["target"]) for tag in tags] == [
        ("baseline", str(records[3].address)),
        ("release", str(records[0].address)),
    ]
    assert cli(place, "tag", "--delete", "release", "--json").document == {"deleted": "release"}
    assert len(cli(place, "tag", "--json").document["tags"]) == 1


def test_a_damaged_tag_is_listed_with_what_to_do(cli, place, records):
    cli(place, "tag", "run-001@2", "Release")
    flip(place / "catalog/tags/release.json")
    found = cli(place, "tag")
    assert "baseline" in found.out
    assert "damaged: catalog/tags/release.json" in found.out
    assert "holdfast tag --delete release" in found.out.replace("\n", " ")
    (damaged,) = cli(place, "tag", "--json").document["damaged"]
    assert damaged["name"] == "catalog/tags/release.json"
    assert cli(place, "tag", "--delete", "release").code == 0
    assert cli(place, "tag", "--json").document["damaged"] == []


def test_a_tag_does_not_move(cli, place):
    found = cli(place, "tag", "run-001@2", "baseline")
    assert found.code == 31
    assert "run-001@8" in found.err


def test_a_fork_begins_at_its_checkpoint(cli, place, records):
    found = cli(place, "fork", "run-001@6", "other", "--json").document
    assert found == {"run": "run-004", "name": "other", "forked_from": str(records[2].address)}
    assert cli(place, "show", "other@last", "--json").document["record"]["id"] == records[2].id


def test_rm_refuses_what_is_needed_and_says_by_what(cli, place, store, records):
    from holdfast.catalog.readers import reading

    before = files(place)
    for reference, reason in (("baseline", "tag 'baseline'"), ("run-001@2", "a pin")):
        found = cli(place, "rm", reference)
        assert (found.code, found.out) == (StillNeeded.exit_code, "")
        assert reason in found.err
    assert files(place) == before
    with reading(store, [records[2].address]):
        found = cli(place, "rm", "run-001@6", "--dry-run")
    assert found.code == StillNeeded.exit_code
    assert "a reader" in found.err


def test_rm_refuses_a_fork_point(cli, place):
    cli(place, "tag", "--delete", "baseline")
    found = cli(place, "rm", "run-001@8")
    assert found.code == StillNeeded.exit_code
    assert "run-003" in found.err


def test_rm_does_what_its_dry_run_says(cli, place):
    before = files(place)
    planned = cli(place, "rm", "run-001@6", "--dry-run", "--json").document
    assert files(place) == before
    done = cli(place, "rm", "run-001@6", "--json").document
    assert (planned.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert planned == done
    assert before - files(place) == set(done["objects"])
    assert cli(place, "verify", "--deep").code == 0


def test_rm_removes_a_damaged_checkpoint(cli, place, records):
    flip(place / records[2].name)
    assert cli(place, "verify").code == 40
    assert cli(place, "rm", records[2].id[:8]).code == 0
    assert cli(place, "verify", "--deep").code == 0
    assert steps(cli, place) == [8, 4, 2]


@pytest.mark.parametrize("as_", ["run-001@6", "{id}", "{prefix}"])
def test_a_damaged_record_answers_to_step_and_id(place, store, records, as_):
    record = records[2]
    flip(place / record.name)
    assert find_address(store, as_.format(id=record.id, prefix=record.id[:6])) == record.address


def test_rm_takes_one_run_at_a_time(cli, place):
    assert cli(place, "rm", "run-001@6", "run-002@2").code == 10


def test_gc_does_what_its_dry_run_says(cli, place):
    before = files(place)
    planned = cli(place, "gc", "run-001", "--keep", "latest(1)", "--dry-run", "--json").document
    assert files(place) == before
    done = cli(place, "gc", "run-001", "--keep", "latest(1)", "--json").document
    strip = [[{**sweep, "dry_run": None} for sweep in one["sweeps"]] for one in (planned, done)]
    assert strip[0] == strip[1]
    assert before - files(place) >= set(done["sweeps"][0]["objects"]) != set()
    assert cli(place, "verify", "--deep").code == 0
    assert steps(cli, place) == [8, 4, 2]


def test_a_dry_run_of_gc_sees_the_packs_that_it_would_leave_half_empty(cli, tmp_path):
    """What the sweep lets go still counted as live, so the packs that are repacked after it were missing."""
    import torch

    from holdfast import Checkpointer, every, latest

    place, model = tmp_path / "s", torch.nn.Linear(300, 300)
    model.register_buffer("same", torch.ones(100, 300))
    options = {"save": every(steps=2), "keep": latest(9), "saver": "inline"}
    with Checkpointer(place, run="gpt", state={"model": model}, **options) as ckpt:
        for _ in ckpt.steps(6):
            torch.nn.init.uniform_(model.weight)
    words = ("gc", "gpt", "--keep", "latest(1)", "--json")
    planned, done = cli(place, *words, "--dry-run").document, cli(place, *words).document
    assert planned["repacked"] == done["repacked"]
    assert len(done["repacked"][0]["packs"]) == 1
    assert cli(place, "verify", "--deep").code == 0


def test_a_dry_run_of_gc_sees_the_shared_packs_that_the_runs_let_go(cli, place, store):
    """The plan of the shared packs is made as if the runs' plans were executed."""
    import torch

    from holdfast import Checkpointer, every, latest

    for seed in range(2):  # the second launch has another frozen base: the first one's pack is let go with its record
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 2))
        torch.nn.init.constant_(model[0].weight, 0.5 + seed)
        model[0].requires_grad_(False)
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
        state = {"model": model, "optimizer": optimizer}
        with Checkpointer(place, run="lora", state=state, save=every(steps=2), keep=latest(9)) as ckpt:
            if seed:
                ckpt.restore()
                torch.nn.init.constant_(model[0].weight, 0.5 + seed)
            for _ in ckpt.steps(2 + 4 * seed):
                model(torch.ones(1, 64)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                ckpt.log(loss=0.0)
    first = store.run(4).records()[0]
    cli(place, "rm", first.id)
    assert [line for line in cli(place, "gc", "--dry-run").out.splitlines() if line.startswith("shared:")]
    planned = cli(place, "gc", "--dry-run", "--json").document
    done = cli(place, "gc", "--json").document
    strip = [[{**sweep, "dry_run": None} for sweep in one["sweeps"]] for one in (planned, done)]
    assert strip[0] == strip[1]
    assert cli(place, "verify", "--deep").code == 0


def test_gc_leaves_alone_a_run_that_cannot_be_read(cli, place):
    flip(place / "catalog/runs/002/run.json")
    found = cli(place, "gc", "--json")
    assert found.code == 0
    assert "catalog/runs/002/run.json" in found.err
    assert [len(sweep["checkpoints"]) for sweep in found.document["sweeps"]] == [0, 0, 0]


def test_gc_with_a_policy_needs_a_run(cli, place):
    assert cli(place, "gc", "--keep", "latest(1)").code == 10


def test_while_gc_waits_its_output_stays_one_document(cli, place, store, monkeypatch):
    """What is waited for is said on standard error."""
    from holdfast.catalog.owners import Liveness
    from holdfast.cli import gc

    monkeypatch.setattr(gc, "WAIT", 0.05)
    monkeypatch.setattr("holdfast.catalog.store.liveness", lambda owner: Liveness.ALIVE)
    attempt = unfinished(store, 1, 99)
    found = cli(place, "gc", "run-001", "--keep", "latest(1)", "--json")
    attempt.abandon()
    assert found.code == 0
    json.loads(found.out)
    assert re.search(r"waiting .* for the save of run-001@99", found.err)


def test_a_store_is_what_was_opened(place):
    assert [info.number for info in open_store(place).runs()] == [1, 2, 3]


@pytest.fixture
def half_empty(cli, tmp_path):
    """A store with a pack of which a sweep leaves a small part live, and what is left of one that never got done."""
    import torch

    from holdfast import Checkpointer, every, latest

    place, model = tmp_path / "half-empty", torch.nn.Linear(300, 300)
    model.register_buffer("same", torch.ones(100, 300))
    options = {"save": every(steps=2), "keep": latest(9), "saver": "inline"}
    with Checkpointer(place, run="gpt", state={"model": model}, **options) as ckpt:
        for _ in ckpt.steps(4):
            torch.nn.init.uniform_(model.weight)
    assert cli(place, "rm", "gpt@2").code == 0
    (place / unfinished_name()).write_bytes(b"12345")
    return place


def test_gc_says_which_packs_stay_for_somebody_at_work(cli, half_empty, monkeypatch):
    """It said that they were repacked and their bytes were free, although a training held all of them."""
    from holdfast.catalog.readers import reading
    from holdfast.cli import gc

    monkeypatch.setattr(gc, "WAIT", 0.05)
    store = open_store(half_empty)
    (pack,) = plan_repack(store, store.run(1)).packs
    with reading(store, [store.run(1).records()[0].address]):
        for words in (["--dry-run"], []):
            found = cli(half_empty, "gc", "gpt", *words, "--json").document["repacked"][0]
            assert (found["packs"], found["deleted"]) == ([pack], [])
            assert [(kept["name"], "a reader" in kept["why"]) for kept in found["kept"]] == [(pack, True)]
            assert found["freed_bytes"] == -found["live_bytes"] < 0
        text = cli(half_empty, "gc", "gpt")
        assert "run-001: repacked 0 of 1 pack" in text.out
        assert re.search(rf"stays: {re.escape(pack)}: a reader \(process .*\) may need it", text.out)
        assert "waiting up to" in text.err
    found = cli(half_empty, "gc", "gpt", "--json").document["repacked"][0]
    assert (found["deleted"], found["kept"]) == ([pack], [])
    assert found["freed_bytes"] > 0
    assert not (half_empty / pack).exists()


def test_a_dry_run_of_gc_counts_the_unfinished_files_as_well(cli, half_empty):
    """They were 0 bytes in a dry run, and gone after the real one."""
    assert "would remove 5 B of unfinished files" in cli(half_empty, "gc", "--dry-run").out
    planned = cli(half_empty, "gc", "--dry-run", "--json").document
    done = cli(half_empty, "gc", "--json").document
    assert planned["unfinished_bytes"] == done["unfinished_bytes"] == 5
    assert cli(half_empty, "gc", "--dry-run", "--json").document["unfinished_bytes"] == 0


def test_each_part_of_gcs_document_says_what_it_is_about_and_warnings_are_in_it(cli, place):
    flip(place / "catalog/runs/002/run.json")
    found = cli(place, "gc", "--dry-run", "--json")
    for part in ("sweeps", "repacked"):
        assert [one["scope"] for one in found.document[part]] == ["run-001", "run-003", "shared"]
    assert found.document["warnings"] == found.err.splitlines()
    assert "left alone: catalog/runs/002/run.json" in found.document["warnings"][0]
    found = cli(place, "gc", "run-001", "--keep", "latest(3) | at_most('1B')", "--dry-run", "--json").document
    assert "the limit is not reached" in found["warnings"][0]
