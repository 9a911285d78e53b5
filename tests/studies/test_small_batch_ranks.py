"""The study of small batches on several processes: its arms, its rules, its place in the command."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from normkit.errors import UsageError
from normkit.studies import MORE, STUDIES, Preset, Run, conduct, data, find, small_batch_ranks
from normkit.studies.small_batch_ranks import EACH, network, plan, spans, study

PRESET = Preset(quick=True, seeds=8, data="digits")


def runs(ranks: int, error: Callable[[str, int, int], float]) -> list[Run]:
    """Made by hand: error(norm, span, seed), the same under exact statistics, at every rate."""
    made = []
    for params in plan(PRESET, ranks):
        wrong = error(params["norm"], params["span"], params["seed"])
        made.append(Run(params, {"valid": 1 - wrong, "error": wrong, "exact": wrong}, 1.0))
    return made


@pytest.mark.parametrize(
    ("ranks", "expected"), [(2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 6]), (7, [1, 7]), (16, [1, 2, 4, 8, 16])]
)
def test_statistics_are_shared_by_doublings_that_divide(ranks: int, expected: list[int]) -> None:
    assert spans(ranks) == expected


def test_each_arm_takes_its_statistics_from_its_span() -> None:
    """The first norm's outputs have mean 0 over each slice of 2 * span images, and over no smaller one."""
    images = data.load("digits", 0)
    x = images.train_x[:8]
    for span in spans(4):
        model = network(images, {"norm": "batch", "span": span, "seed": 0}).train()
        with torch.no_grad():
            y = model[1](model[0](x))
        sizes = [len(part) for part in y.split(EACH * span)]
        means = torch.stack([part.mean((0, 2, 3)) for part in y.split(sizes)])
        assert means.abs().max() < 1e-5
        if span > 1:
            assert torch.stack([part.mean((0, 2, 3)) for part in y.split(EACH)]).abs().max() > 1e-2


def test_a_run_gives_numbers_again_and_the_group_arm_needs_no_exact_statistics() -> None:
    batch, group = ({**p, "steps": 8} for p in (plan(PRESET, 2)[0], plan(PRESET, 2)[-1]))
    result = small_batch_ranks.run(batch)
    assert set(result) == {"valid", "error", "exact"}
    assert small_batch_ranks.run(batch) == result
    assert set(small_batch_ranks.run(group)) == {"valid", "error"}


def test_the_rule_confirms_and_refutes() -> None:
    def claimed(norm: str, span: int, seed: int) -> float:
        return 0.1 + 0.001 * seed + (0.05 if norm == "group" else 0.08 / span)

    made = study(4)
    assert made.judge(runs(4, claimed)).word == "supported"
    assert made.judge(runs(4, lambda norm, span, seed: 0.2 - claimed(norm, span, seed))).word == "not supported"
    assert made.plot(runs(4, claimed))[0].svg.count("<svg") == 1


def test_ranks_add_the_study_behind_small_batch() -> None:
    names = [chosen.name for chosen in conduct.selected(["small_batch"], 8)]
    assert names == ["small_batch", "small_batch_ranks"]
    assert "8 processes" in conduct.selected(["small_batch"], 8)[1].title
    assert [chosen.name for chosen in conduct.selected([], None)] == list(STUDIES)
    assert len(conduct.selected([], 4)) == len(STUDIES) + 1
    assert find("small_batch_ranks") is MORE["small_batch_ranks"]


@pytest.mark.parametrize(
    ("names", "ranks", "text"),
    [
        (["depth"], 4, "--ranks is for small_batch"),
        (["small_batch"], 1, "--ranks must be 2 to 64 processes, got 1"),
        (["small_batch"], 65, "--ranks must be 2 to 64 processes, got 65"),
    ],
)
def test_ranks_that_cannot_be_studied_are_refused(names: list[str], ranks: int, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        conduct.selected(names, ranks)
