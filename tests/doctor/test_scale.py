"""How two answers to one batch compare."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from normkit.doctor.scale import Scale, answer


@dataclass
class Output:
    logits: Tensor
    classes: Tensor


def test_a_number_is_the_loss():
    assert answer(torch.tensor(2.5), None, None) == 2.5
    assert answer(1.5, None, None) == 1.5


def test_one_value_a_sample_is_an_output():
    assert isinstance(answer(torch.ones(1, 1), None, None), tuple)


def test_the_metric_sees_output_and_batch():
    assert answer(3.0, {"y": 4.0}, lambda output, batch: torch.tensor([output * batch["y"]])) == 12.0


def test_integers_do_not_count_and_complex_numbers_do():
    found = answer({"a": torch.ones(2), "b": [torch.ones(2, dtype=torch.int64), torch.ones(2) * 1j]}, None, None)
    assert [part.shape for part in found] == [(2,), (2, 2)]
    assert len(answer(Output(torch.ones(3), torch.ones(3).long()), None, None)) == 1


def test_what_a_model_returns_and_then_overwrites_is_kept():
    held = torch.zeros(3)
    found = answer(held, None, None)
    held.fill_(7)
    assert found[0].sum() == 0


def test_the_distance_is_in_standard_deviations_of_the_exact_output():
    exact = [(torch.tensor([1.0, 3.0]),), (torch.tensor([5.0, 7.0]),)]  # variance 5
    scale = Scale(exact)
    assert scale.value(0, exact[0]) == 0
    assert scale.value(1, (torch.tensor([5.0 + 5**0.5, 7.0 - 5**0.5]),)) == pytest.approx(1)


def test_outputs_count_alike_whatever_their_size():
    exact = [(torch.randn(100), 1e6 * torch.randn(3)) for _ in range(2)]
    moved = tuple(part + 0.5 * torch.cat([e[i] for e in exact]).std(correction=0) for i, part in enumerate(exact[0]))
    assert Scale(exact).value(0, moved) == pytest.approx(0.5, rel=1e-4)


def test_masked_scores_are_equal_infinities():
    masked = torch.tensor([float("-inf"), 1.0, 2.0])
    assert Scale([(masked,)]).value(0, (masked.clone(),)) == 0


def test_constant_outputs_have_no_deviation():
    assert Scale([(torch.ones(4),)]).value(0, (torch.ones(4) * 3,)) == 2


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"has shapes \(3,\), and \(2,\) with other statistics or modes"):
        Scale([(torch.ones(2),)]).value(0, (torch.ones(3),))
    with pytest.raises(ValueError, match="cannot be compared"):
        Scale([1.0]).value(0, (torch.ones(3),))
