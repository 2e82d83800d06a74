"""A table of the experiment file, and the choice of a registered part within one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from fedgen import registry
from fedgen.errors import SettingError
from fedgen.mistakes import explain


class Section(BaseModel):
    """One table of the experiment file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Choice(Section):
    """A registered part by name, with its parameters: `"iid"` or `{ name = "dirichlet", alpha = 0.1 }`."""

    name: str
    params: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, Choice):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping):
            raise PydanticCustomError("choice", "expected a name or a table with a name")
        own = set(cls.model_fields) - {"params"}
        params = {key: item for key, item in value.items() if key not in own}
        return {**{key: item for key, item in value.items() if key in own}, "params": params}

    @model_serializer
    def _scatter(self) -> dict[str, Any]:
        own = {key: getattr(self, key) for key in type(self).model_fields if key != "params"}
        return {"name": own.pop("name"), **self.params, **own}


@dataclass(frozen=True)
class Kind:
    """Marks a Choice with what it chooses among, so that its name and parameters are checked with the file."""

    kind: str
    default: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        named = core_schema.no_info_before_validator_function(self.named, handler(source))
        return core_schema.no_info_after_validator_function(self.complete, named)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"x-fedgen-kind": self.kind, "x-fedgen-default": self.default}

    def named(self, value: Any) -> Any:
        """A table without a name sets parameters of the default choice."""
        if self.default is not None and isinstance(value, Mapping) and "name" not in value:
            return {"name": self.default, **value}
        return value

    def complete(self, choice: Choice) -> Choice:
        """The choice with every parameter written out.

        Raises ValidationError with the parameters' own locations.
        """
        try:
            member = registry.find(self.kind, choice.name)
        except SettingError as error:
            raise PydanticCustomError("unknown_name", "{why}", {"why": str(error)}) from error
        model = registry.parameters(member)
        try:
            checked = model.model_validate(choice.params)
        except ValidationError as error:
            lines = explain(error, model, of=choice.name)
            raise PydanticCustomError("parameters", "{lines}", {"lines": lines}) from error
        return choice.model_copy(update={"params": checked.model_dump()})
