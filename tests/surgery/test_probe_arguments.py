"""A subclass whose forward takes more than its input is kept: what stands in its place would take it for a residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import normkit as nk


class PaddedGroupNorm(nn.GroupNorm):
    """As audio models have it: statistics of the real values where a mask is given."""

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return super().forward(x if padding_mask is None else x * padding_mask)


def test_it_is_kept_and_the_mask_still_reaches_it() -> None:
    model = nn.Sequential(nn.Conv1d(4, 6, 1), PaddedGroupNorm(2, 6, eps=3e-4), nn.BatchNorm1d(6, eps=3e-4))
    changed = nk.convert(model, "batch", only=lambda name, module: name in ("1", "2"))
    assert type(changed[1]) is PaddedGroupNorm
    (entry,) = [entry for entry in nk.changes(changed).kept if entry.name == "1"]
    assert "takes more than its input (padding_mask)" in entry.reason


def test_a_model_frozen_on_meta_thaws_after_it_was_loaded() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, eps=3e-4))
    full = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, eps=3e-4))
    nn.init.uniform_(full[1].weight)
    frozen = nk.freeze(model)
    frozen.load_state_dict(full.state_dict(), assign=True)
    thawed = nk.unfreeze(frozen).eval()
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(thawed(x), full.eval()(x))
    assert type(thawed[1]) is nn.BatchNorm2d
    assert isinstance(thawed[1].weight, nn.Parameter)
