"""What surgery did to a model, layer by layer, kept on the model itself: `nk.changes(model)`.

Rules: data first (frozen dataclasses with a JSON round trip), rendering last and pure. An operation adds its entries
after those of earlier operations. They travel with `copy.deepcopy` and `torch.save`; a state_dict does not hold them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import nn

from ..model.table import Table, Tabular

_ATTRIBUTE = "_normkit_changes"
_COLUMNS = ("operation", "layer", "action", "before", "after", "reason")


@dataclass(frozen=True)
class Change:
    """One layer in one operation: `before` and `after` are class names, `reason` says why it was kept or what was
    done."""

    operation: str
    name: str
    action: Literal["replaced", "kept"]
    before: str
    after: str
    reason: str = ""


@dataclass(frozen=True)
class OutputError:
    """Largest absolute difference of one output before and after, and the limit that it was held to."""

    operation: str
    output: str
    largest: float
    limit: float


@dataclass(frozen=True)
class Changes(Tabular):
    """All entries in order. `replaced` and `kept` filter; `errors` is what verify=True measured, one entry an
    output."""

    entries: tuple[Change, ...] = ()
    errors: tuple[OutputError, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str | int) -> Change:
        """By position, or the latest entry of a layer by its qualified name."""
        if isinstance(name, int):
            return self.entries[name]
        for entry in reversed(self.entries):
            if entry.name == name:
                return entry
        raise KeyError(name)

    @property
    def replaced(self) -> tuple[Change, ...]:
        return tuple(entry for entry in self.entries if entry.action == "replaced")

    @property
    def kept(self) -> tuple[Change, ...]:
        return tuple(entry for entry in self.entries if entry.action == "kept")

    def of(self, operation: str) -> Changes:
        """The part that one operation ("convert", "freeze", "unfreeze", "fold", "accelerate") did."""
        return Changes(
            tuple(entry for entry in self.entries if entry.operation == operation),
            tuple(error for error in self.errors if error.operation == operation),
        )

    def to_json(self) -> str:
        return json.dumps({"entries": [asdict(e) for e in self.entries], "errors": [asdict(e) for e in self.errors]})

    @classmethod
    def from_json(cls, text: str) -> Changes:
        """The inverse of `to_json`."""
        data: dict[str, list[dict[str, Any]]] = json.loads(text)
        return cls(tuple(Change(**e) for e in data["entries"]), tuple(OutputError(**e) for e in data["errors"]))

    def summary(self) -> str:
        return f"{len(self.replaced)} replaced, {len(self.kept)} kept"

    def table(self) -> Table:
        """One row an entry."""
        done = tuple(entry.action == "replaced" for entry in self.entries)
        return Table(_COLUMNS, tuple(map(_row, self.entries)), done, (self.summary(), *map(_error_line, self.errors)))


def changes(model: nn.Module) -> Changes:
    """What normkit's surgery did to `model`: every layer by qualified name, replaced or kept, and why.

    Empty for a model that no operation has touched. Train or eval mode, gradients: not concerned.
    """
    found = model.__dict__.get(_ATTRIBUTE, Changes())
    return found if isinstance(found, Changes) else Changes()


def record(model: nn.Module, entries: list[Change], errors: tuple[OutputError, ...] = ()) -> None:
    """Add the entries of one operation to the model."""
    before = changes(model)
    after = replace(before, entries=before.entries + tuple(entries), errors=before.errors + errors)
    model.__dict__[_ATTRIBUTE] = after  # past nn.Module.__setattr__: the history is no part of the model's state


def _row(entry: Change) -> tuple[str, ...]:
    name = entry.name or "(the model itself)"
    return (entry.operation, name, entry.action, entry.before, entry.after, entry.reason)


def _error_line(error: OutputError) -> str:
    return f"{error.operation}: {error.output} differs by at most {error.largest:.3g} (limit {error.limit:.3g})"
