"""Hashes of the user's own modules, recorded when a run begins and compared when it is resumed."""

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
    """The user's own modules that an experiment names as "module:Class", with their imports."""
    found: Sources = {}
    waiting = list(named(experiment))
    seen = set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        waiting.append(name.rpartition(".")[0])  # the package is imported too
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
    """The files that have changed or are missing; if there are none, the new ones."""
    differing = [
        now[name]["file"] if name in now else source["file"]
        for name, source in before.items()
        if (now[name]["sha256"] if name in now else _digest(Path(source["file"]))) != source["sha256"]
    ]
    return differing or [source["file"] for name, source in now.items() if name not in before]


def _digest(file: Path) -> str:
    """SHA-256 of a file, empty if it does not exist."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _named(value: Any) -> Iterator[str]:
    """The modules in an experiment's values."""
    if isinstance(value, str):
        if match := NAMED.fullmatch(value):
            yield match[1]
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _named(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _named(item)


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Names that a module imports anywhere in its code; some are members of modules, not modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # reported when it is imported
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
    """The file of one of the user's own modules, else None. Looking it up executes its package."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "fedgen" or not _is_own_module(top):
        return None
    file = _origin(name)
    return Path(file) if file is not None and is_own(file) and Path(file).is_file() else None


def _is_own_module(top: str) -> bool:
    file = _origin(top)
    return file is not None and is_own(file)


def _origin(name: str) -> str | None:
    """The file of a module, or the first folder of a package without a file."""
    try:
        spec = find_spec(name)
    except Exception:  # unknown module or failing package; reported when it is imported
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return spec.origin if spec.has_location else folders[0] if folders else None
