"""The second part's tables of docs/doctor.md: harder nets, faults by size, two at once, stories of whole models."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Row = dict[str, Any]
FELT = 0.05  # of the answer's deviation: a story that moves it by less harms nothing
SIDES = (("looked at", False), ("set aside", True))


def tables(data: dict[str, list[Row]]) -> list[str]:
    """Markdown, line by line."""
    return [
        "#### Harder: trained weights, other seeds, batches of 256, small faults, two at once",
        "",
        *_summary(data),
        "",
        *_sizes(data["graded"]),
        "",
        *_stories(data["told"]),
        "",
        *_left(data),
    ]


def named_from(graded: list[Row]) -> dict[str, str]:
    """Rule -> from which size on its fault is named, in the nets where that is hardest and easiest."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, rows in _by_grade(graded).items():
        code, _, unit = name.partition(" ")
        found[code].append(f"{unit} {_range([_smallest(row) for row in rows])}")
    return {code: "; ".join(parts) for code, parts in found.items()}


def _summary(data: dict[str, list[Row]]) -> list[str]:
    lines = ["| | | named, with its layer | and nothing else above a note |", "|---|---:|---:|---:|"]
    for side, aside in SIDES:
        healthy = [row for row in data["more_healthy"] if row["aside"] is aside]
        quiet = sum(row.get("above") == [] for row in healthy)
        lines.append(f"| healthy nets, {side} | {len(healthy)} | | {quiet} |")
    kinds = (("faults, one by one", "more_sick"), ("two faults at once", "two"))
    for title, part in kinds:
        for side, aside in SIDES:
            rows = [row for row in data[part] if row["aside"] is aside]
            named = [row for row in rows if _all_named(row)]
            alone = sum(not row["beside"] for row in named)
            lines.append(f"| {title}, {side} | {len(rows)} | {len(named)} | {alone} |")
    return lines


def _sizes(graded: list[Row]) -> list[str]:
    lines = [
        "From which size on a fault is named: planted from large to small until it is not. The other rules are all or "
        "nothing.",
        "",
        "| rule | size | planted | named from | above a note from | set aside: named from |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in _by_grade(graded).items():
        code, _, unit = name.partition(" ")
        seen, aside = ([row for row in rows if row["aside"] is side] for _, side in SIDES)
        planted = ", ".join(f"{size:g}" for size in _planted(name, rows))
        lines.append(
            f"| [{code}](doctor/{code}.md) | {unit} | {planted} | {_each(seen, _smallest)} | "
            f"{_range([_smallest(row, above=True) for row in rows])} | {_each(aside, _smallest)} |"
        )
    return lines


def _stories(told: list[Row]) -> list[str]:
    lines = [
        "Whole models made sick as users make them. What moves the answer by less than 0.05 of its deviation is no "
        "fault, and should not be named above a note.",
        "",
        "| what happened | networks | moves the answer by | harm something: named | harm nothing: not named |",
        "|---|---:|---|---:|---:|",
    ]
    by_story: dict[str, list[Row]] = defaultdict(list)
    for row in told:
        by_story[row["story"]].append(row)
    for story, rows in by_story.items():
        harmful = [row for row in rows if _harms(row)]
        harmless = [row for row in rows if not _harms(row)]
        moves = sorted(row["change"] for row in rows if row.get("change") is not None)
        span = f"{moves[0]:.2g} to {moves[-1]:.2g}" if moves else ""
        caught = f"{sum(bool(row.get('named')) for row in harmful)} of {len(harmful)}"
        quiet = f"{sum(not row.get('named') for row in harmless)} of {len(harmless)}" if harmless else ""
        lines.append(f"| {story} | {len(rows)} | {span} | {caught} | {quiet} |")
    return lines


def _left(data: dict[str, list[Row]]) -> list[str]:
    lines = []
    for row in data["more_healthy"]:
        if row.get("above") != []:
            lines.append(f"- false alarm: {_where(row)}: {', '.join(row.get('above', [row.get('error', '')]))}")
    for row in (*data["more_sick"], *data["two"]):
        what = row.get("code") or " and ".join(row["codes"])
        if not _all_named(row):
            lines.append(f"- missed: {what} in {_where(row)}{': ' + row['error'] if 'error' in row else ''}")
        elif row["beside"]:
            lines.append(f"- beside {what} in {_where(row)}: {', '.join(row['beside'])}")
    for row in data["told"]:
        if _harms(row) and not row.get("named"):
            lines.append(f"- missed: {row['story']}, {_where(row)}{': ' + row['error'] if 'error' in row else ''}")
        elif row.get("beside"):
            lines.append(f"- beside {row['story']}, {_where(row)}: {', '.join(row['beside'])}")
    for row in data["graded"]:
        lines += [
            f"- beside {row['grade']} {one['size']:g} in {_where(row)}: {', '.join(one['beside'])}"
            for one in row.get("sizes", ())
            if one["beside"]
        ]
    if not lines:
        return ["Beside what the table of sizes shows nothing was missed, and there was no false alarm."]
    return ["Missed, and false alarms:", "", *lines]


def _where(row: Row) -> str:
    return f"{row['net']}{' (set aside)' if row['aside'] else ''}"


def _harms(row: Row) -> bool:
    return row.get("change") is None or row["change"] >= FELT


def _all_named(row: Row) -> bool:
    named = row.get("named", False)
    return all(named) if isinstance(named, list) else bool(named)


def _by_grade(graded: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in graded:
        found[row["grade"]].append(row)
    return found


def _planted(name: str, rows: list[Row]) -> tuple[float, ...]:
    longest = max((row.get("sizes", []) for row in rows), key=len)
    return tuple(one["size"] for one in longest)


def _smallest(row: Row, *, above: bool = False) -> float | None:
    """The smallest size that is named, and is above a note; None where the largest is not."""
    sizes = [one["size"] for one in row.get("sizes", ()) if one["named"] and (not above or one["severity"] != "note")]
    return sizes[-1] if sizes else None


def _range(sizes: list[float | None]) -> str:
    """ "4 to 1.5": where it is hardest, where it is easiest."""
    texts = list(dict.fromkeys("none" if size is None else f"{size:g}" for size in sizes))
    return texts[0] if len(texts) == 1 else " or ".join(texts)


def _each(rows: list[Row], smallest: Any) -> str:
    return "; ".join(f"{'none' if (size := smallest(row)) is None else f'{size:g}'} ({row['net']})" for row in rows)
