"""The source of the user's own modules: recorded when a run begins, compared when it goes on."""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from fedgen.config import Experiment
from fedgen.own_code import is_own

Sources = dict[str, dict[str, str]]
"""{module: {"file": its path, "sha256": of its contents}}."""

NAMED = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*")


def sources(experiment: Experiment) -> Sources:
    """Of the modules that an experiment names as "module:Class", and of all that these import, the user's own."""
    found: Sources = {}
    waiting, seen = list(named(experiment)), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])  # a package is imported before what is in it
        file = _file_of(name)
        if file is None:
            continue
        found[name] = {"file": str(file), "sha256": _digest(file)}
        if file.suffix == ".py":
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            waiting += _imports(file.read_bytes(), package)
    return dict(sorted(found.items()))


def named(experiment: Experiment) -> frozenset[str]:
    """The modules that an experiment names as "module:Class"."""
    return frozenset(_named(experiment.model_dump(exclude={"runtime", "tracking"})))


def changed(before: Mapping[str, Any], now: Sources) -> list[str]:
    """The files that are other than they were, or gone; else those that are new."""
    differing = [
        now[name]["file"] if name in now else each["file"]
        for name, each in before.items()
        if (now[name]["sha256"] if name in now else _digest(Path(each["file"]))) != each["sha256"]
    ]
    return differing or [each["file"] for name, each in now.items() if name not in before]


def _digest(file: Path) -> str:
    """Of a file's contents, "" where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _named(value: Any) -> Iterator[str]:
    """The modules in an experiment's values."""
    if isinstance(value, str):
        if match := NAMED.fullmatch(value):
            yield match[1]
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _named(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _named(each)


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Names that a module imports, at any depth of it; some are of things in modules, which no file has."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # who imports it is told
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                origin = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _file_of(name: str) -> Path | None:
    """The file of one of the user's own modules; None for any other name. Finding a module runs its package."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "fedgen" or not _is_own_module(top):
        return None
    file = _origin(name)
    return Path(file) if file is not None and is_own(file) and Path(file).is_file() else None


def _is_own_module(top: str) -> bool:
    file = _origin(top)
    return file is not None and is_own(file)


def _origin(name: str) -> str | None:
    """Where a module comes from: its file, or the first folder of a package without one."""
    try:
        spec = find_spec(name)
    except Exception:  # no module of that name, or a package that fails: the import itself will say so
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return spec.origin if spec.has_location else folders[0] if folders else None
