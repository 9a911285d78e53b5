"""Run the gallery of defects on every torch that is cached: `python -m tools.defects` (`make defects`).

Kept in docs/data/defects_by_torch.json: what torch answered under each version and whether it was right. README's table
says from it in which versions a defect was seen, and which version has mended it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import torch_env
from .compatibility import TRIED

DATA = Path(__file__).resolve().parents[1] / "docs" / "data" / "defects_by_torch.json"
PROGRAM = "import json; from normkit.studies.gallery import rows; print(json.dumps([r.to_json() for r in rows()]))"


def measure() -> int:
    """Run every version that is there; returns 1 where normkit was wrong somewhere."""
    data, wrong = load(), 0
    for version in TRIED:
        python = torch_env.python(version)
        if python is None:
            print(f"torch {version}: not cached, left as it was")
            continue
        done = subprocess.run([python, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, check=True)
        rows = json.loads(done.stdout)
        data[version] = {row["name"]: {key: row[key] for key in ("torch", "torch_right")} for row in rows}
        own = [row["name"] for row in rows if not row["normkit_right"]]
        wrong += len(own)
        right = [row["name"] for row in rows if row["torch_right"]]
        print(f"torch {version}: {len(rows)} rows; torch right in {right or 'none'}; normkit wrong in {own or 'none'}")
    ordered = {version: data[version] for version in TRIED if version in data}
    DATA.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return min(wrong, 1)


def load() -> dict[str, dict[str, Any]]:
    return json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}


def seen(name: str) -> str:
    """In which versions a row's torch was wrong, as README says it: "2.4 to 2.15", "mended in torch 2.14"."""
    data = load()
    versions = [version for version in data if name in data[version]]
    wrong = [version for version in versions if not data[version][name]["torch_right"]]
    if not wrong:
        return "none of those tried"
    after = versions[versions.index(wrong[-1]) + 1 :]
    first, last = (version.rpartition(".")[0] for version in (wrong[0], wrong[-1]))
    span = first if first == last else f"{first} to {last}"
    if after:
        return f"{span}; mended in torch {after[0].rpartition('.')[0]}"
    raising = [version for version in wrong if str(data[version][name]["torch"]).endswith("Error")]
    if raising and len(raising) < len(wrong):
        return f"{span}, an error in {', '.join(version.rpartition('.')[0] for version in raising)}"
    return span


if __name__ == "__main__":
    sys.exit(measure())
