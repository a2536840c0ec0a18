"""What may not appear in the package's source, and who may do what."""

from __future__ import annotations

import ast
import io
import re
import tokenize

import pytest

FORBIDDEN = {
    "pickle": r"^\s*(import|from)\s+(pickle|cloudpickle|dill|marshal|shelve)\b|\bpickle\.\w+\(",
    "unsafe torch.load": r"weights_only\s*=\s*False",
    "unfinished work": r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError",
    "suppressed errors": r"suppress\((Base)?Exception\)",
    "shells": r"shell\s*=\s*True|os\.system\(",
    "evaluated text": r"(?<![\w.])(eval|exec)\(",
}


def _lines(modules):
    return [(f"{m.label}:{n}", line) for m in modules for n, line in enumerate(m.text.splitlines(), 1)]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_never_in_the_source(modules, what):
    found = [f"{place}: {line.strip()}" for place, line in _lines(modules) if re.search(FORBIDDEN[what], line)]
    assert not found, f"{what}:\n" + "\n".join(found)


def _swallows(handler: ast.ExceptHandler) -> bool:
    """Whether it catches everything and neither raises, nor logs, nor hands the error on."""
    caught = ast.unparse(handler.type) if handler.type else "BaseException"
    inside = [node for statement in handler.body for node in ast.walk(statement)]
    kept = any(isinstance(node, ast.Raise) for node in inside)
    used = any(isinstance(node, ast.Name) and node.id == (handler.name or "log") for node in inside)
    return caught in ("Exception", "BaseException") and not kept and not used


def test_no_error_is_swallowed(modules):
    handlers = [(m, node) for m in modules for node in ast.walk(m.tree) if isinstance(node, ast.ExceptHandler)]
    assert [f"{m.label}:{node.lineno}" for m, node in handlers if _swallows(node)] == []


@pytest.mark.parametrize(
    ("handler", "swallows"),
    [("except Exception: pass", True), ("except: x = 1", True), ("except BaseException: raise", False)],
)
def test_a_swallowed_error_would_be_found(handler, swallows):
    (statement,) = ast.parse(f"try: f()\n{handler}").body
    assert _swallows(statement.handlers[0]) is swallows


def test_comments_and_docstrings_are_ascii(modules):
    """Strings that are data may be anything; what explains the code must survive every terminal."""
    found = [f"{m.label}:{n}" for m in modules for n, text in _explanations(m.text) if not text.isascii()]
    assert not found, "\n".join(found)


def _explanations(text):
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
            yield token.start[0], token.string


def _calls(module, wanted):
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call | ast.Attribute):
            text = ast.unparse(node.func if isinstance(node, ast.Call) else node)
            if text in wanted:
                yield f"{module.label}:{node.lineno} {text}"


def test_only_the_command_line_prints(modules):
    found = [hit for m in modules if ".cli" not in m.name for hit in _calls(m, {"print", "sys.stdout.write"})]
    assert not found, "\n".join(found)


def test_only_the_launcher_module_and_the_command_line_read_the_environment(modules):
    allowed = {"holdfast.recovery.environment.launcher"}
    wanted = {"os.environ", "os.getenv", "os.environb", "os.path.expanduser", "Path.home"}
    found = [h for m in modules if m.name not in allowed and ".cli" not in m.name for h in _calls(m, wanted)]
    assert not found, "\n".join(found)


def test_the_library_never_configures_logging(modules):
    wanted = {"logging.basicConfig", "logging.disable", "logging.captureWarnings"}
    assert [hit for m in modules if ".cli" not in m.name for hit in _calls(m, wanted)] == []


def test_no_path_of_one_machine_and_no_leftover_marker(root):
    """In nothing that is kept: somebody else's clone has no such folder."""
    pattern = re.compile(r"/w[o]rk/|/tmp/[a-z]|/h[o]me/\w|/r[o]ot/")
    kept = [p for part in ("src", "docs", "examples", "scripts") for p in (root / part).rglob("*") if p.is_file()]
    kept = [p for p in kept if p.suffix in (".py", ".md", ".txt", ".toml")]
    found = [f"{p}:{n}" for p in kept for n, line in enumerate(p.read_text().splitlines(), 1) if pattern.search(line)]
    assert not found, "\n".join(found)
