"""Documents registry and configuration: a listing, a table of keys, a JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fedgen import registry
from fedgen.config import Experiment
from fedgen.errors import SettingError, suggest
from fedgen.registry import Maker

Schema = dict[str, Any]


def listing(kind: str | None = None) -> str:
    """One line per registered part: name, summary, parameters with defaults.

    Raises SettingError for an unknown kind.
    """
    if kind is not None and kind not in registry.HOMES:
        raise SettingError(f"kind {kind!r} is not known: {suggest(kind, registry.HOMES)}")
    kinds = {home: registry.members(home) for home in ([kind] if kind else registry.HOMES)}
    return "\n\n".join("\n".join([home, *_lines(members)]) for home, members in kinds.items() if members)


def _lines(members: Mapping[str, Maker]) -> list[str]:
    width = max(map(len, members)) + 2
    lines = []
    for name, member in members.items():
        fields = registry.parameters(member).model_fields
        settings = ", ".join(f"{key} = {field.default!r}" for key, field in fields.items())
        lines.append(f"  {name:<{width}}{registry.summary(member)}" + (f" [{settings}]" if settings else ""))
    return lines


def experiment_schema() -> Schema:
    """JSON Schema of the experiment file, with the registered names and their parameters."""
    schema = Experiment.model_json_schema()
    _expand(schema)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _expand(node: object) -> None:
    if isinstance(node, dict):
        kind = node.pop("x-fedgen-kind", None)
        if kind is not None:
            node.update(_choices(kind, node.pop("x-fedgen-default", None)))
        for value in list(node.values()):
            _expand(value)
    elif isinstance(node, list):
        for value in node:
            _expand(value)


def _choices(kind: str, default: str | None) -> Schema:
    tables = []
    for name, member in registry.members(kind).items():
        parameters = registry.parameters(member).model_json_schema()
        properties = {"name": {"const": name}, **parameters.get("properties", {})}
        if kind == "model":
            properties |= {"loss": {"type": "string"}, "metrics": {"type": "array", "items": {"type": "string"}}}
            properties["init"] = {"enum": ["module", "xavier"]}
        tables.append(
            {
                "title": name,
                "description": registry.summary(member),
                "type": "object",
                "properties": properties,
                "required": [] if kind == "model" or name == default else ["name"],
                "additionalProperties": False,
            }
        )
    own = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
    import_path = {"type": "string", "pattern": ":"}
    known = list(registry.members(kind))
    names = {"anyOf": [{"enum": known}, import_path]} if known else import_path
    return {"anyOf": [*tables, own] if kind == "model" else [names, *tables, own]}


def key_table() -> str:
    """Markdown tables of all keys of the experiment file and all parameters of registered parts."""
    parts = []
    experiment = Experiment()
    for name in Experiment.model_fields:
        section: BaseModel = getattr(experiment, name)
        dumped = section.model_dump()
        values = _values(type(section))
        lines = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{key}` | {values[key]} | {_default(dumped[key])} | {_cell(field.description)} |"
            for key, field in type(section).model_fields.items()
            if key in dumped and field.description
        ]
        heading = (type(section).__doc__ or "").partition("\n")[0]
        parts.append(f"### [{name}]\n\n{heading}\n\n" + "\n".join(lines))
    kinds = {kind: registry.members(kind) for kind in registry.HOMES}
    parts += [f"### {kind}\n\n{_member_table(members)}" for kind, members in kinds.items() if members]
    return "\n\n".join(parts) + "\n"


def _member_table(members: Mapping[str, Maker]) -> str:
    lines = ["| name | parameter | values | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, member in members.items():
        model = registry.parameters(member)
        values = _values(model)
        lines.append(f"| `{name}` | | | | {_cell(registry.summary(member))} |")
        for key, field in model.model_fields.items():
            row = (f"`{key}`", values[key], _default(field.default), _cell(field.description or ""))
            lines.append(f"| | {' | '.join(row)} |")
    return "\n".join(lines)


def _values(model: type[BaseModel]) -> dict[str, str]:
    """{key: allowed values in words}."""
    schema = model.model_json_schema()
    return {key: _cell(_words(node, schema)) for key, node in schema["properties"].items() if key != "params"}


_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "multiple of {}",
}
_TYPES = {"string": "text", "boolean": "true or false", "array": "list", "null": "none", "object": "table"}


def _words(node: Schema, schema: Schema) -> str:
    if "x-fedgen-kind" in node:
        kind = node["x-fedgen-kind"].replace("_", " ")
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if "anyOf" in node:
        parts = [_words(choice, schema) for choice in node["anyOf"]]
        return " or ".join(part for part in parts if part != "none")
    if "$ref" in node:
        return _words(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    values = [node["const"]] if "const" in node else node.get("enum")
    if values:
        return " or ".join(f"`{_toml(value)}`" for value in values)
    kind = node.get("type", "")
    bounds = ", ".join(words.format(node[key]) for key, words in _BOUNDS.items() if key in node)
    number = {"integer": "whole number", "number": "number"}.get(kind) or _TYPES.get(kind, "any")
    items = f" of {_words(node['items'], schema)}" if kind == "array" and "items" in node else ""
    return f"{number}{items} {bounds}".strip()


def _default(value: object) -> str:
    if value is None:
        return "none"
    return f"`{_toml(value['name'] if isinstance(value, dict) and 'name' in value else value)}`"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return f"{value:g}" if 1e-4 <= abs(value) < 1e5 and not value.is_integer() else repr(value)
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
