"""`python -m tools.precision [--go-on] [--only TEXT] [--part 1]`: write docs/data/doctor_precision.json; 10 minutes.

--go-on: keep the rows of a run that was broken off (out/precision.jsonl). --only: the nets and rules whose name holds
the text; nothing but the log is written then.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import plan_more
from .nets import net
from .plan import plans
from .run import ALL, rows

ROOT = Path(__file__).resolve().parents[2]
DATA, LOG = ROOT / "docs" / "data" / "doctor_precision.json", ROOT / "out" / "precision.jsonl"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "monai", "torch-audit")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--go-on", action="store_true", help="keep the rows of a run that was broken off")
    parser.add_argument("--only", default="", help="nets and rules whose name holds this; the table is not written")
    parser.add_argument("--open", action="store_true", help="without what is set aside; the table is not written")
    parser.add_argument("--part", choices=("1", "2"), help="one of the two alone; the table is not written")
    options = parser.parse_args()
    first: list[Any] = [*plans(), *ALL] if options.part != "2" else []
    second: list[Any] = plan_more.plans() if options.part != "1" else []
    both = [(one, True) for one in second] + [(one, False) for one in first]
    wanted = [(one, more) for one, more in both if options.only in str(one)]
    if options.open:
        wanted = [(one, more) for one, more in wanted if not net(one if isinstance(one, str) else one.net).aside]
    LOG.parent.mkdir(exist_ok=True)
    if not options.go_on:
        LOG.unlink(missing_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    found = rows(wanted, LOG, commit.stdout.strip())
    if not (options.only or options.open or options.part):
        versions = {name: version(name) for name in PACKAGES}
        DATA.write_text(_compact({"date": date.today().isoformat(), "versions": versions, **found}), encoding="utf-8")
        print(f"{DATA.relative_to(ROOT)}: written")
    return 0


def _compact(document: dict[str, object]) -> str:
    """JSON with a row a line."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            parts.append(f' "{key}": [\n  {lines}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
