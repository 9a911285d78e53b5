"""Make src/normkit/learn/runs.json anew: `make learn-data`, one or two minutes of one core."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import torch

from normkit.learn import runs

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    made = {"commit": commit.strip() or "unknown", "rule": runs.rule(), **dict(runs.make())}
    path = ROOT / "src" / "normkit" / "learn" / "runs.json"
    path.write_text(json.dumps(made, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
