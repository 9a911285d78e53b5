"""Students and teachers: a copy or an average is one, blocks of one form are none."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.doctor.examples import images, small_net
from normkit.doctor.pairs import pairs


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = small_net()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x) - self.teacher(x.flip(3))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) - self.net(x.flip(3))


def found(model: nn.Module) -> list[str]:
    return [f.key for f in nk.diagnose(model, images()).findings if f.code in ("NK402", "NK408")]


def test_a_copy_and_an_average_are_teachers() -> None:
    model: Any = Pair()
    assert pairs(model) == {"teacher": "student"}
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert pairs(model) == {"teacher": "student"}


def test_a_frozen_block_of_the_same_form_is_no_teacher() -> None:
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)) for _ in range(3)]
    blocks[0].requires_grad_(False)
    assert pairs(nn.Sequential(*blocks)) == {}
    assert pairs(Pair().requires_grad_(False)) == {}  # nothing learns


def test_a_teacher_in_training_mode_is_a_note_and_no_frozen_layer() -> None:
    assert found(Pair().train()) == ["NK408 teacher.1"]
    model = Pair().train()
    model.teacher.eval()
    assert found(model) == []
    assert found(Pair().eval()) == []


def test_two_views_through_one_network_are_a_note() -> None:
    assert found(Twice().train()) == ["NK408 net.1"]
    assert found(Twice().eval()) == []
