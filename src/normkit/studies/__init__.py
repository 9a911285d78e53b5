"""Studies: one file per claim about training, with its experiment, its plot and the rule of its verdict."""

from __future__ import annotations

from ..errors import UsageError
from . import small_batch_ranks
from .affine_ablation import STUDY as _affine_ablation
from .convergence import STUDY as _convergence
from .covariate_shift import STUDY as _covariate_shift
from .depth import STUDY as _depth
from .distribution_shift import STUDY as _distribution_shift
from .group_count import STUDY as _group_count
from .initialization import STUDY as _initialization
from .learning_rate import STUDY as _learning_rate
from .placement import STUDY as _placement
from .precise_statistics import STUDY as _precise_statistics
from .regularization import STUDY as _regularization
from .scale_invariance import STUDY as _scale_invariance
from .small_batch import STUDY as _small_batch
from .step_sign import STUDY as _step_sign
from .study import Plot, Preset, Run, Study
from .train_test_gap import STUDY as _train_test_gap
from .vanishing_gradient import STUDY as _vanishing_gradient
from .verdict import Part, Verdict
from .weight_decay_on_gamma import STUDY as _weight_decay_on_gamma

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        _step_sign,
        _vanishing_gradient,
        _initialization,
        _regularization,
        _covariate_shift,
        _scale_invariance,
        _learning_rate,
        _convergence,
        _depth,
        _placement,
        _affine_ablation,
        _weight_decay_on_gamma,
        _small_batch,
        _group_count,
        _train_test_gap,
        _precise_statistics,
        _distribution_shift,
    )
}
MORE = {small_batch_ranks.NAME: small_batch_ranks.study()}  # conducted where they are asked for, not with all others
RENAMED = {"linear_chain": "step_sign"}  # old names still work


def find(name: str) -> Study:
    """The study called `name`."""
    name = RENAMED.get(name, name)
    if name not in STUDIES and name not in MORE:
        raise UsageError(f"no study is called {name!r}; there are: {', '.join(STUDIES)}")
    return STUDIES[name] if name in STUDIES else MORE[name]


__all__ = ["MORE", "RENAMED", "STUDIES", "Part", "Plot", "Preset", "Run", "Study", "Verdict", "find"]
