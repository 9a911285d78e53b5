"""Act 2 verifies before it times, and its figures are ratios of pairs."""

import pytest
import torch

from normkit.studies import speed


@pytest.mark.parametrize(("shape", "layout"), [((4, 8, 6, 6), "NCHW"), ((4, 8, 6, 6), "NHWC"), ((64, 8), "NC")])
def test_a_shape_is_verified_and_timed_in_pairs(shape: tuple[int, ...], layout: str) -> None:
    timing = speed.measure(shape, layout, seconds=0.02)
    assert timing.error <= 1
    assert speed.FEWEST <= timing.pairs <= speed.MOST
    assert 0 < timing.low <= timing.ratio <= timing.high
    assert set(timing.to_json()) >= {"shape", "layout", "ratio", "pairs"}


def test_a_wrong_layer_is_never_timed() -> None:
    class Off(torch.nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * (1 + 1e-6)  # twice what is allowed: 8 u = 4.8e-7

    with pytest.raises(RuntimeError, match="not timed"):
        speed.check(Off(8), speed.data((4, 8, 6, 6), "NCHW")[0])


def test_both_layouts_hold_the_same_values() -> None:
    planar, rows = (speed.data((2, 3, 4, 5), layout)[0] for layout in ("NCHW", "NHWC"))
    assert torch.equal(planar, rows)
    assert planar.is_contiguous()
    assert rows.is_contiguous(memory_format=torch.channels_last)


def test_ratios_are_drawn_one_dot_a_shape() -> None:
    row = {"shape": [4, 8], "layout": "NC", "ratio": 0.9, "low": 0.8, "high": 1.5}
    (plot,) = speed.plot([row, {**row, "ratio": 2.25}])
    assert "2.25×" in plot.svg
    assert "0.9×" in plot.svg
