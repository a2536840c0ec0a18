from __future__ import annotations

import json

import pytest

from holdfast.catalog import layout
from holdfast.catalog.readers import reading
from holdfast.catalog.store import open_store
from holdfast.cli import recode
from holdfast.packs import floats
from holdfast.packs.codec import Codec
from holdfast.packs.index import read_footer

from .conftest import unfinished


def files(place) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def stored_as(store, prefix="data/runs/001/"):
    packs = [listed.name for listed in store.storage.list(prefix)]
    return {entry.codec for name in packs for entry in read_footer(store.storage, name)}


@pytest.fixture
def soft(tmp_path):
    """A run of three checkpoints whose parameters are all ones, with a frozen part, and one of another name."""
    torch = pytest.importorskip("torch")
    from holdfast import Checkpointer, every, latest

    place = tmp_path / "soft"
    for name in ("soft", "other"):
        model = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.Linear(128, 128))
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model[1].parameters(), lr=1.0)
        state = {"model": model, "optimizer": optimizer}
        with Checkpointer(place, run=name, state=state, save=every(steps=1), keep=latest(9)) as ckpt:
            for _ in ckpt.steps(3):
                optimizer.zero_grad()
                model(torch.ones(1, 128)).sum().backward()
                optimizer.step()
                ckpt.log(loss=0.0)
    return place


def test_a_dry_run_says_what_would_come_and_does_nothing(cli, soft):
    before = files(soft)
    found = cli(soft, "recode", "soft", "--codec", "zstd", "--dry-run")
    assert found.code == 0
    assert files(soft) == before
    first, head, row = found.out.splitlines()
    assert first == "run-001: would recode 3 packs to zstd"
    assert head.split() == ["stored", "as", "segments", "bytes", "expected", "saves"]
    assert row.split()[:2] == ["raw", "3"]


def test_what_is_done_is_what_the_dry_run_said(cli, soft):
    store = open_store(soft)
    catalog = {name for name in files(soft) if name.startswith("catalog")}
    planned = cli(soft, "recode", "soft", "--codec", "zstd", "--dry-run", "--json").document
    done = cli(soft, "recode", "run-001", "--codec", "zstd", "--json").document
    assert planned["dry_run"] is True
    assert done["dry_run"] is False
    (plan,), (scope,) = planned["scopes"], done["scopes"]
    assert plan["packs"] == scope["packs"]
    assert scope["deleted"] == [pack["name"] for pack in plan["packs"]]
    assert len(scope["written"]) == 3
    assert scope["written_bytes"] < scope["stored_as"]["raw"]["stored"] / 5
    assert stored_as(store) == {Codec.ZSTD}
    assert stored_as(store, "data/runs/002/") == {Codec.RAW}
    assert {name for name in files(soft) if name.startswith("catalog")} == catalog
    assert cli(soft, "verify", "--deep").code == 0


def test_a_second_time_there_is_nothing_to_do(cli, soft):
    cli(soft, "recode", "soft", "--codec", "zstd")
    again = cli(soft, "recode", "soft", "--codec", "zstd")
    assert (again.code, again.out) == (0, "run-001: nothing to do, zstd would not make it shorter\n")


def test_there_and_back_again(cli, soft):
    cli(soft, "recode", "soft", "--codec", "zstd")
    assert cli(soft, "recode", "soft", "--codec", "raw").code == 0
    assert stored_as(open_store(soft)) == {Codec.RAW}
    assert cli(soft, "verify", "--deep").code == 0


def test_of_one_checkpoint_only_the_packs_that_it_needs(cli, soft):
    (scope,) = cli(soft, "recode", "run-001@2", "--codec", "zstd", "--json").document["scopes"]
    assert len(scope["deleted"]) == 1
    assert stored_as(open_store(soft)) == {Codec.RAW, Codec.ZSTD}


def test_the_newest_checkpoint_can_be_meant(cli, soft):
    (scope,) = cli(soft, "recode", "@last", "--codec", "zstd", "--json", "--dry-run").document["scopes"]
    assert scope["scope"] == "run-002"
    assert len(scope["packs"]) == 1


