"""The tables of docs/doctor.md, from docs/data/doctor_precision.json."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from . import page_more

DATA = Path(__file__).resolve().parents[2] / "docs" / "data" / "doctor_precision.json"
Row = dict[str, Any]


def table() -> str:
    """What was caught, missed, and raised without need: in all, by rule, and net by net."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    healthy, sick = data["healthy"], data["sick"]
    versions = ", ".join(f"{name} {number}" for name, number in data["versions"].items())
    more = [row for part in ("more_healthy", "more_sick", "graded", "two", "told") for row in data[part]]
    seconds = sum(row.get("seconds", 0) for row in (*healthy, *sick, *more))
    commits = sorted({row["commit"] for row in (*healthy, *sick, *more)})
    lines = [
        f"{len(healthy)} healthy nets and {len(sick)} planted faults; {versions}; commit {', '.join(commits)} of "
        f"{data['date']}; {seconds / 60:.0f} minutes of one core.",
        "",
        "| | | nothing above a note | torch-audit: nothing above INFO | nor of its rules about norms |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, aside in (("looked at", False), ("set aside", True)):
        rows = [row for row in healthy if row["aside"] is aside]
        quiet = sum(not _alarmed(row) for row in rows)
        peers = [sum(not row.get(key, ["error"]) for row in rows) for key in ("peer", "peer_norms")]
        lines.append(f"| healthy nets, {name} | {len(rows)} | {quiet} | {peers[0]} | {peers[1]} |")
    lines += ["", "| | | named with its layer | and nothing else | torch-audit names it |", "|---|---:|---:|---:|---:|"]
    for name, aside in (("looked at", False), ("set aside", True)):
        rows = [row for row in sick if row["aside"] is aside]
        named, alone, peer = (sum(map(how, rows)) for how in (_named, _alone, _peer))
        lines.append(f"| planted faults, {name} | {len(rows)} | {named} | {alone} | {peer} |")
    lines += ["", *_by_rule(healthy, sick, page_more.named_from(data["graded"])), "", *_left(healthy, sick), ""]
    return "\n".join([*lines, *page_more.tables(data), "", *_nets(healthy)]) + "\n"


def _by_rule(healthy: list[Row], sick: list[Row], sizes: dict[str, str]) -> list[str]:
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in sick:
        rows[row["code"]].append(row)
    alarms: dict[str, int] = defaultdict(int)
    for row in (*healthy, *sick):
        for code in {key.partition(" ")[0] for key in row.get("above", row.get("beside", ()))}:
            alarms[code] += 1
    lines = [
        "| rule | planted | caught | missed | as | named from | false alarms | torch-audit |",
        "|---|---:|---:|---:|---|---|---:|---|",
    ]
    for code in sorted({*rows, *alarms}):
        own = rows[code]
        caught = sum(map(_named, own))
        peers = sorted({rule for row in own for rule in row.get("peer", ())})
        said = f"{sum(map(_peer, own))}: {', '.join(peers)}" if peers else "0"
        link = f"[{code}](doctor/{code}.md)"
        levels = Counter(row["severity"] for row in own if _named(row))
        how = ", ".join(f"{count} {level}{'s' if count > 1 else ''}" for level, count in levels.most_common())
        size = sizes.get(code, "all or nothing")
        counts = f"{len(own)} | {caught} | {len(own) - caught} | {how} | {size} | {alarms[code]}"
        lines.append(f"| {link} | {counts} | {said} |")
    return lines


def _left(healthy: list[Row], sick: list[Row]) -> list[str]:
    """Each miss and each false alarm, by name."""
    lines = []
    for row in sick:
        where = f"{row['code']} in {row['net']}" + (f", {row['where']}" if row.get("where") else "")
        if not _named(row):
            lines.append(f"- missed: {where}{': ' + row['error'] if 'error' in row else ''}")
        elif row["beside"]:
            lines.append(f"- beside {where}: {', '.join(row['beside'])}")
    lines += [
        f"- false alarm: {row['net']}: {', '.join(row.get('above', [row.get('error', '')]))}"
        for row in healthy
        if _alarmed(row)
    ]
    return ["Missed, and false alarms:", "", *lines] if lines else ["Nothing was missed, and there was no false alarm."]


def _nets(healthy: list[Row]) -> list[str]:
    lines = ["<details><summary>The healthy nets</summary>", "", "| net | how | norms | images | set aside | alarms |"]
    lines.append("|---|---|---:|---:|---|---|")
    for row in healthy:
        nothing = "state alone" if row.get("how") == "shipped" else "no statistics"
        cells = (row["net"], row.get("how", ""), row.get("norms", ""), row.get("images") or nothing)
        lines.append(
            f"| {' | '.join(map(str, cells))} | {'yes' if row['aside'] else ''} | {', '.join(row.get('above', []))} |"
        )
    return [*lines, "", "</details>"]


def _alarmed(row: Row) -> bool:
    return bool(row.get("above", ["error"]))


def _named(row: Row) -> bool:
    return bool(row.get("named"))


def _alone(row: Row) -> bool:
    return _named(row) and not row["beside"]


def _peer(row: Row) -> bool:
    return bool(row.get("peer"))
