"""The part of JSON Schema that our schemas use, checked by the standard library alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip
_KNOWN = {
    "description", "type", "required", "additionalProperties", "properties", "enum", "pattern", "items", "minimum",
    "minLength", "uniqueItems",
}  # fmt: skip


def violations(value: Any, schema: Mapping[str, Any], place: str = "$") -> Iterator[str]:
    """What of the schema the value breaks, and where. A keyword that is not known here is an error of the schema."""
    assert set(schema) <= _KNOWN, set(schema) - _KNOWN
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{place}: {value!r} is no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{place}: {value!r} does not match {schema['pattern']}"
    if "minimum" in schema and value < schema["minimum"]:
        yield f"{place}: {value} is below {schema['minimum']}"
    if len(value) < schema["minLength"] if "minLength" in schema else False:
        yield f"{place}: {value!r} is too short"
    if isinstance(value, dict):
        yield from _object(value, schema, place)
    if isinstance(value, list):
        texts = [json.dumps(item, sort_keys=True) for item in value]
        if schema.get("uniqueItems") and len(set(texts)) < len(texts):
            yield f"{place}: an item stands twice"
        for i, item in enumerate(value):
            yield from violations(item, schema.get("items", {}), f"{place}[{i}]")


def _object(value: dict[str, Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
    known = schema.get("properties", {})
    yield from (f"{place}: {name} is missing" for name in schema.get("required", ()) if name not in value)
    if schema.get("additionalProperties", True) is False:
        yield from (f"{place}: {name} is not known" for name in value if name not in known)
    for name, inner in value.items():
        yield from violations(inner, known.get(name, {}), f"{place}.{name}")