def test_shared_packs_only_if_asked_for(cli, soft):
    store = open_store(soft)
    cli(soft, "recode", "soft", "--codec", "zstd")
    assert stored_as(store, layout.SHARED_PACKS) == {Codec.RAW}
    found = cli(soft, "recode", "soft", "--codec", "zstd", "--shared", "--json")
    assert [scope["scope"] for scope in found.document["scopes"]] == ["run-001", "shared"]
    assert stored_as(store, layout.SHARED_PACKS) == {Codec.ZSTD}
    assert cli(soft, "verify", "--deep").code == 0


def test_a_checkpoint_that_was_recoded_is_resumed_from(cli, soft):
    torch = pytest.importorskip("torch")
    from holdfast import Checkpointer, every

    cli(soft, "recode", "soft", "--codec", "zstd", "--shared")
    model = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.Linear(128, 128))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[1].parameters(), lr=1.0)
    state = {"model": model, "optimizer": optimizer}
    with Checkpointer(soft, run="soft", state=state, save=every(steps=1)) as ckpt:
        ckpt.restore()
    assert model[0].weight.eq(1).all()
    assert model[1].weight.ne(1).any()


@pytest.mark.skipif(not floats.available(), reason="no openzl on this platform")
def test_real_weights_get_shorter_with_openzl(cli, place, store):
    """Too few here to gain much: 1,600 numbers a segment."""
    found = cli(place, "recode", "gpt2-small", "--codec", "openzl", "--json")
    assert found.code == 0
    (scope,) = found.document["scopes"]
    assert scope["deleted"]
    assert Codec.OPENZL in stored_as(store)
    assert cli(place, "verify", "--deep").code == 0


def test_a_codec_that_is_not_installed_is_refused_with_the_way_out(cli, soft, monkeypatch):
    monkeypatch.setattr(floats, "available", lambda: False)
    before = files(soft)
    found = cli(soft, "recode", "soft", "--codec", "openzl")
    assert found.code == 10
    assert "pip install 'holdfast[openzl]'" in found.err
    assert files(soft) == before


@pytest.mark.parametrize("who", ["reader", "saver"])
def test_while_somebody_is_at_work_his_packs_stay_and_he_is_named(cli, soft, monkeypatch, who):
    from holdfast.catalog.owners import Liveness

    monkeypatch.setattr(recode, "WAIT", 0.05)
    monkeypatch.setattr("holdfast.catalog.store.liveness", lambda owner: Liveness.ALIVE)
    store = open_store(soft)
    at_work = reading(store, [store.run(1).records()[0].address]) if who == "reader" else unfinished(store, 1, 99)
    before = files(soft)
    with at_work:
        found = cli(soft, "recode", "soft", "--codec", "zstd", "--json")
    assert found.code == 0
    (scope,) = found.document["scopes"]
    assert scope["deleted"] == []
    assert len(scope["kept"]) == 3
    assert "may need it" in scope["kept"][0]["why"]
    assert "waiting up to" in found.err
    assert before <= files(soft) | {name for name in before if "/holds/" in name}


def test_what_is_printed_fits_80_columns(cli, soft, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["--dry-run"], []):
        out = cli(soft, "recode", "soft", "--codec", "zstd", "--shared", *words).out
        assert max(map(len, out.splitlines())) <= 80
    assert "wrote 3 packs with" in out


@pytest.mark.parametrize("words", [["nothing-like-it", "--codec", "zstd"], ["soft"], ["soft", "--codec", "lz4"]])
def test_wrong_calls_are_refused(cli, soft, words):
    before = files(soft)
    assert cli(soft, "recode", *words).code in (2, 21)
    assert files(soft) == before


def test_what_cannot_be_told_is_said(cli, soft):
    store = open_store(soft)
    record = store.run(1).records()[0]
    (soft / record.name).write_text(json.dumps({"damaged": True}))
    found = cli(soft, "recode", "soft", "--codec", "zstd")
    assert "nothing can be recoded" in found.out
    assert "nobody can tell what it needs" in found.out
