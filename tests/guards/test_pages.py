"""Pages tell the truth: names exist, links lead somewhere, the glossary rules, the format page has every field."""

from __future__ import annotations

import importlib
import re

import msgspec
import pytest

from holdfast import boxes, ids, records, trees
from holdfast.errors import InvalidName
from holdfast.ids import ObjectName, TagName
from holdfast.seals import unseal
from holdfast.values import reading, registry, writing


def _without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def _resolves(name: str) -> bool:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError:
            return False
        return True
    return False


def test_every_name_in_the_pages_exists(pages):
    wanted = {
        (page, match[1])
        for page, text in pages.items()
        for match in re.finditer(r"`(holdfast(?:\.[A-Za-z_]\w*)+)[`(\[]", text)
        if not match[1].endswith((".json", ".md"))
    }
    assert wanted
    assert sorted((page, name) for page, name in wanted if not _resolves(name)) == []


def test_a_name_that_is_gone_would_be_found():
    assert _resolves("holdfast.errors.Corrupt")
    assert not _resolves("holdfast.errors.NoSuchError")


def test_every_link_between_pages_leads_to_a_file(pages, root):
    found = [
        f"{page}: {target}"
        for page, text in pages.items()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", _without_code(text))
        if "://" not in target and not (root / page).parent.joinpath(target).exists()
    ]
    assert found == []


def test_every_file_that_a_page_names_exists(pages, root):
    """Paths in backticks that begin with a folder of this repository."""
    pattern = re.compile(r"`((?:src|tests|docs|scripts|examples|benchmarks|changelog\.d)/[\w./-]*)`")
    found = [f"{page}: {m}" for page, text in pages.items() for m in pattern.findall(text) if not (root / m).exists()]
    assert found == []


def _commands_named(text):
    return {match[1] for match in re.finditer(r"['`]holdfast ([a-z]+\b(?: --[a-z-]+)?)(?! \d)", text)}


def _commands_there(root):
    found = set()
    for line in (root / "tests/guards/cli_surface.txt").read_text().splitlines():
        name = line.split()[1]
        found |= {name, *(f"{name} {option}" for option in re.findall(r"--[a-z-]+", line))}
    return found


def test_every_command_that_a_page_or_a_message_names_exists(pages, modules, root):
    """A message says what to do next; a command that is not there is the last thing that helps."""
    texts = pages | {module.label: module.text for module in modules}
    named = {(place, command) for place, text in texts.items() for command in _commands_named(text)}
    assert len(named) > 20
    assert sorted(one for one in named if one[1] not in _commands_there(root)) == []


def test_every_note_of_the_design_has_a_number_of_its_own_and_a_link(pages):
    notes = [page for page in pages if page.startswith("docs/design/") and not page.endswith("README.md")]
    assert len({page.rpartition("/")[2][:4] for page in notes}) == len(notes) >= 2
    assert [page for page in notes if f"]({page.rpartition('/')[2]})" not in pages["docs/design/README.md"]] == []


def _terms(pages):
    return re.findall(r"^\*\*([a-z ]+)\*\*:", pages["docs/glossary.md"], re.MULTILINE)


def test_the_glossary_is_sorted_and_defines_each_term_once(pages):
    terms = _terms(pages)
    assert len(terms) > 30
    assert terms == sorted(set(terms))


def test_every_term_of_the_glossary_is_used(pages, modules):
    text = "\n".join([*(m.text for m in modules), *(t for p, t in pages.items() if p != "docs/glossary.md")]).lower()
    assert [term for term in _terms(pages) if not re.search(rf"(\b|_){term}", text)] == []


STRUCTS = sorted(
    (value for value in vars(records).values() if isinstance(value, type) and issubclass(value, msgspec.Struct)),
    key=lambda struct: struct.__name__,
)


