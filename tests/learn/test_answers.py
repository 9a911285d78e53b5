"""What the library answers the served page is what the reference computes, or one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from normkit import reference
from normkit.learn.answers import ANSWERS, answer

MAPS = torch.randn(3, 8, 144, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
U = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
W, DY = [0.5, -0.4, 0.3], [1.0, 0.0, -0.5, 0.3, 0.8]
QUESTIONS: dict[str, dict[str, Any]] = {
    "four-numbers": {"x": [1, 2, 4, 9], "gamma": 1.5, "beta": -0.5, "eps": 1e-3},
    "shared-mean": {"maps": MAPS.tolist(), "norm": "group", "groups": 2, "image": 1},
    "one-step": {"weights": [1.4] * 16, "rate": 0.03},
    "scale": {"u": U.tolist(), "w": W, "dy": DY, "a": 0.01, "eps": 1e-5},
    "backward": {"x": [1, 2, 4, 9], "gamma": 1.5, "eps": 1e-5, "dy": [1, -0.5, 0.3, 0.8]},
    "test-time": {"values": list(range(40)), "batch": 8, "momentum": 0.1},
}


def asked(section: str, **fields: Any) -> dict[str, Any]:
    return answer({"section": section, **QUESTIONS[section], **fields})


def equal(ours: Any, truth: Any) -> None:
    made, right = (torch.as_tensor(v, dtype=torch.float64).flatten() for v in (ours, truth))
    torch.testing.assert_close(made, right, rtol=1e-11, atol=1e-11)


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_there_is_a_question_for_every_section_that_answers() -> None:
    assert set(QUESTIONS) == set(ANSWERS)


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group"])
def test_maps(norm: str) -> None:
    x = MAPS.reshape(3, 8, 12, 12)
    truth = {
        "batch": lambda: reference.batch_norm(x, None, None, 1e-5)[0],
        "layer": lambda: reference.group_norm(x, 1, None, None, 1e-5),
        "instance": lambda: reference.group_norm(x, 8, None, None, 1e-5),
        "group": lambda: reference.group_norm(x, 2, None, None, 1e-5),
    }[norm]()
    truth = truth[0] if isinstance(truth, tuple) else truth
    equal(asked("shared-mean", norm=norm)["y"], truth[1])


def test_a_step_goes_the_wrong_way() -> None:
    made = asked("one-step")
    equal(made["promised"], -0.03 * 16 * 1.4**30)
    equal(made["actual"] / 1.4**16, (1 - 0.03 * 1.4**14) ** 16 - 1)
    assert made["promised"] < 0 < made["actual"]


def test_scale() -> None:
    made = asked("scale")
    s = U @ torch.tensor(W, dtype=torch.float64)[:, None] * 0.01
    equal(made["y"], reference.batch_norm(s, None, None, 1e-5)[0])
    dx, _, _ = reference.batch_norm_backward(column(DY), s, None, 1e-5)
    equal(made["length"], (U * dx).sum(0).norm())


def test_backward() -> None:
    made = asked("backward")
    given = QUESTIONS["backward"]
    weight = torch.tensor([1.5], dtype=torch.float64)
    truth = reference.batch_norm_backward(column(given["dy"]), column(given["x"]), weight, 1e-5)
    for name, right in zip(("dx", "dgamma", "dbeta"), truth, strict=True):
        equal(made[name], right)


def test_test_time() -> None:
    made = asked("test-time")
    x = torch.arange(40, dtype=torch.float64).reshape(5, 8)
    mean, var = 0.0, 1.0
    for batch in x:
        mean, var = 0.9 * mean + 0.1 * batch.mean().item(), 0.9 * var + 0.1 * batch.var().item()
    equal(made["running"], [mean, var])
    equal(made["average"], [x.mean(), x.var(1).mean()])
    equal(made["exact"], [x.mean(), x.var()])


@pytest.mark.parametrize(
    ("section", "fields", "complaint"),
    [
        ("shared-mean", {"groups": 3}, "groups to divide 8, got 3"),
        ("shared-mean", {"groups": 2.5}, "groups to be an integer"),
        ("shared-mean", {"image": 3}, "image to be a number from 0 to 2"),
        ("shared-mean", {"norm": "rms"}, "norm to be one of batch, layer, instance, group, got 'rms'"),
        ("shared-mean", {"maps": [[1, 2], [3]]}, "maps to be 1 to 6 x 8 x 144 numbers"),
        ("one-step", {"weights": [1.0]}, "weights to be 2 to 64 numbers"),
        ("one-step", {"weights": [1e100] * 16}, "the answer is not finite"),
        ("scale", {"u": [[1, 2], [3, 4]]}, "u to be 2 to 512 x 3 numbers"),
        ("scale", {"eps": -1}, "eps to be a number from 0"),
        ("scale", {"a": 0, "eps": 0}, "eps must be positive|the answer is not finite"),  # as the torch at hand has it
        ("backward", {"dy": [1]}, "dy to be 4 numbers"),
        ("backward", {"x": "1,2"}, "x to be 2 to 512 numbers"),
        ("backward", {"x": [1, float("nan")]}, "x to hold finite numbers"),
        ("test-time", {"batch": 64}, "at least one batch of 64, got 40 values"),
        ("test-time", {"momentum": 1.5}, "momentum to be a number from 0 to 1, got 1.5"),
        ("test-time", {"batch": True}, "batch to be a number from 2 to 64, got True"),
    ],
)
def test_what_does_not_fit_is_one_line(section: str, fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as raised:
        asked(section, **fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("section", QUESTIONS)
def test_a_missing_field_is_named(section: str) -> None:
    for name in QUESTIONS[section]:
        left = {key: value for key, value in QUESTIONS[section].items() if key != name}
        with pytest.raises(ValueError, match=f"expected {name}"):
            answer({"section": section, **left})
