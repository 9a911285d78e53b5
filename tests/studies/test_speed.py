"""Act 2 verifies before it times, and its figures are ratios of pairs."""

import pytest
import torch

import normkit as nk
from normkit.bench.timing import FEWEST
from normkit.studies import speed


@pytest.mark.parametrize(("shape", "layout"), [((4, 8, 6, 6), "NCHW"), ((4, 8, 6, 6), "NHWC"), ((64, 8), "NC")])
def test_a_shape_is_verified_and_timed_in_pairs(shape: tuple[int, ...], layout: str) -> None:
    timing = speed.measure(shape, layout, seconds=0.02)
    assert timing.error <= 1
    assert timing.pairs >= FEWEST
    assert 0 < timing.low <= timing.ratio <= timing.high
    assert set(timing.to_json()) >= {"shape", "layout", "ratio", "pairs"}


def test_a_wrong_layer_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(torch.nn.BatchNorm2d):
        def __init__(self, channels: int, activation: None) -> None:
            super().__init__(channels)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * (1 + 1e-6)  # twice what is allowed: 8 u = 4.8e-7

    monkeypatch.setattr(nk, "BatchNorm2d", Off)
    with pytest.raises(RuntimeError, match="not timed"):
        speed.measure((4, 8, 6, 6), "NCHW", seconds=0.0)


def test_ratios_are_drawn_one_dot_a_shape() -> None:
    row = {"shape": [4, 8], "layout": "NC", "ratio": 0.9, "low": 0.8, "high": 1.5}
    (plot,) = speed.plot([row, {**row, "ratio": 2.25}])
    assert "2.25×" in plot.svg
    assert "0.9×" in plot.svg


def test_a_disturbed_row_does_not_press_the_others_together() -> None:
    row = {"shape": [4, 8], "layout": "NC", "ratio": 2.0, "low": 1.8, "high": 2.2}
    (plain,), (disturbed,) = (speed.plot([row, {**row, "high": high}]) for high in (2.2, 47.0))

    def tick_labels(svg: str) -> set[str]:
        return {text for text in ("5", "10", "20", "40") if f">{text}<" in svg or f"-- {text} --" in svg}

    assert tick_labels(disturbed.svg) == tick_labels(plain.svg) == set()
