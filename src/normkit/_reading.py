"""What is read from files that others may have made: plain files of a bounded size, JSON of a bounded depth.

Rules: the size is known before a byte is read; numbers are finite and fit 64 bits; what does not fit is a ValueError
whose text is one line and says what was expected and what came. The caller adds the file's name and what to do.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from io import BufferedReader
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from ._files import LARGEST, kind

T = TypeVar("T")
DEEPEST = 32  # levels of lists and objects: what normkit writes has ten at most
_TOO_DEEP = f"expected at most {DEEPEST} levels of lists and objects, found more"


def open_plain(path: Path, most: int) -> BufferedReader:
    """The file at `path`, open. OSError, or ValueError: no plain file, or one of more than `most` bytes."""
    # without O_NONBLOCK the open itself waits for the other end of a pipe
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"expected a plain file, found {kind(found.st_mode)}")
        if found.st_size > most:
            raise ValueError(f"expected at most {most:,} bytes, found {found.st_size:,}")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path) -> str:
    """The whole file, which must be UTF-8. OSError or ValueError."""
    with open_plain(path, LARGEST) as file:
        return file.read(LARGEST).decode("utf-8")


def parse(text: str) -> Any:
    """JSON to values. ValueError also for what normkit never writes: depth, NaN, infinities, integers without end."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    levels: list[Iterator[Any]] = [iter((document,))]
    while levels:
        for value in levels[-1]:
            if isinstance(value, dict | list):
                if len(levels) > DEEPEST:
                    raise ValueError(_TOO_DEEP)
                levels.append(chain(value, value.values()) if isinstance(value, dict) else iter(value))
                break
            _verify_scalar(value)
        else:
            levels.pop()
    return document


def _verify_scalar(value: str | float | None) -> None:
    if isinstance(value, str):
        value.encode("utf-8")  # half of a surrogate pair can be read from JSON and written nowhere
    elif not (math.isfinite(value) if isinstance(value, float) else abs(value or 0) < 2**63):
        raise ValueError(f"expected finite numbers, integers below 2^63, found {value!r:.40}")


def typed(kind: type[T], value: Any, where: str = "it") -> T:
    """`value`, parsed from JSON, as `kind`. ValueError names the place that is of another type.

    Args:
        kind: a dataclass whose fields are of such kinds; tuple[X, ...]; dict[str, X]; X | None; str, bool, int, float.
    """
    if is_dataclass(kind):
        return cast(T, kind(**_fields(kind, value, where)))
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        return cast(T, None if value is None else typed(inner, value, where))
    if origin is tuple and isinstance(value, list):
        return cast(T, tuple(typed(arguments[0], part, f"{where}[{index}]") for index, part in enumerate(value)))
    if origin is dict and isinstance(value, dict):
        return cast(T, {key: typed(arguments[1], part, f"{where}.{key}") for key, part in value.items()})
    if type(value) is kind or (kind is float and type(value) is int):
        return cast(T, value)
    wanted = {tuple: "a list", dict: "an object"}.get(origin) or kind.__name__  # type: ignore[arg-type]  # None: no key
    raise ValueError(f"expected {where} to be {wanted}, found {value!r:.40}")


def _fields(kind: type, value: Any, where: str) -> dict[str, Any]:
    kinds = get_type_hints(kind)
    needed = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
    if not isinstance(value, dict) or not needed <= set(value) <= set(kinds):
        found = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)
        raise ValueError(f"expected {where} to have {', '.join(sorted(needed))}, found {found:.80}")
    return {name: typed(kinds[name], part, f"{where}.{name}") for name, part in value.items()}
