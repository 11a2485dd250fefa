"""Reads which grammar a request asks for: OpenAI's `response_format`, and what vLLM's clients send."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from smallr.language.serving.errors import BadRequest
from smallr.sampling.requests import Grammar

ANY_OBJECT = '{"type": "object"}'
Schema = str | dict[str, Any]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1000)]


class Fields(BaseModel):
    """Is an object whose nulls are taken as fields that are not there; types are not converted."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_absent(cls, fields: Any) -> Any:
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields


class NamedSchema(Fields):
    """Is the JSON schema of a `response_format`; its name and description have no meaning here."""

    name: str = ""
    description: str = ""
    strict: bool = True  # a schema is always kept to
    of: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Fields):
    """Is OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be there for the type json_schema, and for no other")
        return self

    def grammar(self) -> Grammar | None:
        """Returns the grammar of a completion."""
        if self.type == "text":
            return None
        return Grammar("json", ANY_OBJECT if self.json_schema is None else json.dumps(self.json_schema.of))


class StructuredOutputs(Fields):
    """Is vLLM's `structured_outputs`."""

    json_: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar_: str | None = Field(None, alias="grammar")
    json_object: bool = False

    def grammars(self) -> list[Grammar]:
        """Returns all grammars that are given; there should be one."""
        schema = ANY_OBJECT if self.json_object else self.json_
        return _grammars(schema, self.regex, self.choice, self.grammar_)


class Guided(Fields):
    """Holds the fields of a body that name a grammar; `guided_*` are those of vLLM before `structured_outputs`."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    @property
    def grammar_field(self) -> str | None:
        """Returns the field that the grammar came from."""
        return next((name for name in Guided.model_fields if getattr(self, name) is not None), None)

    def grammar(self) -> Grammar | None:
        """Returns the grammar that completions follow, if there is one.

        Raises:
          BadRequest: more than one is given, or none in `structured_outputs`.
        """
        found = _grammars(self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)
        if self.response_format is not None and (given := self.response_format.grammar()) is not None:
            found.append(given)
        if self.structured_outputs is not None:
            inside = self.structured_outputs.grammars()
            if not inside:
                kinds = "json, json_object, regex, choice, grammar"
                raise BadRequest(f"structured_outputs must have one of: {kinds}", param="structured_outputs")
            found += inside
        if len(found) > 1:
            raise BadRequest(f"{self.grammar_field}: a completion follows one grammar", param=self.grammar_field)
        return found[0] if found else None


def _grammars(schema: Schema | None, regex: str | None, choice: list[str] | None, grammar: str | None) -> list[Grammar]:
    texts = {
        "json": schema if schema is None or isinstance(schema, str) else json.dumps(schema),
        "regex": regex,
        "choice": None if choice is None else json.dumps(choice),
        "grammar": grammar,
    }
    return [Grammar(kind, text) for kind, text in texts.items() if text is not None]
