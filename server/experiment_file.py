"""Reads and writes experiment files, and writes the commented starter file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel
from tomlkit.items import Item

from fedgen import registry
from fedgen.config import Experiment, ModelSection, parse_experiment
from fedgen.errors import SettingError


def load_experiment(path: str | Path, overrides: Mapping[str, object] | None = None) -> Experiment:
    """The experiment of a TOML file; overrides: {dotted key: value}.

    Raises SettingError that names the file, the key, the expected and the given value.
    """
    return parse_experiment(read_text(path), str(path), overrides)


def read_text(path: str | Path) -> str:
    """The text of the file; raises SettingError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"experiment file {path} cannot be read ({error}); `fedgen init` writes a starter"
        ) from error


def dump(experiment: Experiment) -> str:
    """The experiment as TOML, with defaults; keys without a value are left out."""
    document = tomlkit.document()
    for name, keys in experiment.model_dump().items():
        table = tomlkit.table()
        for key, value in keys.items():
            if value is not None:
                table.add(key, _inline(value))
        document.add(name, table)
    return tomlkit.dumps(document)


def starter() -> str:
    """A commented experiment file with every key and its default."""
    experiment = Experiment()
    document = tomlkit.document()
    document.add(
        tomlkit.comment("An experiment of fedgen. Every key has its default here; delete what you do not change.")
    )
    document.add(
        tomlkit.comment("`fedgen list` shows what the named choices can be, `fedgen run FILE` runs this file.")
    )
    for name in Experiment.model_fields:
        section = getattr(experiment, name)
        document.add(tomlkit.nl())
        table = tomlkit.table()
        for line in _lines(section):
            table.add(line[0], line[1]) if isinstance(line, tuple) else table.add(line)
        if len(table.value.body):
            document.add(name, table)
    return tomlkit.dumps(document)


def _lines(section: BaseModel) -> list[Any]:
    """Comments and (key, value) pairs of one section."""
    lines: list[Any] = []
    dumped = section.model_dump()
    fields = {**type(section).model_fields}
    if isinstance(section, ModelSection):
        fields |= registry.parameters(registry.find("model", section.name)).model_fields
    for key, value in dumped.items():
        lines.append(tomlkit.comment(fields[key].description or key))
        lines.append(tomlkit.comment(f"{key} =") if value is None else (key, _inline(value)))
    return lines


def _inline(value: Any) -> Item:
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update({key: _inline(item) for key, item in value.items() if item is not None})
        return table
    if isinstance(value, list | tuple):
        array = tomlkit.array()
        for entry in value:
            array.append(_inline(entry))
        return array
    item: Item = tomlkit.item(value)
    return item
