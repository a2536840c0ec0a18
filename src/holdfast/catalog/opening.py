"""``holdfast.open``: a store for looking at, without torch."""

from __future__ import annotations

from pathlib import Path

from holdfast.catalog.store import Store, open_store


def open(url: str | Path = "checkpoints") -> Store:  # noqa: A001  # the public name says what it does
    """The store at ``url``: its runs, records, tags and forks. Needs no torch, creates nothing.

    Raises:
        NotFound: there is no store here.
        UnknownFormat: written by a newer holdfast.

    Example:
        >>> import tempfile
        >>> from holdfast.catalog.store import open_store
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = open_store(folder, create=True).create_run("gpt2-small")
        ...     [run.name for run in open(folder).runs()]
        ['gpt2-small']
    """
    return open_store(url)
