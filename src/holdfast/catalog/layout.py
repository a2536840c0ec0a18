"""The names of everything in a store, in one place.

Sorted order is the reverse of commit order (``catalog`` before ``data``,
``records`` before ``trees``), so a copy made in sorted order at any moment
holds no record without its manifest and packs. Source: docs/format.md, "In a store".
"""

from __future__ import annotations

from holdfast.ids import Digest, ObjectName, RecordAddress, RunNumber, TagName

STORE = ObjectName("holdfast.json")
RUNS = "catalog/runs/"
RUN_INFO = "run.json"
TAGS = "catalog/tags/"
SWEEPS = "catalog/sweeps/"
SHARED_PACKS = "data/shared/"
RUN_FOLDER = r"(?:(?!000)\d{3}|[1-9]\d{3,})"
"""A pattern: the number of a run as its folder is written. What lies in 000 or 0001 is somebody else's."""


def run_folder(run: RunNumber) -> str:
    """``catalog/runs/003/``."""
    return f"{RUNS}{run.folder}/"


def run_info(run: RunNumber) -> ObjectName:
    """The object that claims a run's number."""
    return ObjectName(f"{run_folder(run)}{RUN_INFO}")


def launch(run: RunNumber, number: int) -> ObjectName:
    """One start of the job."""
    return ObjectName(f"{run_folder(run)}launches/{number:06d}.json")


def start(run: RunNumber, launch_number: int, timeline: int) -> ObjectName:
    """A completed restore, or a fresh start, within a launch."""
    return ObjectName(f"{run_folder(run)}launches/{launch_number:06d}.{timeline:03d}.json")


def launches_folder(run: RunNumber) -> str:
    """Launches and starts of a run."""
    return f"{run_folder(run)}launches/"


def holds_folder(run: RunNumber) -> str:
    """Saves in flight and readers at work."""
    return f"{run_folder(run)}holds/"


def hold(run: RunNumber, id_: str) -> ObjectName:
    """One save in flight (its record id) or reader (``reader-`` and a nonce)."""
    return ObjectName(f"{holds_folder(run)}{id_}.json")


def journal(run: RunNumber, writer: str, number: int) -> ObjectName:
    """A batch of events of one writer."""
    return ObjectName(f"{run_folder(run)}journal/{writer}/{number:06d}.json")


def journals_folder(run: RunNumber) -> str:
    """The journals of a run, a folder for each writer."""
    return f"{run_folder(run)}journal/"


def attempts_writer(launch_number: int) -> str:
    """The journal of a launch in which its loads are noted."""
    return f"attempts-{launch_number}"


def attempts_folder(run: RunNumber, launch_number: int) -> str:
    """Where that journal lies."""
    return f"{journals_folder(run)}{attempts_writer(launch_number)}/"


def marks_folder(run: RunNumber) -> str:
    """Marks of all records of a run."""
    return f"{run_folder(run)}marks/"


def mark(address: RecordAddress, kind: str, nonce: str) -> ObjectName:
    """One fact about a record."""
    return ObjectName(f"{marks_folder(address.run)}{address.id}/{kind}-{nonce}.json")


def records_folder(run: RunNumber) -> str:
    """The commit points of a run."""
    return f"{run_folder(run)}records/"


def parts_folder(run: RunNumber) -> str:
    """What ranks contribute to saves in flight."""
    return f"{run_folder(run)}parts/"


def trees_folder(run: RunNumber) -> str:
    """Manifests and skeletons of a run."""
    return f"{run_folder(run)}trees/"


def tree(run: RunNumber, digest: Digest) -> ObjectName:
    """A manifest or a skeleton, under its digest."""
    return ObjectName(f"{trees_folder(run)}{digest}")


def tag(name: TagName) -> ObjectName:
    """A tag; its folder is flat and names keep their case in the object, not in the file name."""
    return ObjectName(f"{TAGS}{name.lower()}.json")


def sweep(id_: str) -> ObjectName:
    """The tombstones of one sweeper."""
    return ObjectName(f"{SWEEPS}{id_}.json")


def private_packs(run: RunNumber) -> str:
    """Packs of one run."""
    return f"data/runs/{run.folder}/"


def repacked_packs(run: RunNumber) -> str:
    """Packs of one run that a repack wrote: complete and durable before anything names them."""
    return f"{private_packs(run)}repacked/"
