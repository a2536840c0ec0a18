import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.errors import InvalidInput, StorageUnavailable
from holdfast.ids import ObjectName
from holdfast.storage.opening import open_storage

A = ObjectName("a")


@pytest.mark.parametrize("form", [str, Path, lambda path: f"file://{path}", lambda path: f"file://localhost{path}"])
def test_paths_and_file_urls_are_directories(tmp_path, form):
    place = tmp_path / "my store"
    storage = open_storage(form(place), create=True)
    storage.create(A, b"x")
    assert (place / "a").read_bytes() == b"x"
    assert open_storage(storage.url, create=False).read(A) == b"x"


def test_file_urls_are_unquoted(tmp_path):
    open_storage(f"file://{tmp_path}/my%20store", create=True)
    assert (tmp_path / "my store").is_dir()


def test_a_missing_directory_is_made_only_on_request(tmp_path):
    with pytest.raises(StorageUnavailable, match="there is no directory"):
        open_storage(tmp_path / "x", create=False)


def test_memory_is_new_and_empty_each_time():
    first = open_storage("memory://", create=True)
    first.create(A, b"x")
    assert list(open_storage("memory://", create=False).list("")) == []


@pytest.mark.parametrize(
    "url", ["s3://bucket/x", "gs://bucket", "az://c/x", "S3://bucket", "s3:/bucket", "https://x/y"]
)
def test_other_places_are_refused_with_a_way_out(url):
    with pytest.raises(InvalidInput, match="object stores are not supported yet in this version; give a local"):
        open_storage(url, create=True)


@pytest.mark.parametrize("url", ["", "~/checkpoints", "a\0b", "file://host/x", "file://"])
def test_what_is_no_path_is_refused(url):
    with pytest.raises(InvalidInput, match="not a"):
        open_storage(url, create=True)


def test_a_path_object_is_never_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_storage(Path("memory:/x"), create=True).url == str(tmp_path / "memory:" / "x")


def test_directories_do_not_pay_for_object_stores():
    code = "import sys, holdfast.storage.opening; sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
