"""The record of what was done: data with a JSON round trip, rendered without touching the model."""

import dataclasses
import io

import pytest
import torch
from rich.console import Console
from torch import nn

from normkit.surgery import Change, Changes, changes, convert, fold

from .models import randomized, residual_net


def test_a_model_that_nothing_was_done_to_has_no_entries():
    assert changes(nn.Linear(2, 2)) == Changes()


def test_operations_follow_each_other_and_can_be_told_apart():
    model = fold(convert(randomized(residual_net()), "batch").eval(), torch.randn(2, 3, 9, 9))
    record = changes(model)
    assert [entry.operation for entry in record] == ["convert"] * 5 + ["fold"] * 5
    assert len(record.of("fold").replaced) == 5
    assert len(record.of("fold").errors) == 1
    assert record["1"].operation == "fold"
    with pytest.raises(KeyError):
        record["no such layer"]


def test_json_round_trip():
    model = fold(randomized(residual_net()).eval(), torch.randn(2, 3, 9, 9))
    assert Changes.from_json(changes(model).to_json()) == changes(model)


def test_entries_are_frozen_and_no_part_of_the_state():
    model = convert(residual_net(), "batch")
    with pytest.raises(dataclasses.FrozenInstanceError):
        changes(model)[0].action = "kept"
    assert list(model.state_dict()) == list(residual_net().state_dict())


def test_both_renderings_show_name_and_reason_literally():
    record = Changes((Change("convert", "[red]x[/red]", "kept", "BatchNorm2d", "BatchNorm2d", "[bold]because"),))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(record)
    for text in (console.export_text(), str(record)):
        assert "[red]x[/red]" in text
        assert "[bold]because" in text
        assert "0 replaced, 1 kept" in text
