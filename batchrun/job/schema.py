"""The job file's JSON Schema, for editors and for `batchrun schema`: pydantic's, with the descriptions of spec.py."""

import re
from typing import Any, get_args

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from batchrun.job.checks import RESERVED
from batchrun.job.spec import OUTPUT_SUFFIXES, SHORT_TYPES, CsvType, Job, Section

_TEXT = {"type": ["string", "number", "boolean", "null"]}
"""Where a text may be written without quotes even if it looks like a number."""

_FROM_FILE = {
    "anyOf": [
        {"type": ["string", "null"]},
        {
            "type": "object",
            "properties": {"file": {"type": "string", "description": "A file with the text."}},
            "required": ["file"],
            "additionalProperties": False,
        },
    ]
}
# The types say only that each key of a part may be absent.
_PARTS: list[dict[str, Any]] = [
    {"required": ["text"], "maxProperties": 1},
    {"required": ["image"], "maxProperties": 1},
    {"required": ["file"], "maxProperties": 1},
    {"required": ["file", "engine"], "maxProperties": 2},
    {"required": ["file", "text"], "maxProperties": 2, "properties": {"text": {"const": "extracted"}}},
]
_CSV_TYPES = [*get_args(CsvType), *SHORT_TYPES]
# Editors check while people type: the pattern of parse_duration, for them.
_DURATION = "^(\\d+d)?(\\d+h)?(\\d+m)?(\\d+(\\.\\d+)?s)?$"

_ADDED: dict[str, dict[str, dict[str, Any]]] = {
    "Job": {
        "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "prompt": {"anyOf": [{"type": "string"}]},
        "output": {"anyOf": [{"type": "string"}]},
    },
    "CsvOptions": {"null_values": {"items": _TEXT}, "columns": {"additionalProperties": {"enum": _CSV_TYPES}}},
    "Prompt": {"system": _FROM_FILE, "user": _FROM_FILE},
    "Model": {
        "params": {"propertyNames": {"not": {"enum": sorted(RESERVED)}}},
        "headers": {"additionalProperties": _TEXT},
        "api_key_env": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
        "fallbacks": {"maxItems": 2},
        "endpoint": {"examples": ["openrouter", "local", "simulator", "http://127.0.0.1:8000/v1"]},
    },
    "BatchOptions": {
        "wait": {"anyOf": [{"type": "string"}, {"const": 0}, {"type": "null"}], "examples": [0, "90s", "2h"]},
    },
    "Limits": {
        "deadline": {"pattern": _DURATION, "examples": ["90s", "2h", "1h30m"]},
        "patience": {"pattern": _DURATION, "examples": ["90s", "15m", "2h"]},
        "max_failed": {"pattern": "^\\d{1,3}(\\.\\d{1,6})?%$", "examples": [100, "5%"]},
    },
    "Output": {
        "path": {"pattern": f"({'|'.join(map(re.escape, OUTPUT_SUFFIXES))}|\\}})$"},
        "details": {"uniqueItems": True},
    },
}
"""What checks.py and tree.py know and the types do not express, by class and field; `anyOf` are short forms."""


class _Numbers(GenerateJsonSchema):
    """Money is written as a number."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> dict[str, Any]:
        """Return the schema of a number with the decimal's bounds."""
        bounds = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
        return {"type": "number"} | {bounds[name]: float(schema[name]) for name in bounds if name in schema}  # type: ignore[literal-required]


def json_schema() -> dict[str, Any]:
    """Return the job file's JSON Schema (draft 2020-12), as a user may write it."""
    # Reading the descriptions from the source takes 50 ms, which a run need not pay.
    Section.__pydantic_config__ |= {"use_attribute_docstrings": True}
    made = TypeAdapter(Job).json_schema(schema_generator=_Numbers)
    definitions = made.pop("$defs")
    made["properties"] = {name: field for name, field in made["properties"].items() if name not in {"file", "text"}}
    for name, shape in {**definitions, "Job": made}.items():
        _finish(shape, _ADDED.get(name, {}), definitions)
    definitions["Part"]["oneOf"] = _PARTS
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A batchrun job",
        "description": "A question for each row of a file.",
    }
    return head | {key: value for key, value in made.items() if key not in head} | {"$defs": definitions}


def _finish(shape: dict[str, Any], added: dict[str, dict[str, Any]], definitions: dict[str, Any]) -> None:
    """Put descriptions first, drop keywords that say nothing new, and add what the types do not express."""
    for name, field in shape["properties"].items():
        # pydantic leaves out a field's description where it is that of the section that it refers to.
        section = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        words = field.pop("description", section.get("description", ""))
        kept = {key: value for key, value in field.items() if _says(key, value)}
        shape["properties"][name] = {"description": " ".join(words.split())} | kept
    for name, extra in added.items():
        field = shape["properties"][name]
        reference = field.get("$ref")
        field |= extra
        if "anyOf" in extra and reference is not None:
            field["anyOf"] = [{"$ref": field.pop("$ref")}, *extra["anyOf"]]


def _says(key: str, value: Any) -> bool:  # noqa: ANN401  (any JSON)
    """Check whether a keyword adds to the name: pydantic's titles and the defaults of whole sections do not."""
    return key != "title" and not (key == "default" and isinstance(value, dict))
