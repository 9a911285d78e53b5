"""The table of what was tried in the native core, from docs/data/native_tried.json; constants name its rows.

A comment `tried: ROW` in native/ points to a row; the row's place in docs/design/native.md is `#tried-ROW`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "docs" / "data" / "native_tried.json"
COLUMNS = ("idea", "shape", "machine", "before", "after", "kept")
POINTER = re.compile(r"\btried: ([\w, -]+)")


def load() -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(DATA.read_text(encoding="utf-8"))
    return rows


def pointers() -> dict[str, list[str]]:
    """File of native/ -> the rows that its comments name."""
    files = sorted((ROOT / "native").rglob("*.[hc]*"))
    named = {
        str(path.relative_to(ROOT)): [
            row for found in POINTER.findall(path.read_text(encoding="utf-8")) for row in found.split(", ")
        ]
        for path in files
        if path.suffix in (".h", ".cpp")
    }
    return {name: rows for name, rows in named.items() if rows}


def table() -> str:
    """One table per topic: idea, shape, machine, before, after, kept."""
    lines: list[str] = []
    topic, rows = "", load()
    topics = list(dict.fromkeys(row["topic"] for row in rows))
    for row in sorted(rows, key=lambda row: topics.index(row["topic"])):
        if row["topic"] != topic:
            topic = row["topic"]
            lines += ["", f"### {topic}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        cells = [row[column] or "-" for column in COLUMNS]
        cells[0] = f'<a id="tried-{row["id"]}"></a>`{row["id"]}`: {cells[0]}'
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).lstrip("\n") + "\n"
