"""`python -m tools.precision [--only TEXT]`: write docs/data/doctor_precision.json; about 20 minutes on two cores.

--only: the nets and rules whose name holds the text, printed and not written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from .plan import plans
from .run import ALL, rows

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data" / "doctor_precision.json"
PACKAGES = ("torch", "torchvision", "timm", "transformers", "monai", "torch-audit")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", help="nets and rules whose name holds this; nothing is written")
    parser.add_argument("--part", choices=("healthy", "sick", "open"), help="these alone; nothing is written")
    options = parser.parse_args()
    names = [name for name in ALL if not options.only or options.only in name]
    chosen = [plan for plan in plans() if not options.only or options.only in f"{plan.code} {plan.net}"]
    began = time.monotonic()
    if options.part == "open":
        from .nets import net

        names = [name for name in names if not net(name).aside]
        chosen = [plan for plan in chosen if not net(plan.net).aside]
    found = rows(chosen if options.part != "healthy" else [], names if options.part != "sick" else [])
    if options.only or options.part:
        return 0
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    document = {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "versions": {name: version(name) for name in PACKAGES},
        **found,
    }
    DATA.write_text(_compact(document), encoding="utf-8")
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
