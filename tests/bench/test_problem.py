"""The tensors of a case: layouts as they are called, several sets, drawn the same every time."""

from __future__ import annotations

import pytest
import torch

from normkit.bench.problem import Case, make


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 6, 3, 4, 5)], ids=["maps", "volumes"])
def test_layouts_are_what_they_are_called(shape: tuple[int, ...]) -> None:
    planar, last = (make(Case("batch_norm", shape, layout), True, True).sets[0] for layout in ("NCHW", "NHWC"))
    memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    for first, second in ((planar.x, last.x), (planar.dy, last.dy), (planar.residual, last.residual)):
        assert first is not None
        assert second is not None
        assert first.shape == second.shape == shape
        assert first.is_contiguous()
        assert second.is_contiguous(memory_format=memory_format)


def test_inputs_rotate_and_differ() -> None:
    small, large = (make(Case("batch_norm", shape, "NCHW"), False, True) for shape in ((4, 8, 5, 5), (8, 64, 72, 72)))
    assert (len(small.sets), len(large.sets)) == (4, 2)
    assert not torch.equal(large.sets[0].x, large.sets[1].x)
    assert not torch.equal(small.sets[0].x - 1, small.sets[0].dy)


def test_the_same_case_has_the_same_values() -> None:
    case = Case("batch_norm+add+relu", (4, 8, 5, 5), "NCHW", "bfloat16")
    once, again = (make(case, True, True) for _ in range(2))
    assert torch.equal(once.sets[1].x, again.sets[1].x)
    assert torch.equal(once.weight, again.weight)


def test_parameters_are_exact_in_the_case_s_dtype() -> None:
    p = make(Case("layer_norm", (6, 24), "rows", "bfloat16"), False, True)
    for parameter in (p.weight, p.bias):
        assert torch.equal(parameter, parameter.bfloat16().float())


def test_only_training_asks_for_gradients() -> None:
    training, inference = (make(Case("batch_norm", (4, 8), "NC"), True, mode).sets[0] for mode in (True, False))
    assert all(leaf.requires_grad for leaf in training.leaves)
    assert not any(leaf.requires_grad for leaf in inference.leaves)


def test_cold_inputs_are_more_than_a_cache_holds() -> None:
    def sets(shape: tuple[int, ...]) -> int:
        return len(make(Case("batch_norm+add+relu", shape, "NCHW", cold=True), True, True).sets)

    assert sets((4, 8, 5, 5)) == 24  # small ones: as many as a step of ResNet-50 has, about
    assert sets((8, 64, 72, 72)) == 300 * 2**20 // (3 * 4 * 8 * 64 * 72 * 72)
