"""Studies: one file per claim about training, with its experiment, its plot and the rule of its verdict."""

from __future__ import annotations

from ..errors import UsageError
from .distribution_shift import STUDY as _distribution_shift
from .learning_rate import STUDY as _learning_rate
from .linear_chain import STUDY as _linear_chain
from .precise_statistics import STUDY as _precise_statistics
from .scale_invariance import STUDY as _scale_invariance
from .small_batch import STUDY as _small_batch
from .study import Plot, Preset, Run, Study
from .train_test_gap import STUDY as _train_test_gap
from .verdict import Part, Verdict

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        _linear_chain,
        _scale_invariance,
        _learning_rate,
        _small_batch,
        _train_test_gap,
        _precise_statistics,
        _distribution_shift,
    )
}


def find(name: str) -> Study:
    """The study called `name`."""
    if name not in STUDIES:
        raise UsageError(f"no study is called {name!r}; there are: {', '.join(STUDIES)}")
    return STUDIES[name]


__all__ = ["STUDIES", "Part", "Plot", "Preset", "Run", "Study", "Verdict", "find"]
