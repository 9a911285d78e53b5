"""Write the generated parts of the docs, or fail when one has drifted: `python -m tools.docs [--check] [--measure]`.

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; a whole generated file is made of one.
Numbers that depend on the machine are kept as data in docs/data and rendered from there; `--measure` takes them anew.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normkit.studies.gallery import Row

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "docs" / "data"


def defects() -> str:
    """The table of act 1: what torch computes wrongly."""
    from normkit.studies.gallery import markdown

    return markdown([row for row in _gallery() if not row.missing])


def missing() -> str:
    """The rest of that table: what torch cannot be asked for."""
    from normkit.studies.gallery import markdown

    return markdown([row for row in _gallery() if row.missing])


def features() -> str:
    """What each library's normalization layers do."""
    table = _load("features.json")
    systems = table["systems"]
    lines = ["| feature | " + " | ".join(systems) + " |", "|---" * (len(systems) + 1) + "|"]
    for row in table["features"]:
        lines.append("| " + " | ".join([row["feature"], *(row[s] for s in systems)]) + " |")
    return "\n".join(lines) + "\n"


def measure() -> None:
    """Compute the gallery of defects on this machine."""
    from normkit.studies.gallery import rows

    DATA.mkdir(exist_ok=True)
    text = json.dumps([row.to_json() for row in rows()], indent=1, ensure_ascii=False)
    (DATA / "defects.json").write_text(text + "\n", encoding="utf-8")


# file -> name of the part -> what makes it
PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"defects": defects, "missing": missing},
    "docs/layers.md": {"features": features},
}


def pages() -> dict[Path, str]:
    """Whole files that are generated: the studies' pages and the benchmarks'."""
    from normkit.bench import render
    from normkit.studies.pages import pages as studies

    figures = (DATA / "benchmarks.json").read_text(encoding="utf-8")
    return {ROOT / "docs" / "studies" / name: text for name, text in studies().items()} | {
        ROOT / "docs" / "benchmarks.md": render(figures)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a part has drifted")
    parser.add_argument("--measure", action="store_true", help="compute the machine's numbers anew first")
    options = parser.parse_args()
    if options.measure:
        measure()
    wanted = {ROOT / file: _filled(ROOT / file, parts) for file, parts in PARTS.items()} | pages()
    drifted = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in drifted:
        if not options.check:
            path.write_text(wanted[path], encoding="utf-8")
        print(
            f"{path.relative_to(ROOT)}: {'has drifted from the code; run `make docs`' if options.check else 'written'}"
        )
    return 1 if drifted and options.check else 0


def _gallery() -> list[Row]:
    """The last measurement of examples/defects."""
    from normkit.studies.gallery import Row, scripts

    rows = [Row(**{**row, "threads": tuple(row["threads"])}) for row in _load("defects.json")]
    if [row.name for row in rows] != [script.stem for script in scripts()]:
        raise SystemExit("examples/defects and docs/data/defects.json differ: run `python -m tools.docs --measure`")
    return rows


def _filled(path: Path, parts: dict[str, Callable[[], str]]) -> str:
    """The file's text with its generated parts as they should be."""
    text = path.read_text(encoding="utf-8")
    for name, make in parts.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{path}: expected the lines <!-- begin {name} --> and <!-- end {name} -->, found none")
        body = make()
        text = pattern.sub(lambda found, body=body: found[1] + body + found[2], text)
    return text


def _load(name: str) -> Any:
    path = DATA / name
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `python -m tools.docs --measure`")
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
