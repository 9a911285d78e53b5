"""The documentation page of each study, generated from the study itself: claim, experiment, rule, sources."""

from __future__ import annotations

from . import STUDIES
from .study import Study


def pages() -> dict[str, str]:
    """File name under docs/studies/ to its text, the index among them."""
    return {"README.md": _index()} | {f"{name}.md": _page(study) for name, study in STUDIES.items()}


def _index() -> str:
    rows = "\n".join(f"| [`{s.name}`]({s.name}.md) | {s.claim} |" for s in STUDIES.values())
    return f"""# Studies

Each study states a claim about training, runs an experiment on real data, and judges the claim by a rule that is
written beside it and can fail. Two margins, in `small_batch` and `train_test_gap`, were set after pilot runs.
`normkit study` runs them all, `normkit study NAME` one, `--quick` the short preset; `--list` says how long each takes,
`--first-seed N` draws a fresh sample: the seeds from N on.

| study | claim |
|---|---|
{rows}

## How a verdict comes about

A claim has parts; each is measured once a seed. A part is *supported* if an exact sign-flip permutation test of the
seeds puts the mean above the margin at level 0.05, *not supported* if the same test puts it below, *undecided*
otherwise; fewer than five seeds decide nothing. A part that is exact is bounded instead: supported if every value is
within the limit, not supported if the median is beyond ten times the limit. The study is supported if all parts are,
and not supported if one is not.
"""


def _page(study: Study) -> str:
    papers = "\n".join(f"- {paper}" for paper in study.papers)
    return f"""# {study.title}

**Claim.** {study.claim}

**Experiment.** {study.experiment}

**Rule of the verdict.** {study.rule}

**Run it.** `normkit study {study.name}`; the code is in `src/normkit/studies/{study.name}.py`.

**Sources.**

{papers}
"""
