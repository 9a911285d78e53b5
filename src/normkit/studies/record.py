"""What a full run leaves in docs/data/studies/NAME.json: its runs, compact, and all that was concluded from them.

The verdict is taken from the runs as they are written (five significant digits), so that a record proves itself:
`judged` gives the same again without training. The rule's hash covers the experiment and the rule, not plots or texts.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from .stability import Stability, stated
from .store import finite
from .study import Preset, Run, Study, seeds_of
from .verdict import Verdict

DIGITS = 5
Record = dict[str, Any]


def rule_sha256(study: Study) -> str:
    """Of the study's file without its plots and texts, the words of its rule, and the code that judges; no comments."""
    parts = [*(ast.unparse(node) for node in _bare(_source(study.name))), study.rule]
    return hashlib.sha256("\n".join([*parts, *_judging()]).encode()).hexdigest()


def _source(module: str) -> str:
    """The text of a module of this package."""
    return files(__package__).joinpath(f"{module}.py").read_text(encoding="utf-8")


@cache
def _judging() -> list[str]:
    return [ast.unparse(node) for node in _bare(_source("verdict"))]


def make(study: Study, preset: Preset, runs: Sequence[Run], fresh: Sequence[Run], facts: Mapping[str, str]) -> Record:
    """facts: commit, date, made_with."""
    runs, fresh = [_rounded(run) for run in runs], [_rounded(run) for run in fresh]
    verdict, stability = stated(study.parts, study.measure(runs), study.measure(fresh))
    shared = {key: value for key, value in runs[0].params.items() if all(r.params.get(key) == value for r in runs)}
    block = {"seeds": seeds_of(fresh), "word": stability.fresh.word, "parts": stability.fresh.to_json()["parts"]}
    found = verdict.to_json()
    return {
        "name": study.name,
        "preset": preset.name,
        "data": preset.data,
        **facts,
        "rule": study.rule,
        "rule_sha256": rule_sha256(study),
        "verdict": {"word": verdict.word, "rule_word": stability.rule, "sentence": verdict.sentence,
                    "stable": stability.sentence, "leans": stability.leans, "needed": stability.needed},
        "parts": found["parts"],
        "stability": stability.share,
        "seeds": seeds_of(runs),
        "fresh": block,
        "seconds": round(sum(run.seconds for run in (*runs, *fresh))),
        "shared": shared,
        "runs": [[{k: v for k, v in r.params.items() if k not in shared}, r.result] for r in (*runs, *fresh)],
    }  # fmt: skip


def blocks(record: Record) -> tuple[list[Run], list[Run]]:
    """The runs that were judged and those of the fresh block."""
    runs = [Run({**record["shared"], **params}, result, 0.0) for params, result in record["runs"]]
    return tuple(
        [r for r in runs if r.params["seed"] in seeds] for seeds in (record["seeds"], record["fresh"]["seeds"])
    )  # type: ignore[return-value]  # two


def judged(study: Study, record: Record) -> tuple[Verdict, Stability]:
    """What the study's rule says of the record's runs now."""
    runs, fresh = blocks(record)
    return stated(study.parts, study.measure(runs), study.measure(fresh))


def is_current(study: Study, record: Record) -> bool:
    """Whether the record was made by the experiment and the rule as they are."""
    return bool(record["rule_sha256"] == rule_sha256(study))


def _rounded(run: Run) -> Run:
    return Run(run.params, _compact(finite(run.result)), run.seconds)


def _compact(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    return [_compact(item) for item in value] if isinstance(value, list) else value


def _bare(source: str) -> list[ast.stmt]:
    """The statements of a module that decide, docstrings out: no plots, no labels, no STUDY."""
    kept = []
    for node in ast.parse(source).body:
        names = [getattr(node, "name", "")] + [getattr(t, "id", "") for t in getattr(node, "targets", [])]
        drawn = any(name.lstrip("_").startswith(("plot", "against", "LABELS", "STUDY")) for name in names)
        if not drawn and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            kept.append(_silent(node))
    return kept


def _silent(node: ast.stmt) -> ast.stmt:
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
            inner.body = inner.body[1:] or [ast.Pass()]
    return node
