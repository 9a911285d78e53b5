"""What is known of a padded axis behind each function of torch: as long, and with the values, of the sample alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.padding import windows
from normkit.padding.block import Padded
from normkit.padding.track import Track
from tests.padding.models import apart, batch
from tests.tolerances import assert_equal64

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
LENGTHS = [12, 5, 9]
SHAPE = (3, 4, 12)
FILTERS = torch.randn(4, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
Function = Callable[[Tensor], Any]


class Calls(nn.Module):
    """A model that is one function; what the block knows of its result is kept."""

    def __init__(self, function: Function, block: Padded) -> None:
        super().__init__()
        self.function, self.block = function, block
        self.track: Track | None = None

    def forward(self, x: Tensor) -> Any:
        y = self.function(x)
        first = y if isinstance(y, Tensor) else y[0]
        self.track = self.block._tracks.get(first)
        return y


def followed(function: Function, x: Tensor, dim: int = -1, exact: bool = True) -> tuple[Any, Track | None]:
    block = nk.lengths(LENGTHS, dim, zero_convolutions=exact)
    with warnings.catch_warnings(), block:
        warnings.filterwarnings("ignore", "normkit.lengths: no norm")  # there is none
        model = Calls(function, block)
        return model(x), model.track


SAME: dict[str, Function] = {  # where positions of the result are those of the input, or none
    "elementwise": lambda x: torch.tanh(x * 2 + 1),
    "two operands": lambda x: torch.add(x, x.mul(2)),
    "transpose": lambda x: x.transpose(1, 2),
    "T of a part": lambda x: x.mT,
    "permute": lambda x: torch.permute(x, (2, 0, 1)),
    "permute by numbers": lambda x: x.permute(2, 0, 1),
    "movedim": lambda x: x.movedim(-1, 1),
    "in place": lambda x: x.clone().transpose_(1, 2).mul_(2),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "None and ...": lambda x: x[:, None, ..., :],
    "one channel": lambda x: x[:, 2],
    "select": lambda x: x.select(1, 2),
    "slice of channels": lambda x: x[:, 1:3],
    "unbind": lambda x: x.unbind(1),
    "split channels": lambda x: x.split(2, 1),
    "chunk channels": lambda x: torch.chunk(x, 2, dim=1),
    "mean over channels": lambda x: x.mean(1),
    "mean kept": lambda x: x.mean(dim=1, keepdim=True),
    "max over channels": lambda x: x.max(1),
    "reshape channels": lambda x: x.reshape(3, 2, 2, 12),
    "merge channels": lambda x: x.view(3, 2, 2, 12).flatten(1, 2),
    "view of rows": lambda x: x.transpose(1, 2).reshape(3, 12, 2, 2).transpose(1, 2),
    "samples with channels": lambda x: x.reshape(12, 12).view(3, 4, 12),
    "positions as rows and back": lambda x: x.transpose(1, 2).reshape(36, 4).view(3, 12, 4),
    "cat": lambda x: torch.cat([x, 2 * x], 1),
    "cat with others": lambda x: torch.cat([x, torch.ones_like(x)], dim=1),
    "stack": lambda x: torch.stack([x, x], 1),
    "stack in front": lambda x: torch.stack((x, x)),
    "linear": lambda x: F.linear(x.transpose(1, 2), FILTERS[:, :, 0]),
    "matmul": lambda x: x.transpose(1, 2) @ FILTERS[:, :, 0],
    "glu": lambda x: F.glu(x, 1),
    "softmax": lambda x: x.softmax(1),
    "dropout": lambda x: F.dropout(x, 0.0),
    "to": lambda x: x.to(torch.float32).double().contiguous(),
    "expand": lambda x: x[:, None].expand(3, 5, 4, 12),
    "flip of channels": lambda x: x.flip(1),
    "where": lambda x: torch.where(x > 0, x, -x),
    "order of samples": lambda x: x[torch.tensor([0, 1, 2])],
    "repeated channels": lambda x: x.repeat(1, 2, 1),
    "repeated in front": lambda x: x.repeat(2, 1, 1, 1),
    "tiled channels": lambda x: torch.tile(x, (2, 1)),
    "hstack": lambda x: torch.hstack([x, 2 * x]),
    "sorted channels": lambda x: x.sort(1),
    "chosen channels": lambda x: x.gather(1, torch.zeros(3, 2, 12, dtype=torch.long)),
    "differences of channels": lambda x: torch.diff(x, dim=1),
    "tensor_split of channels": lambda x: torch.tensor_split(x, 2, dim=1),
}
CHANGED: dict[str, Function] = {  # where they are others
    "conv": lambda x: F.conv1d(x, FILTERS),
    "conv stride": lambda x: F.conv1d(x, FILTERS, stride=2, padding=1),
    "conv dilation": lambda x: F.conv1d(x, FILTERS, None, 1, 2, 2),
    "conv same": lambda x: F.conv1d(x, FILTERS[..., :2], padding="same"),
    "conv valid": lambda x: F.conv1d(x, FILTERS, padding="valid"),
    "transposed": lambda x: F.conv_transpose1d(x, FILTERS, stride=2),
    "transposed padded": lambda x: F.conv_transpose1d(x, FILTERS, None, 3, 1, 1),
    "max pool": lambda x: F.max_pool1d(x - 9, 2),
    "max pool padded": lambda x: F.max_pool1d(x - 9, 3, 2, 1),
    "max pool ceil": lambda x: F.max_pool1d(x - 9, 2, 2, ceil_mode=True),
    "max pool ceil, no window behind": lambda x: F.max_pool1d(x - 9, 2, 3, 1, ceil_mode=True),
    "max pool dilated": lambda x: F.max_pool1d(x - 9, 2, 1, 0, 2),
    "max pool indices": lambda x: F.max_pool1d(x - 9, 2, return_indices=True),
    "avg pool": lambda x: F.avg_pool1d(x, 2),
    "avg pool padded": lambda x: F.avg_pool1d(x, 3, 2, 1),
    "avg pool without padding": lambda x: F.avg_pool1d(x, 3, 2, 1, count_include_pad=False),
    "avg pool ceil": lambda x: F.avg_pool1d(x, 3, 2, 1, True),
    "avg pool ceil without padding": lambda x: F.avg_pool1d(x, 4, 3, 1, True, False),
    "adaptive avg": lambda x: F.adaptive_avg_pool1d(x, 3),
    "adaptive max": lambda x: F.adaptive_max_pool1d(x, 2),
    "adaptive max indices": lambda x: F.adaptive_max_pool1d(x, 2, return_indices=True),
    "power-average pool": lambda x: F.lp_pool1d(x, 2.0, 3, 2),
    "power-average pool ceil": lambda x: F.lp_pool1d(x, 2.0, 2, 2, ceil_mode=True),
    "max unpool": lambda x: F.max_unpool1d(*F.max_pool1d(x + 9, 2, return_indices=True), 2),
    "max unpool with gaps": lambda x: F.max_unpool1d(*F.max_pool1d(x + 9, 2, 3, return_indices=True), 2, 3),
    "max unpool to a size": lambda x: F.max_unpool1d(
        *F.max_pool1d(x + 9, 2, return_indices=True), 2, output_size=x.shape[-1:]
    ),
    "differences": lambda x: torch.diff(x),
    "trapezoids": lambda x: torch.cumulative_trapezoid(x, dim=-1),
    "second differences": lambda x: x.diff(2, -1, prepend=x[..., :1]),
    "upsample nearest": lambda x: F.interpolate(x, scale_factor=2),
    "upsample linear": lambda x: F.interpolate(x, scale_factor=1.5, mode="linear", align_corners=True),
    "upsample back to a size": lambda x: F.interpolate(F.max_pool1d(x, 2), size=x.shape[-1], mode="linear"),
    "Upsample": lambda x: nn.Upsample(scale_factor=2, mode="linear")(x),
    "pad": lambda x: F.pad(x, (2, 1)),
    "pad with ones": lambda x: F.pad(x, (1, 2), value=1.0),
    "pad cut": lambda x: F.pad(x, (1, -2)),
    "pad reflect": lambda x: F.pad(x, (2, 3), mode="reflect"),
    "pad replicate": lambda x: F.pad(x, (1, 1), "replicate"),
    "pad circular": lambda x: F.pad(x, (1, 2), mode="circular"),
    "end cut off": lambda x: x[..., :-2],
    "begin cut off": lambda x: x[:, :, 3:],
    "every second": lambda x: x[..., ::2],
    "first ones": lambda x: x[..., :7],
    "narrow": lambda x: x.narrow(-1, 2, 8),
    "split positions": lambda x: x.split(7, -1),
    "frames": lambda x: x.unfold(-1, 3, 2),
    "flip": lambda x: x.flip(-1),
    "flip of both": lambda x: torch.flip(x, (1, 2)),
    "fliplr": lambda x: x.mT.fliplr().mT,
    "roll": lambda x: torch.roll(x, 2, -1),
    "class token in front": lambda x: torch.cat([torch.ones(len(x), 4, 1, dtype=x.dtype), x], -1),
}
TURNED = {"flip", "flip of both", "fliplr", "roll"}
SHORT = {"first ones", "narrow", "split positions"}  # which a sample alone is too short for, or cut otherwise


@pytest.mark.parametrize("name", [*SAME, *CHANGED])
def test_the_real_part_of_a_result_is_that_of_the_sample_alone(name: str) -> None:
    function = (SAME | CHANGED)[name]
    x = batch(SHAPE, LENGTHS, -1, junk=50.0)
    got, track = followed(function, x)
    y = got if isinstance(got, Tensor) else got[0]
    assert track is not None
    assert not track.lost
    for n, one in enumerate(apart(x, LENGTHS, 2)):
        part = y
        for axis, span in track.spans.items():
            part = part.narrow(axis, 0, int(span.real[n]))
        part = part.narrow(track.batch, n, 1)
        if name in SHORT:
            assert_equal64(part, one[..., int(name == "narrow") * 2 :][..., : part.shape[-1]])
            continue
        if name in SAME and "samples" not in name and "rows and back" not in name:
            assert [int(span.real[n]) for span in track.spans.values()] == [LENGTHS[n]]
            whole = function(x)
            whole = whole if isinstance(whole, Tensor) else whole[0]
            assert torch.equal(y, whole)
            continue
        if name in SAME:
            assert [int(span.real[n]) for span in track.spans.values()] == [LENGTHS[n]]
            continue
        alone = function(one)
        assert_equal64(part, alone if isinstance(alone, Tensor) else alone[0], f"sample {n}")


@pytest.mark.parametrize("name", CHANGED)
def test_without_zeros_the_lengths_are_the_same_and_the_values_torchs(name: str) -> None:
    x = batch(SHAPE, LENGTHS, -1, junk=50.0)
    got, track = followed(CHANGED[name], x, exact=False)
    if name in TURNED:
        assert track is not None
        assert track.lost  # the real positions lie elsewhere in each sample
        return
    _, exact = followed(CHANGED[name], x)
    plain = CHANGED[name](x)
    got, plain = (one if isinstance(one, Tensor) else one[0] for one in (got, plain))
    assert torch.equal(got, plain)
    assert track is not None
    assert exact is not None
    assert {a: s.real.tolist() for a, s in track.spans.items()} == {a: s.real.tolist() for a, s in exact.spans.items()}


def test_positions_as_rows_keep_their_mask() -> None:
    x = batch(SHAPE, LENGTHS, -1)
    _, track = followed(lambda x: x.transpose(1, 2).reshape(-1, 4), x)
    assert track is not None
    assert track.rows is not None
    assert torch.equal(track.rows.view(3, 12), nk.mask_from_lengths(LENGTHS, 12))


def test_a_size_that_nothing_explains_has_the_ratio_of_the_lengths() -> None:
    x = batch(SHAPE, LENGTHS, -1)
    _, track = followed(lambda x: torch.fft.rfft(x, dim=-1).real.contiguous()[..., :6], x)
    assert track is not None
    ratio = [-(-length * 7 // 12) for length in LENGTHS]
    assert track.spans[2].real.tolist() == [min(length, 6) for length in ratio]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mean(-1),
        lambda x: x[..., -3:],
        lambda x: x[..., 0],
        lambda x: x.sum(),
        lambda x: torch.cat([x, x], -1),
        lambda x: torch.hstack([x[:, 0], x[:, 1]]),
        lambda x: x.repeat(1, 1, 2),
        lambda x: torch.tile(x, (2,)),
        lambda x: x.sort()[0],
        lambda x: x.sort(0)[0],
        lambda x: x.permute(2, 0, 1).msort(),
        lambda x: x.topk(3).values,
        lambda x: x.gather(-1, torch.zeros(3, 4, 5, dtype=torch.long)),
        lambda x: torch.take_along_dim(x, x.argsort()),
        lambda x: x.rot90(1, (1, 2)),
        lambda x: torch.roll(x, 2),
        lambda x: x.flip(0, 2),
        lambda x: x.chunk(2, -1)[1],
        lambda x: torch.tensor_split(x, 3, -1)[0],
        lambda x: torch.diff(x, append=x[..., :1]),
        lambda x: F.unfold(x[:, :, None], (1, 3)),
        lambda x: F.fold(x, (2, 12), (2, 1)),
    ],
    ids=["mean", "last ones", "first one", "sum", "one behind the other", "hstack", "repeat", "tile", "sort",
         "sort of samples", "msort", "topk", "gather", "take_along_dim", "rot90", "roll of all", "flip of both",
         "chunk", "tensor_split", "diff with an end", "columns", "fold"],
)  # fmt: skip
def test_what_has_no_padded_axis_any_more_is_known_as_such(function: Function) -> None:
    _, track = followed(function, batch(SHAPE, LENGTHS, -1))
    assert track is not None
    assert track.lost


@pytest.mark.parametrize(
    "function",
    [lambda x: x.flip(0), lambda x: x.flipud(), lambda x: x.roll(1, 0), lambda x: x.roll((1, 1), (0, 1))],
    ids=["flip", "flipud", "roll", "roll of channels too"],
)
def test_samples_in_another_order_take_their_lengths_along(function: Function) -> None:
    y, track = followed(function, batch(SHAPE, LENGTHS, -1, junk=50.0))
    assert track is not None
    ends = (y != 50.0).any(1).sum(1)  # junk is what lies after a sample's end
    assert torch.equal(track.spans[2].real, ends)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_formulas_are_torchs(kernel: int, stride: int, padding: int, dilation: int) -> None:
    lengths = torch.arange(12, 30)
    numbers = (kernel, stride, padding, dilation)
    found = windows.convolution_length(lengths, *numbers).tolist()
    back = windows.transposed_length(lengths, *numbers).tolist()
    down, up = nn.Conv1d(1, 1, *numbers), nn.ConvTranspose1d(1, 1, kernel, stride, padding, dilation=dilation)
    assert found == [down(torch.zeros(1, 1, n)).shape[-1] for n in range(12, 30)]
    assert back == [up(torch.zeros(1, 1, n)).shape[-1] for n in range(12, 30)]
    if padding <= kernel // 2:
        for ceil in (False, True):
            pool = nn.MaxPool1d(*numbers, ceil_mode=ceil)
            found = windows.pool_length(lengths, *numbers, ceil_mode=ceil).tolist()
            assert found == [pool(torch.zeros(1, 1, n)).shape[-1] for n in range(12, 30)]
    assert windows.convolution_length(torch.tensor([0, 1]), 3).tolist() == [0, 0]
