"""A table of strings and its renderings: text, rich, markdown, HTML. Whatever a cell holds is shown literally."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_STYLES = {True: "green", False: "yellow"}


class Tabular:
    """What has a table is shown by it: printed, printed by rich, and in a notebook. A table has itself."""

    def table(self) -> Table:
        raise NotImplementedError

    def __str__(self) -> str:
        return self.table().text()

    def __rich__(self) -> RichTable:
        return self.table().rich()

    def _repr_html_(self) -> str:
        return self.table().html()


@dataclass(frozen=True)
class Table(Tabular):
    """rows: as many cells each as there are columns. done: of each row, whether what it is about was done. notes: lines
    below."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    done: tuple[bool, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        return self

    def text(self, width: int | None = None) -> str:
        """One line per row; where these are wider than `width`, one per cell, an empty line after each row."""
        table = [self.columns, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.columns))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        if width is not None and max(map(len, lines)) > width:
            return self._list(width)
        return "\n".join([*lines, *self.notes])

    def _list(self, width: int) -> str:
        from textwrap import fill

        indent = max(map(len, self.columns)) + 2
        rows = [
            "\n".join(
                fill(cell, max(width, indent + 8), initial_indent=column.ljust(indent), subsequent_indent=" " * indent)
                for column, cell in zip(self.columns, row, strict=True)
                if cell
            )
            for row in self.rows
        ]
        return "\n\n".join([*rows, "\n".join(fill(note, max(width, 20)) for note in self.notes)])

    def markdown(self) -> str:
        table = [self.columns, ("---",) * len(self.columns), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)])

    def html(self) -> str:
        head = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        body = "".join(
            f'<tr class="{_STYLES[done]}">' + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row, done in zip(self.rows, self.done, strict=True)
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def rich(self) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(*self.columns, caption=Text("\n".join(self.notes)))  # Text: a layer may be called "[red]"
        for row, done in zip(self.rows, self.done, strict=True):
            table.add_row(*(Text(cell) for cell in row), style=_STYLES[done])
        return table
