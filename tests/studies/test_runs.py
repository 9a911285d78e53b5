"""Every arm of every study runs, on the smallest data and for a few steps, and its results can be kept and judged."""

import json

import pytest

from normkit.studies import STUDIES, Preset
from normkit.studies.store import finite
from normkit.studies.study import Params

ARMS = ("arm", "norm", "activation", "place")  # what a run differs in beside rates, sizes and seeds


def short(name: str) -> list[Params]:
    """A run of each arm of the full preset, cut to twelve steps."""
    runs: dict[str, Params] = {}
    for params in STUDIES[name].plan(Preset(quick=False, seeds=1, data="digits")):
        runs.setdefault(repr([params.get(key) for key in ARMS]), params)
    cut = {"steps": 12, "looks": [0, 12] if name == "vanishing_gradient" else [4, 12], "draws": 1}
    return [{key: cut.get(key, value) for key, value in params.items()} for params in runs.values()]


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_runs(name: str) -> None:
    study = STUDIES[name]
    for params in short(name):
        result = study.run(params)
        assert json.loads(json.dumps(finite(result))) == finite(result)


@pytest.mark.parametrize("name", ["step_sign", "convergence"])
def test_a_run_is_its_parameters(name: str) -> None:
    params = short(name)[0]
    assert STUDIES[name].run(params) == STUDIES[name].run(params)
    assert STUDIES[name].run({**params, "seed": params["seed"] + 1}) != STUDIES[name].run(params)
