"""Names -> parts. One decorator; command line, configuration, docs and conformance suite read what it collects."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from fedgen import conformity
from fedgen.errors import SettingError, suggest
from fedgen.own_code import explained

Maker = Callable[..., Any]
"""A registered class, or a function that is a part."""

T = TypeVar("T", bound=Maker)

HOMES = {
    "dataset": "data",
    "partition": "data",
    "text_encoder": "data",
    "model": "models",
    "encoder": "models",
    "loss": "evaluation",
    "metric": "evaluation",
    "method": "methods",
    "wrapper": "methods",
    "optimizer": "training",
    "schedule": "training",
    "server_optimizer": "training",
    "engine": "training",
    "rule": "aggregation",
    "rule_wrapper": "aggregation",
    "attack": "attacks",
    "topology": "topology",
    "observer": "tracking",
}
"""kind -> the sub-package whose modules register its members."""

FUNCTIONS = {"loss": "", "metric": "", "rule": "fedgen.aggregation.function:FunctionRule"}
"""Kinds whose members may be plain functions -> the class that makes a part of one, where it is none itself."""

INJECTED = ("facts", "learner", "inner", "targets")
"""Fields that `build` supplies; every other field of a registered dataclass is a parameter of the experiment file."""

SUPPLIED = ("facts", "learner")
"""Arguments that `build` supplies to classes that are no dataclasses."""

_MEMBERS: dict[str, dict[str, Maker]] = {kind: {} for kind in HOMES}
_SEARCHED: list[str] = []


def register(kind: str, name: str) -> Callable[[T], T]:
    """Make a frozen dataclass of parameters (or a plain function) available under `kind` and `name`."""

    def add(member: T) -> T:
        if name in _MEMBERS[kind]:
            raise ValueError(f"{kind} {name!r} is registered twice: {_MEMBERS[kind][name]} and {member}")
        _MEMBERS[kind][name] = member
        return member

    return add


@cache
def _load(home: str) -> None:
    package = import_module(f"fedgen.{home}")
    for module in walk_packages(package.__path__, f"{package.__name__}."):
        import_module(module.name)


def members(kind: str) -> Mapping[str, Maker]:
    """Every registered member of a kind, by name in alphabetical order."""
    _load(HOMES[kind])
    return dict(sorted(_MEMBERS[kind].items()))


def find(kind: str, name: str) -> Maker:
    """The member of that name, or the class behind a user's own "module:Class".

    Raises SettingError for an unknown name, a module that does not import, a class that is not in it.
    """
    if ":" in name:
        return _imported(kind, name)
    known = members(kind)
    if name not in known:
        module, dot, last = name.rpartition(".")
        near = f"did you mean '{module}:{last}'?" if dot else suggest(name, known)
        raise SettingError(f"{kind} {name!r} is not known: {near}; your own is written 'module:Class'")
    return known[name]


def search_in(folders: Iterable[str]) -> None:
    """Look for a user's own modules in these folders too, after everything that is installed."""
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
        if folder not in _SEARCHED:
            _SEARCHED.append(folder)


def _searched() -> str:
    """The folders of the user's own among those that are searched; from Python that is the script's."""
    here = [str(Path.cwd())] if {"", str(Path.cwd())} & set(sys.path) else []
    folders = dict.fromkeys([*_SEARCHED, *here])
    return f": {' or '.join(folders)}" if folders else ", or of the script"


def _imported(kind: str, path: str) -> Maker:
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise SettingError(f"{kind} {path!r}: your own is written 'module:Class', such as 'my_parts:MyClass'")
    try:
        module = import_module(module_name)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]
        raise SettingError(
            f"{kind} {path!r} cannot be imported ({explained(error)}); "
            + (f"put it into the folder of the experiment file{_searched()}" if absent else "mend the module")
        ) from error
    found = getattr(module, attribute, None)
    if found is None:
        raise SettingError(f"{kind} {path!r}: module {module_name!r} has no {attribute!r}{_imported_from(module)}")
    if not (inspect.isclass(found) or (kind in FUNCTIONS and callable(found))):
        raise SettingError(f"{kind} {path!r} is no class{' or function' if kind in FUNCTIONS else ''}: it is {found!r}")
    made: Maker = found
    return made


def _imported_from(module: ModuleType) -> str:
    """The file that was imported, and a file of the same name among the user's own that it hides."""
    file = getattr(module, "__file__", None)
    name = module.__name__.partition(".")[0]
    own = [Path(folder, f"{name}.py") for folder in [*_SEARCHED, str(Path.cwd())]]
    hidden = next((path for path in own if path.is_file() and (file is None or not path.samefile(file))), None)
    told = f"; it was imported from {file or 'Python itself'}"
    return f"{told}, which hides your own {hidden}: give yours another name" if hidden else told


@cache
def parameters(member: Maker) -> type[BaseModel]:
    """The pydantic model of a member's parameters: types, ranges, descriptions and defaults from its fields."""
    fields: dict[str, Any] = {}
    if dataclasses.is_dataclass(member):
        hints = get_type_hints(member, include_extras=True)
        for each in dataclasses.fields(member):
            if each.name not in INJECTED and each.init:
                fields[each.name] = (hints[each.name], _default(each))
    elif inspect.isclass(member):
        for each_name, argument in inspect.signature(member).parameters.items():
            if argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY) and each_name not in SUPPLIED:
                default = ... if argument.default is argument.empty else argument.default
                fields[each_name] = (Any, default)
    config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
    return create_model(getattr(member, "__name__", "Parameters"), __config__=config, **fields)


def _default(each: dataclasses.Field[object]) -> object:
    if each.default is not dataclasses.MISSING:
        return each.default
    return ... if each.default_factory is dataclasses.MISSING else each.default_factory()


def build(kind: str, name: str, params: Mapping[str, object], **injected: object) -> Any:
    """The member with its parameters; of `injected` it gets what its fields, or arguments, ask for by name.

    Raises SettingError where it cannot be made, or lacks what its kind promises.
    """
    member = find(kind, name)
    if not inspect.isclass(member):
        return of_function(kind, member)
    wanted = _wanted(member)
    try:
        part = member(**params, **{key: value for key, value in injected.items() if key in wanted})
    except SettingError:
        raise
    except Exception as error:
        if ":" not in name:
            raise
        raise SettingError(f"{kind} {name!r} cannot be made with {dict(params)} ({explained(error)})") from error
    return conformity.conforming(kind, name, part)


def _wanted(member: type) -> set[str]:
    """What `build` may supply of what a class is made from."""
    if dataclasses.is_dataclass(member):
        return {each.name for each in dataclasses.fields(member) if each.init}
    return set(SUPPLIED) & inspect.signature(member).parameters.keys()


def of_function(kind: str, function: Maker) -> Any:
    """A function of a user as a part of that kind."""
    module, _, name = FUNCTIONS[kind].partition(":")
    return getattr(import_module(module), name)(function) if module else function


def summary(member: Maker) -> str:
    """The first line of its docstring."""
    return (inspect.getdoc(member) or "").partition("\n")[0]
