"""Layers of every kind inside of the block: each sample is as alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import normkit as nk
from tests.padding.models import NORMS, apart, batch, randomized, tcn, twins
from tests.tolerances import assert_equal64

LENGTHS = [12, 5, 9]

OURS: dict[str, Callable[[], nn.Module]] = {
    "group": lambda: nk.GroupNorm(2, 4, activation="silu"),
    "instance": lambda: nk.InstanceNorm1d(4, affine=True),
    "frozen": lambda: nk.FrozenBatchNorm1d(4),
    "filter response": lambda: nk.FilterResponseNorm(4),
    "global response": lambda: nk.GlobalResponseNorm(4),
    "batch in evaluation": lambda: nk.BatchNorm1d(4).eval(),
    "lazy": lambda: nk.LazyBatchNorm1d().eval(),
}


@pytest.mark.parametrize("name", OURS)
def test_layers_of_normkit(name: str) -> None:
    norm, x = OURS[name](), batch((3, 4, 12), LENGTHS, -1, junk=8.0)
    norm(x[:1].float())  # a lazy one learns its size
    norm = randomized(norm)
    with nk.lengths(LENGTHS):
        y = norm(x)
    for n, one in enumerate(apart(x, LENGTHS, 2)):
        assert_equal64(y[n : n + 1, :, : LENGTHS[n]], norm(one))
        assert (y[n, :, LENGTHS[n] :] == 0).all()


@pytest.mark.parametrize("kind", ["ghost", "renorm", "batch"])
def test_layers_over_the_batch_take_the_mask_that_they_would_be_given(kind: str) -> None:
    x, mask = batch((3, 4, 12), LENGTHS, -1, junk=8.0), nk.mask_from_lengths(LENGTHS, 12)
    ours, given = twins(nk.convert(nn.Sequential(nn.BatchNorm1d(4)), kind).double())
    with nk.lengths(LENGTHS):
        y = ours(x)
    assert torch.equal(y, given[0](x, mask=mask))
    for one, other in zip(ours.buffers(), given.buffers(), strict=True):
        assert torch.equal(one, other)


class Spectrogram(nn.Module):
    """(N, 1, F, T): convolutions over both axes, then rows of positions through a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=(2, 1), padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, (3, 5), stride=2, padding=(1, 2), padding_mode="replicate"), nn.GroupNorm(1, 4), nn.ReLU(),
        )  # fmt: skip
        self.rnn, self.norm = nn.GRU(8, 6, batch_first=True), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)  # (N, 4, 2, T / 2)
        n, c, f, t = x.shape
        x, _ = self.rnn(x.view(n, c * f, t).transpose(1, 2))
        return self.norm(x.reshape(n * t, -1)).view(n, t, -1)


def test_a_spectrogram_through_convolutions_and_a_recurrent_layer() -> None:
    model, x = randomized(Spectrogram()).eval(), batch((3, 1, 8, 12), LENGTHS, -1, junk=3.0)
    with nk.lengths(LENGTHS):
        y = model(x)
    for n, one in enumerate(apart(x, LENGTHS, 3)):
        alone = model(one)
        assert_equal64(y[n : n + 1, : alone.shape[1]], alone)


class Packed(nn.Module):
    """Packed sequences through a recurrent layer, as DeepSpeech 2 has it, and batch norm of channels behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm = nn.LSTM(4, 3, bidirectional=True), nn.GroupNorm(2, 6)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x.permute(2, 0, 1), lengths, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.rnn(packed)[0])
        return self.norm(y.permute(1, 2, 0))


@pytest.mark.parametrize("lengths", [[12, 5, 9], [5, 9, 12]], ids=str)
def test_packed_sequences_through_a_recurrent_layer(lengths: list[int]) -> None:
    model, x = randomized(Packed()), batch((3, 4, 12), lengths, -1, junk=3.0)
    with nk.lengths(lengths) as padded:
        y = model(x, torch.tensor(lengths))
        assert padded.lengths_of(y).tolist() == lengths
    for n, one in enumerate(apart(x, lengths, 2)):
        assert_equal64(y[n : n + 1, :, : lengths[n]], model(one, torch.tensor([lengths[n]])))


class Doubled(torch.autograd.Function):
    """An operation of somebody's own, computed where no function mode sees it."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.from_numpy(2 * x.detach().numpy())

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x)


def test_modules_of_somebodys_own_operations_are_laid_beside_their_inputs() -> None:
    model, x = nn.Sequential(Double(), nn.GroupNorm(2, 4)).double(), batch((3, 4, 12), LENGTHS, -1, junk=3.0)
    with nk.lengths(LENGTHS):
        y = model(x)
    for n, one in enumerate(apart(x, LENGTHS, 2)):
        assert_equal64(y[n : n + 1, :, : LENGTHS[n]], model(one))


class Transformer(nn.Module):
    """Tokens, positions, attention with the model's own mask, and a norm of channels in front of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(20, 8), nn.Parameter(torch.randn(16, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.InstanceNorm1d(8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        x = self.encoder(x, src_key_padding_mask=~keep)
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_tokens_through_a_transformer(training: bool) -> None:
    model = randomized(Transformer()).train(training)
    tokens = torch.randint(0, 20, (3, 12), generator=torch.Generator().manual_seed(0))
    with nk.lengths(LENGTHS):
        y = model(tokens, nk.mask_from_lengths(LENGTHS, 12))
    for n, length in enumerate(LENGTHS):
        alone = model(tokens[n : n + 1, :length], torch.ones(1, length, dtype=torch.bool))
        assert_equal64(y[n : n + 1, :length], alone)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.last = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.last(F.relu(self.norm(self.conv(x)) + x)))


def test_an_accelerated_model_is_the_same() -> None:
    model, x = randomized(Residual()).eval(), batch((3, 4, 12), LENGTHS, -1, junk=3.0)
    fast = nk.accelerate(model, x)
    with nk.lengths(LENGTHS):
        expected, y = model(x), fast(x)
    assert_equal64(y, expected)


def test_adapt_takes_real_values_alone() -> None:
    model, x = randomized(nn.Sequential(nn.BatchNorm1d(4))).eval(), batch((3, 4, 12), LENGTHS, -1, junk=3.0)
    with nk.lengths(LENGTHS), nk.adapt(model, prior=0):
        y = model(x)
    real = torch.cat([x[n, :, :length] for n, length in enumerate(LENGTHS)], 1)
    got = torch.cat([y[n, :, :length] for n, length in enumerate(LENGTHS)], 1)
    bn = model[0]
    xhat = (real - real.mean(1, keepdim=True)) / (real.var(1, correction=0, keepdim=True) + bn.eps).sqrt()
    assert_equal64(got, xhat * bn.weight.view(-1, 1) + bn.bias.view(-1, 1))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed")
def test_distributed_data_parallel_works(tmp_path: Path) -> None:
    """One rank: the wrapper's own way from the call to the model; lengths are each rank's."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, x = randomized(tcn(NORMS["batch"])), batch((3, 3, 12), LENGTHS, -1, junk=3.0)
        plain, wrapped = twins(model)
        wrapped = DistributedDataParallel(wrapped)
        with nk.lengths(LENGTHS):
            expected, y = plain(x), wrapped(x)
        assert torch.equal(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        for one, other in zip(wrapped.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    finally:
        torch.distributed.destroy_process_group()
