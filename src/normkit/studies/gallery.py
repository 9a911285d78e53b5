"""The gallery of defects: scripts that compute one number three times, with torch, with normkit and in float64.

A script is a file NN_name.py with TITLE, MEASURES (what the number is), THREADS (public reports: a bare number is a
pytorch/pytorch issue), TOLERANCE (absolute, argued beside it) and with_torch(), with_normkit(), truth() -> float.
MISSING = True says that torch cannot be asked for the number: then its answer is what a user gets without. The rows
feed act 1 of the demo and the README's tables.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UsageError

Answer = float | str  # a number, or the name of what came instead of one


@dataclass(frozen=True)
class Row:
    """One defect: the three answers and which of the two layers is within the tolerance of float64."""

    name: str
    title: str
    measures: str
    threads: tuple[str, ...]
    truth: float
    torch: Answer
    normkit: Answer
    torch_right: bool
    normkit_right: bool
    missing: bool = False  # torch has no such request, so it gives no wrong answer to one

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def folder() -> Path:
    """Where the scripts lie: beside the installed package, or in the source tree this package runs from."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "defects", package.parents[1] / "examples" / "defects"]  # never the current folder: it is run
    for place in places:
        if any(place.glob("[0-9]*.py")):
            return place
    raise UsageError("the gallery of defects is not here: run from a clone, where it lies in examples/defects")


def scripts() -> list[Path]:
    """The scripts in the order of their numbers."""
    return sorted(folder().glob("[0-9]*.py"))


def rows() -> Iterator[Row]:
    """Compute the whole gallery, one row at a time."""
    return (row(script) for script in scripts())


def row(script: Path) -> Row:
    module = _load(script)
    truth, ours, theirs = (_answer(getattr(module, f)) for f in ("truth", "with_normkit", "with_torch"))
    if isinstance(truth, str):
        raise RuntimeError(f"{script.name}: truth() must return a finite number, it gave {truth}")

    def right(answer: Answer) -> bool:
        return not isinstance(answer, str) and abs(answer - truth) <= module.TOLERANCE

    threads = tuple(module.THREADS)
    missing = getattr(module, "MISSING", False)
    verdicts = right(theirs), right(ours), missing
    return Row(script.stem, module.TITLE, module.MEASURES, threads, truth, theirs, ours, *verdicts)


def markdown(table: list[Row], seen: Callable[[str], str] | None = None) -> str:
    """The README's table: what was computed (the script says how) and the three answers.

    seen: by a row's name, the versions of torch that were wrong; a column of its own.
    """
    from .report import number, thread, value

    extra = "" if seen is None else " torch versions |"
    lines = [f"| computed | float64 | normkit | torch |{extra} reported |"]
    lines += [f"|---|---:|---:|---:|{'' if seen is None else '---|'}---|"]
    for r in table:
        marks = "✓ " if r.normkit_right else "✗ ", "✓ " if r.torch_right else "" if r.missing else "✗ "
        answers = f"{number(r.truth, 5)} | {marks[0]}{value(r.normkit, 5)} | {marks[1]}{value(r.torch, 5)}"
        threads = ", ".join(thread(t) for t in r.threads)
        versions = "" if seen is None else f" {seen(r.name)} |"
        lines.append(f"| [{r.title}](examples/defects/{r.name}.py) | {answers} |{versions} {threads} |")
    return "\n".join(lines) + "\n"


def show(path: str) -> None:
    """Print one script's row; the last line of each script, so that it runs on its own."""
    result = row(Path(path))
    print(f"{result.title}\n  {result.measures}\n  float64  {result.truth:.9g}")
    answers = {"normkit": (result.normkit, result.normkit_right), "torch": (result.torch, result.torch_right)}
    for name, (answer, right) in answers.items():
        shown = answer if isinstance(answer, str) else f"{answer:.9g}"
        print(f"  {name:<8} {shown}  {'right' if right else 'WRONG'}")


def _answer(compute: Callable[[], float]) -> Answer:
    """A finite number, or "nan", "inf", or the name of the error: a defect may show as any of these."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about bad input is expected of these scripts' input
            answer = float(compute())
    except (RuntimeError, ValueError, TypeError) as error:
        return type(error).__name__
    return answer if math.isfinite(answer) else str(answer)


def _load(script: Path) -> ModuleType:
    name = f"normkit_defect_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{script} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    print(markdown(list(rows())), end="")
