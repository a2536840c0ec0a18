from __future__ import annotations

import argparse
import datetime
import enum
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.catalog.config import ABSENT, changed_keys, config_digest, items_of, plain_config, with_value
from holdfast.catalog.store import create_store, existing_store
from holdfast.errors import InvalidInput
from holdfast.storage.memory import memory_storage


class Activation(enum.Enum):
    RELU = 1


ORDINARY = {
    "out": Path("/x"),
    "z": 1j,
    "layers": {1, 2},
    "salt": b"raw",
    "act": Activation.RELU,
    "betas": (0.9, 0.95),
    "clip": math.nan,
    "by_layer": {1: 2},
}


@dataclass
class Config:
    lr: float = 0.1


@dataclass(slots=True)
class Slotted:
    lr: float = 0.1
    api_key: str = "abc"


def test_a_dataclass_with_slots_is_a_configuration():
    assert plain_config(Slotted()) == {"lr": 0.1, "api_key": "<redacted>"}


SECRETS = [
    "api_key",
    "apiKey",
    "API-KEY",
    "password",
    "db_passwd",
    "client_secret",
    "aws_access_key",
    "credentials",
    "token",
    "hf_token",
    "HF_TOKEN",
    "hfToken",
    "hub.token",
    "use_auth_token",
    "bot_token",
    "wandb-token",
    "hf_token_read",
    "access_tokens",
    "api_token_file",
]

EVERYDAY = [
    "max_tokens",
    "num_tokens",
    "tokens",
    "tokenizer",
    "tokenizer_name",
    "token_count",
    "token_embedding",
    "token_type_ids",
    "per_token",
    "pad_token",
    "eos_token",
    "bos_token",
    "unk_token",
    "mask_token",
    "sep_token",
    "cls_token",
    "padToken",
    "tokenizer_pad_token",
    "pad_token_id",
    "eos_token_id",
    "image_token",
    "decoder_start_token",
    "class_token",
    "additional_special_tokens",
    "tokens_per_batch",
    "detokenize",
    "lr",
    "key",
    "keys",
    "author",
]


@pytest.mark.parametrize("key", SECRETS)
def test_what_is_below_a_secret_key_is_blotted_out_wherever_it_stands(key):
    """Tables below such keys, and those in lists, were stored in clear."""
    blotted = {key: "<redacted>"}
    for value in ("S3CR", {"aws": "S3CR"}, ["S3CR"]):
        secret = {key: value}
        config = {"at": secret, "list": [1, secret], "tuple": (secret,), "deep": [[{"at": {7: secret}}]], **secret}
        assert plain_config(config) == {
            "at": blotted,
            "list": [1, blotted],
            "tuple": (blotted,),
            "deep": [[{"at": {7: blotted}}]],
            **blotted,
        }


@pytest.mark.parametrize("key", EVERYDAY)
def test_everyday_keys_stay_as_they_are(key):
    config = {key: "x", "at": {key: 1}, "list": [{key: {"dim": 5}}]}
    assert plain_config(config) == config


def test_what_has_no_secrets_is_stored_with_the_same_digest_as_ever():
    config = {"layers": [{1: 0.1, "kind": OrderedDict(a=1)}], "betas": (0.9, {"b": (1,)}), "at": {2: {"c": None}}}
    plain = plain_config(config)
    assert plain == config | {"at": {"2": {"c": None}}}
    assert config_digest(plain) == "781fba1322791a356f8ee1ecf7aaa10bd48b62476625ac9f86e38f124cfe5123"


def test_a_secret_is_neither_compared_nor_kept():
    """A store of an earlier version has pad_token_id blotted out, and nobody can tell whether it has changed."""
    stored = {"hub": {"token": "<redacted>", "n": 1}, "pad_token_id": "<redacted>", "lr": 1}
    assert list(changed_keys(stored, {"hub": {"n": 1}, "pad_token_id": 3, "lr": 2})) == [(("lr",), 1, 2)]
    assert list(changed_keys({"lr": 1}, {"lr": 1, "hf_token": "<redacted>"})) == []


def test_what_is_kept_has_the_secrets_that_the_program_gave():
    own = {"hubs": [{"lr": 2, "token": "S3CR"}, {"deep": ({"token": "T"},)}]}
    kept = [{"lr": 1, "token": "<redacted>"}, {"deep": ({"token": "<redacted>"}, 5)}, {"token": "<redacted>"}]
    assert with_value(own, ("hubs",), kept) == {
        "hubs": [{"lr": 1, "token": "S3CR"}, {"deep": ({"token": "T"}, 5)}, {"token": "<redacted>"}]
    }


def test_a_path_finds_keys_that_are_no_text():
    """A key of text was written beside them."""
    config = {"layers": {1: 0.9, 2: {None: 5}}, 3: "x"}
    assert with_value(config, ("layers", "1"), 0.1) == {"layers": {1: 0.1, 2: {None: 5}}, 3: "x"}
    assert with_value(config, ("layers", "2", "None"), 6) == {"layers": {1: 0.9, 2: {None: 6}}, 3: "x"}
    assert with_value(config, ("3",), ABSENT) == {"layers": {1: 0.9, 2: {None: 5}}}
    assert with_value({1: "number", "1": "text"}, ("1",), "new") == {1: "number", "1": "new"}


@pytest.mark.parametrize("given", [Slotted(api_key="REAL"), argparse.Namespace(lr=0.1, api_key="REAL")])
def test_the_items_of_a_configuration_are_as_given(given):
    assert items_of(given) == {"lr": 0.1, "api_key": "REAL"}
    assert items_of(items_of(given)) == {"lr": 0.1, "api_key": "REAL"}
    assert items_of(None) == {}


@pytest.mark.parametrize("config", [datetime.date(2024, 1, 1), "lr=0.1", 3, [1], object()])
def test_what_has_no_names_is_no_configuration(config):
    with pytest.raises(InvalidInput, match="config wants a mapping, a dataclass or a namespace, not "):
        plain_config(config)


def test_a_relaunch_with_the_same_configuration_has_changed_nothing(store):
    """Sets that came back as lists, bytes as base64 and enums as their values were told at every relaunch."""
    info = store.create_run("toy", config=ORDINARY, config_digest=config_digest(ORDINARY)).info
    found = existing_store(store.storage).runs()[0]
    assert list(changed_keys(found.config, ORDINARY)) == []
    assert config_digest(found.config) == found.config_digest == info.config_digest


def test_a_value_whose_class_has_moved_has_not_changed(store):
    run = store.create_run("toy", config={"act": Activation.RELU})
    shown = {"act": "Activation.RELU"}
    assert run.info.config == {"act": Activation.RELU}
    assert list(changed_keys(shown, {"act": Activation.RELU})) == []


@pytest.mark.parametrize(("then", "now"), [((1, 2), [1, 2]), ({1}, {1, 2}), (1, True), (math.nan, 1.0)])
def test_another_value_is_a_change(then, now):
    assert list(changed_keys({"key": then}, {"key": now})) == [(("key",), then, now)]


def test_a_dataclass_is_stored_by_its_fields():
    store = create_store(memory_storage())
    run = store.create_run("toy", config=plain_config(Config()))
    assert store.run(run.number).info.config == {"lr": 0.1}
