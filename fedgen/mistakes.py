"""Errors of an experiment file in plain words: pydantic's findings with the keys of the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedgen.errors import SettingError, suggest
from fedgen.moved import MOVED


def explain(error: ValidationError, root: type[BaseModel], of: str = "") -> list[str]:
    """One line a mistake: the key, what was expected, what came, and what the key means.

    root: the model whose keys the locations begin with; of: what it holds the parameters of.
    """
    mistakes: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        mistakes.setdefault(_path(detail["loc"], root), []).append(detail)
    below = {path.rpartition(".")[0] for path in mistakes if path.rpartition(".")[2].isdigit()}
    return [
        line
        for path, details in mistakes.items()
        if path not in below  # of a number or a list, the list was meant: its member says what is wrong
        for line in _lines(path, details, root, of)
    ]


def validated(model: type[BaseModel], params: Mapping[str, object], of: str, key: str = "") -> dict[str, object]:
    """The parameters, complete with defaults; key: of the experiment file, where they stand below one.

    Raises SettingError that says what is wrong with those of `of`.
    """
    try:
        return model.model_validate(dict(params)).model_dump()
    except ValidationError as error:
        lines = explain(error, model, of=of)
        raise SettingError("\n".join(f"{key}: {line}" if key else line for line in lines)) from error


def _lines(path: str, details: list[ErrorDetails], root: type[BaseModel], of: str) -> list[str]:
    first = details[0]
    if first["type"] == "conflict":
        return [first["msg"]]
    if first["type"] == "parameters":
        return [f"{path}.{line}" for line in first["ctx"]["lines"]]
    if first["type"] in ("length", "unknown_name"):
        return [f"{path}: {first['msg']}"]
    owner = _owner(first["loc"], root)
    key = path.rpartition(".")[2]
    table = of or path.rpartition(".")[0]
    if first["type"] == "extra_forbidden" and path in MOVED:
        return [f"{path}: has moved to {MOVED[path]}; write it there"]
    if first["type"] == "extra_forbidden":
        return [f"{path}: unknown key{f' of {table}' if table else ''}; {suggest(key, _keys(owner))}"]
    if first["type"] == "missing":
        return [f"{path}: this key{f' of {table}' if table else ''} has no default; give it a value"]
    field = owner.model_fields.get(key)
    meaning = f" ({field.description})" if field and field.description else ""
    expected = " or ".join(dict.fromkeys(map(_expected, details)))
    return [f"{path}: expected {expected}, got {first['input']!r}{meaning}"]


_WORDS = {
    "Input should be ": "",
    "String should have ": "",
    "Value error, ": "",
    "expected ": "",
    "tuple": "list",
}


def _expected(detail: ErrorDetails) -> str:
    """Pydantic's message in the words of the experiment file."""
    message = detail["msg"]
    if detail["type"] == "string_pattern_mismatch":  # experiment.name is the one text with a pattern
        return "text without slashes or control characters"
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return "a table" if "dictionary" in message else message


def _keys(owner: type[BaseModel]) -> list[str]:
    return [key for key in owner.model_fields if key != "params"]


def _walk(location: tuple[int | str, ...], root: type[BaseModel]) -> Iterator[tuple[int | str, type[BaseModel]]]:
    """(part, the model it is a key of) along a location, without the branches of unions that pydantic names in it."""
    owner = root
    below = False
    for part in location:
        field = owner.model_fields.get(str(part))
        if below and not isinstance(part, int):
            continue
        yield part, owner
        inner = field.annotation if field and not below else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            owner = inner
        elif field is not None:
            below = True


def _path(location: tuple[int | str, ...], root: type[BaseModel]) -> str:
    return ".".join(str(part) for part, _ in _walk(location, root))


def _owner(location: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    return [owner for _, owner in _walk(location, root)][-1] if location else root
