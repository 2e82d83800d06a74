"""Style that ruff does not check: assignments that pack unlike values into one line, and subjects of commits."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("fedgen", "clients", "server")
    for path in (ROOT / folder).rglob("*.py")
    if not path.relative_to(ROOT).as_posix().startswith(("fedgen/clients/", "fedgen/server/"))
)


def kind(value: ast.expr) -> tuple[str, ...]:
    """Values of one kind may share a line: numbers, names, fields of one object, calls of one function, ..."""
    match value:
        case ast.Attribute(value=owner):
            return "attribute", ast.dump(owner)
        case ast.Call(func=function):
            return "call", ast.dump(function)
        case _:
            return (type(value).__name__,)


def names(node: ast.AST) -> set[str]:
    """The variables and attributes in an expression."""
    variables = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return variables | {ast.unparse(part) for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def in_order(targets: Sequence[ast.expr], values: Sequence[ast.expr]) -> bool:
    """Whether one assignment after another gives the same result: no value reads a target that is set before it."""
    assigned: set[str] = set()
    for target, value in zip(targets, values, strict=True):
        if names(value) & assigned:
            return False
        assigned |= {target.id} if isinstance(target, ast.Name) else names(target) - {"self"}
    return True


def packed(source: str) -> Iterator[int]:
    """Lines of assignments that pack unlike values, unless no order of single ones does the same, as in a swap."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                pairs = list(zip(targets, values, strict=False))
                starred = any(isinstance(part, ast.Starred) for part in (*targets, *values))
                if starred or len(targets) != len(values) or len({kind(value) for value in values}) == 1:
                    continue
                if any(in_order(*zip(*order, strict=True)) for order in permutations(pairs)):
                    yield node.lineno


@pytest.mark.parametrize("path", FILES)
def test_no_assignment_packs_unlike_values(path: str) -> None:
    found = list(packed((ROOT / path).read_text("utf-8")))
    assert not found, f"{path}, lines {found}: give each value a line"


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("size, names = len(rows), []", False),
        ("self.f, self.rule = f, Rule()", False),
        ("best, count = max(rows), count + 1", False),
        ("first, last = last, first + 1", True),
        ("self.a, self.b = self.b, self.a + 1", True),
        ("low, high = 0, 1", True),
        ("x, y = point.x, point.y", True),
        ("x, y = box.x, other.y", False),
        ("n, d = rows.shape", True),
        ("first, *rest = rows", True),
    ],
)
def test_the_rule_for_packed_assignments(line: str, allowed: bool) -> None:
    assert list(packed(f"def f():\n    {line}")) == ([] if allowed else [2])


def test_files_are_found() -> None:
    assert {"fedgen/config.py", "clients/cohort.py", "server/rounds/star.py"} <= set(FILES)


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / ".ci" / "subjects.py")
    return subprocess.run([sys.executable, script, str(folder)], capture_output=True, text=True, check=False)


def commit(folder: Path, subject: str, body: str = "") -> None:
    git(folder, "commit", "--allow-empty", "-m", f"{subject}\n\n{body}")


@pytest.fixture
def cloned(tmp_path: Path) -> Path:
    """A clone whose origin has one commit with a long subject."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    git(origin, "init", "-b", "main")
    commit(origin, "an old subject " + "x" * 80)
    git(tmp_path, "clone", str(origin), str(clone))
    return clone


def test_subjects_of_new_commits_are_short(cloned: Path) -> None:
    commit(cloned, "x" * 71, "a body may have longer lines: " + "x" * 90)
    assert (linted(cloned).returncode, linted(cloned).stdout) == (0, "")


def test_a_long_subject_of_a_new_commit_is_named(cloned: Path) -> None:
    commit(cloned, "y" * 72)
    commit(cloned, "short")
    found = linted(cloned)
    assert found.returncode == 1
    assert f"a subject has under 72 characters, this one 72: {'y' * 72}" in found.stdout
    assert "short" not in found.stdout


def test_commits_from_before_the_lint_are_not_judged(cloned: Path) -> None:
    commit(cloned, "before " + "x" * 80)
    (cloned / ".ci").mkdir()
    (cloned / ".ci" / "subjects.py").write_text("")
    git(cloned, "add", ".ci")
    git(cloned, "commit", "-m", "The lint begins")
    assert linted(cloned).returncode == 0
    commit(cloned, "after " + "x" * 80)
    assert "after" in linted(cloned).stdout


def test_nothing_is_linted_without_git_or_origin(tmp_path: Path) -> None:
    assert (linted(tmp_path).returncode, linted(tmp_path / "missing").returncode) == (0, 0)
    git(tmp_path, "init", "-b", "main")
    commit(tmp_path, "z" * 100)
    found = linted(tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
