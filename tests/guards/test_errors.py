"""Errors and exit codes are what the documents say."""

from __future__ import annotations

import builtins
import re
import runpy

import pytest

from holdfast import errors
from holdfast.recovery.stopping.preempting import EXIT_CODE


@pytest.fixture(scope="module")
def script(root):
    return runpy.run_path(str(root / "scripts" / "error_table.py"))


@pytest.fixture(scope="module")
def classes(script) -> dict[str, type[errors.HoldfastError]]:
    return {class_.__name__: class_ for _, class_ in script["tree"]()}


def test_every_class_is_in_the_tree(classes):
    """Whatever the module defines is reached from the root, each once."""
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(classes) == defined - {"ClassVar"}


def test_no_two_errors_share_a_code(script):
    assert script["duplicates"]() == []


def test_exit_codes_leave_room_for_the_shell(classes):
    """0 to 2 belong to the command line, 126 and above to the shell."""
    assert all(3 <= class_.exit_code < 126 for class_ in classes.values())


def test_no_error_ends_with_the_code_that_asks_for_another_start(classes):
    """75, EX_TEMPFAIL, is what a pre-empted training ends with: for a missing mount it would be requeued for ever."""
    assert EXIT_CODE == 75
    assert EXIT_CODE not in {class_.exit_code for class_ in classes.values()}


def test_the_page_names_each_code_once(pages):
    codes = re.findall(r"^\| (\d+) \|", pages["docs/errors.md"], re.MULTILINE)
    assert len(codes) == len(set(codes))


def test_a_group_and_its_members_share_the_first_digit(classes):
    for class_ in classes.values():
        parent = class_.__mro__[1]
        if parent in classes.values() and parent is not errors.HoldfastError:
            assert class_.exit_code // 10 == parent.exit_code // 10, class_


def test_the_page_has_the_table_of_the_code(script, pages):
    assert script["table"]() in pages["docs/errors.md"], "run: make docs"


def test_the_docstring_draws_the_tree_of_the_code(classes):
    """Names, nesting and builtin parents in the drawing are the real ones."""
    parents: list[str] = []
    drawn = set()
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([ |`-]*)(\w+)(?: \((\w+)\))?(  |$)", line)
        if not match or match[2] not in classes:
            continue
        depth = len(match[1]) // 4
        parents[depth:] = [match[2]]
        drawn.add(match[2])
        assert depth == 0 or classes[match[2]].__mro__[1].__name__ == parents[depth - 1], line
        assert match[3] is None or issubclass(classes[match[2]], getattr(builtins, match[3])), line
    assert drawn == set(classes)


def test_every_error_says_its_message_and_nothing_else(classes):
    """KeyError would quote it, OSError would prefix a number."""
    assert {str(class_("went wrong; do this")) for class_ in classes.values()} == {"went wrong; do this"}
