"""Run the full preset of studies and keep what it leaves: `python -m tools.studies NAME... [--jobs N]`.

Writes docs/data/studies/NAME.json, from which `make docs` makes the page. Runs are stored as they finish, in a folder
of their own per rule (out/studies), so an interrupted study goes on where it was; what is current is left alone.
The working tree's code must be committed: the record names its commit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

from normkit.studies import STUDIES, find
from normkit.studies.conduct import blocks, made_with, prepare
from normkit.studies.record import is_current, make, rule_sha256
from normkit.studies.runner import finished, run_studies

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "data" / "studies"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(STUDIES))
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "studies", metavar="DIR")
    options = parser.parse_args()
    if changed := _git("status", "--porcelain", "--", "src/normkit"):
        print(f"commit the code first, its commit is part of the record:\n{changed}", file=sys.stderr)
        return 2
    for name in options.names:
        _keep(name, options.jobs, options.out)
    return 0


def _keep(name: str, jobs: int, out: Path) -> None:
    study, path = find(name), RECORDS / f"{name}.json"
    if path.exists() and is_current(study, json.loads(path.read_text(encoding="utf-8"))):
        print(f"{name}: its record is current")
        return
    commit = _git("rev-parse", "HEAD")  # before the runs: the tree may move on meanwhile
    store, preset = prepare(False, None, None, out / f"{name}-{rule_sha256(study)[:12]}")
    presets = blocks(preset)
    total = sum(len(study.plan(preset)) for preset in presets)
    done = sum(len(finished(study, preset, store)) for preset in presets)

    def advance(_: str) -> None:
        nonlocal done
        done += 1
        if done % 50 == 0:
            print(f"{name}: {done} of {total}", flush=True)

    run_studies([study], presets, store, advance, jobs)
    facts = {
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "made_with": made_with(preset),
    }
    judged, fresh = (finished(study, preset, store) for preset in presets)
    record = make(study, preset, judged, fresh, facts)
    RECORDS.mkdir(parents=True, exist_ok=True)
    runs = record.pop("runs")  # a line each: a diff of the file shows which run changed
    head = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)[:-2]
    lines = ",\n".join(json.dumps(run, allow_nan=False, separators=(",", ":")) for run in runs)
    path.write_text(f'{head},\n "runs": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    print(f"{name}: {record['verdict']['word']} ({record['verdict']['stable']})", flush=True)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
