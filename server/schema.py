"""What the registry and the configuration know, as people and editors read it: a listing, a table, a JSON Schema."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fedgen import registry
from fedgen.config import Experiment
from fedgen.errors import SettingError, suggest


def listing(kind: str | None = None) -> str:
    """One line a registered part: its name, its parameters with defaults, its summary.

    Raises SettingError for an unknown kind.
    """
    if kind is not None and kind not in registry.HOMES:
        raise SettingError(f"kind {kind!r} is not known: {suggest(kind, registry.HOMES)}")
    kinds = {each: registry.members(each) for each in ([kind] if kind else registry.HOMES)}
    return "\n\n".join("\n".join([each, *_lines(members)]) for each, members in kinds.items() if members)


def _lines(members: Any) -> list[str]:
    width = max(map(len, members)) + 2
    lines = []
    for name, member in members.items():
        fields = registry.parameters(member).model_fields
        settings = ", ".join(f"{key} = {field.default!r}" for key, field in fields.items())
        lines.append(f"  {name:<{width}}{registry.summary(member)}" + (f" [{settings}]" if settings else ""))
    return lines


def experiment_schema() -> dict[str, Any]:
    """JSON Schema of the experiment file; every choice lists the registered names and their parameters."""
    schema = Experiment.model_json_schema()
    _expand(schema)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _expand(node: Any) -> None:
    if isinstance(node, dict):
        kind = node.pop("x-fedgen-kind", None)
        if kind is not None:
            node.update(_choices(kind))
        for value in list(node.values()):
            _expand(value)
    elif isinstance(node, list):
        for value in node:
            _expand(value)


def _choices(kind: str) -> dict[str, Any]:
    tables = []
    for name, member in registry.members(kind).items():
        parameters = registry.parameters(member).model_json_schema()
        properties = {"name": {"const": name}, **parameters.get("properties", {})}
        if kind == "model":
            properties |= {"loss": {"type": "string"}, "metrics": {"type": "array", "items": {"type": "string"}}}
        tables.append(
            {
                "title": name,
                "description": registry.summary(member),
                "type": "object",
                "properties": properties,
                "required": [] if kind == "model" else ["name"],
                "additionalProperties": False,
            }
        )
    own = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
    names = {"anyOf": [{"enum": list(registry.members(kind))}, {"type": "string", "pattern": ":"}]}
    return {"anyOf": [*tables, own] if kind == "model" else [names, *tables, own]}


def key_table() -> str:
    """Markdown: every key of the experiment file with its default and meaning, then every choice's parameters."""
    parts = []
    experiment = Experiment()
    for name in Experiment.model_fields:
        section: BaseModel = getattr(experiment, name)
        dumped = section.model_dump(mode="json")
        rows = [
            (key, dumped[key], field.description or "")
            for key, field in type(section).model_fields.items()
            if key in dumped and field.description
        ]
        if rows:
            parts.append(f"### [{name}]\n\n{(type(section).__doc__ or '').partition(chr(10))[0]}\n\n{_table(rows)}")
    for kind in registry.HOMES:
        members = registry.members(kind)
        if members:
            parts.append(f"### {kind}\n\n" + _member_table(members))
    return "\n\n".join(parts) + "\n"


def _table(rows: list[tuple[str, Any, str]]) -> str:
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {_default(value)} | {_cell(meaning)} |" for key, value, meaning in rows]
    return "\n".join(lines)


def _member_table(members: Any) -> str:
    lines = ["| name | parameter | default | meaning |", "| --- | --- | --- | --- |"]
    for name, member in members.items():
        lines.append(f"| `{name}` | | | {_cell(registry.summary(member))} |")
        for key, field in registry.parameters(member).model_fields.items():
            lines.append(f"| | `{key}` | {_default(field.default)} | {_cell(field.description or '')} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return f"`{value['name']}`"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