@pytest.mark.parametrize("struct", [s for s in STRUCTS if not s.__name__.startswith("_")], ids=lambda s: s.__name__)
def test_the_format_page_has_every_field_of_every_record(pages, struct):
    section = re.search(rf"^### {struct.__name__}\n(.*?)(?=^##)", pages["docs/format.md"], re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/format.md has no section {struct.__name__}"
    rows = " ".join(line.split("|")[1] for line in section[1].splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) == {field.encode_name for field in msgspec.structs.fields(struct)}


@pytest.mark.parametrize("struct", [trees.TensorSpec, trees.Head, trees.Page], ids=lambda s: s.__name__)
def test_the_format_page_has_the_fields_of_a_manifest_in_their_order(pages, struct):
    table = re.search(rf"^\| {struct.__name__} \|.*?\n\n", pages["docs/format.md"], re.MULTILINE | re.DOTALL)
    assert table is not None
    assert re.findall(r"^\| `(\w+)`", table[0], re.MULTILINE) == [f.name for f in msgspec.structs.fields(struct)]


def test_the_format_page_has_every_tag_of_the_values(pages):
    section = pages["docs/format.md"].partition("## Values")[2].partition("## Manifest")[0]
    listed = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", section, re.MULTILINE))))
    assert listed >= set(reading.READERS) | registry.RESERVED


def test_the_format_page_has_every_tag_that_is_registered_for_torch_and_numpy(pages):
    importlib.import_module("holdfast.state.values_torch")
    tags = {
        tag
        for type_, (tag, _) in writing.EXTRA.items()
        if type_.__module__.split(".")[0] in ("torch", "random", "numpy")
    }
    scalars = {tag for type_, (tag, _) in writing.EXTRA.items() if tag.startswith("numpy.") and hasattr(type_, "dtype")}
    listed = set(
        re.findall(r"`([a-z]+\.\w+)`", pages["docs/format.md"].partition("## Values")[2].partition("## Manifest")[0])
    )
    assert len(tags) > 20
    assert sorted(tags - scalars - listed) == []


def test_the_format_page_has_every_dtype_with_its_size(pages):
    table = re.search(r"^\| dtype \|.*?\n\n", pages["docs/format.md"], re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = re.findall(r"^\| (`.*`) \| (\d+) \|$", table[0], re.MULTILINE)
    assert {name: int(size) for names, size in rows for name in re.findall(r"`(\w+)`", names)} == trees._ITEM_BYTES


def test_the_format_page_says_what_lies_in_the_data_of_every_kind_of_mark(pages):
    table = re.search(r"^\| kind \| in `data` \|.*?\n\n", pages["docs/format.md"], re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = re.findall(r"^\| ([a-z, ]+) \|", table[0], re.MULTILINE)[1:]
    listed = [kind for row in rows for kind in row.split(", ")]
    assert sorted(listed) == sorted(map(str, records.MarkKind))


def test_the_names_that_the_format_page_calls_reserved_are(pages):
    rule = re.search(r"None of these, in any letter case: (.*?)\. ", " ".join(pages["docs/format.md"].split()))
    assert rule is not None
    words = set(re.findall(r"`([a-z]+)`", rule[1])) - {"run"}
    assert words == set(re.findall(r"[a-z]{4,}", ids._RESERVED.pattern))
    for word in [*words, "run-3", "RUN3", "0123456789abcdef"]:
        with pytest.raises(InvalidName):
            TagName(word)


def test_the_record_on_the_format_page_is_sealed(pages):
    found = re.search(r"```json\n(.*?)```", pages["docs/format.md"], re.DOTALL)
    assert found is not None
    name = re.search(r'"object": "(.*?)"', found[1])
    assert name is not None
    record = unseal(ObjectName(name[1]), found[1].encode(), records.Record)
    assert record.name == name[1]
    assert all(f"  {pack}\n" in pages["docs/format.md"] for pack in record.packs)


def test_the_format_page_draws_a_pack_as_the_code_does(pages):
    """The drawing is one text in two places; here is what keeps it one."""
    from holdfast.packs import format as packs_format

    drawing = [line for line in (packs_format.__doc__ or "").splitlines() if line.startswith("    ")]
    assert len(drawing) > 15
    assert "\n".join(drawing) in pages["docs/format.md"]


def test_the_format_page_states_the_numbers_of_the_code(pages):
    page = pages["docs/format.md"]
    assert f"({boxes.SEGMENT_BYTES} bytes)" in page
    assert f"more than {trees.INLINE_BYTES} bytes" in page
    assert f"at most {trees.PAGE_SEGMENTS} a page" in page
