"""recalibrate gives the statistics of the whole data set, whatever the layer, the cut into batches and the values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference
from tests.cases import generator
from tests.statistics.nets import BATCH_NORMS, ForeignBatchNorm, assert_statistics, data, net

CUTS = {"even": (4, 4, 4), "uneven": (4, 7, 2), "last_of_one": (5, 6, 1), "one_batch": (9,), "first_of_one": (1, 8)}
TRUTH = {"population": reference.population, "batch_average": reference.batch_average}


def under_batch_statistics(model: nn.Sequential, x: Tensor) -> Tensor:
    """The input of the second norm when the first normalizes by the batch, in float64."""
    mean, var = x.double().mean((0, 2, 3), keepdim=True), x.double().var((0, 2, 3), keepdim=True, correction=0)
    convolution = copy.deepcopy(model[1]).double()
    return convolution((x.double() - mean) / (var + 1e-5).sqrt())


@pytest.mark.parametrize("estimator", TRUTH)
@pytest.mark.parametrize("norm", BATCH_NORMS.values(), ids=BATCH_NORMS)
@pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)
def test_first_layer_has_the_statistics_of_the_reference(norm, sizes, estimator):
    batches = data(sizes)
    model = net(norm)
    nk.recalibrate(model, batches, estimator=estimator)
    assert_statistics(model[0], *TRUTH[estimator]([b.double() for b in batches]))


@pytest.mark.parametrize("norm", ["torch", "normkit", "normkit_ghost", "normkit_renorm", "torch_sync", "normkit_sync"])
def test_second_layer_sees_the_first_under_batch_statistics(norm):
    batches, model = data((4, 7)), net(BATCH_NORMS[norm])
    nk.recalibrate(model, batches)
    mean, var = reference.population([under_batch_statistics(model, b) for b in batches])
    # the inputs are float32 results of a convolution over 27 terms: 27 u and a few roundings of the first norm
    torch.testing.assert_close(model[2].running_mean.double(), mean, rtol=4e-6, atol=4e-6)
    torch.testing.assert_close(model[2].running_var.double(), var, rtol=4e-6, atol=0)


def test_estimators_agree_on_independent_data_and_differ_on_clustered_data():
    """The variance between batches counts: 10.07 where the average of batches of 2 says 1.08."""
    g = generator(3)
    centres = 3 * torch.randn(2000, 1, 1, generator=g)
    clustered = list((centres + torch.randn(2000, 2, 1, generator=g)).unbind())
    iid = list(torch.randn(2000, 2, 1, generator=g).unbind())

    def variance(batches: list[Tensor], estimator: str) -> float:
        layer = nn.BatchNorm1d(1)
        nk.recalibrate(layer, batches, estimator=estimator)
        return layer.running_var.item()

    # a variance of 4000 normal values has a relative standard error of sqrt(2/4000) = 2.2 %; 5 of them
    assert variance(clustered, "population") == pytest.approx(10.0, rel=0.11)
    assert variance(clustered, "batch_average") == pytest.approx(1.0, rel=0.16)
    assert variance(iid, "population") == pytest.approx(variance(iid, "batch_average"), rel=0.11)


@pytest.mark.parametrize("norm", ["torch", "normkit", "foreign"])
@pytest.mark.parametrize(("mean", "std"), [(3000.0, 0.01), (1000.0, 1.0), (0.0, 1e-3), (-1e4, 1.0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_statistics_are_exact_at_mean_far_above_std(norm, mean, std, layout):
    batches = [b.to(memory_format=layout) for b in data((8, 8, 3), spread=0.0, mean=mean, std=std)]
    model = net(BATCH_NORMS[norm])
    nk.recalibrate(model, batches)
    assert_statistics(model[0], *reference.population([b.double() for b in batches]))


@pytest.mark.parametrize("norm", ["torch", "normkit"])
def test_the_cut_into_batches_does_not_matter_to_the_first_layer(norm):
    (whole,) = data((24,))
    for size in (24, 5, 2):
        model = net(BATCH_NORMS[norm])
        nk.recalibrate(model, whole.split(size))
        assert_statistics(model[0], whole.double().mean((0, 2, 3)), whole.double().var((0, 2, 3)))


def test_a_shared_layer_is_merged_over_its_calls():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(2 * x + 5) + self.norm(x)

    g, model = generator(), Twice()
    batches = [torch.randn(n, 3, generator=g) for n in (6, 5)]
    report = nk.recalibrate(model, batches)
    calls = [part.double() for b in batches for part in (2 * b + 5, b)]
    assert_statistics(model.norm, *reference.population(calls))
    assert (report["norm"].calls, report["norm"].values) == (4, 22)


def test_values_under_a_mask_do_not_count():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nk.BatchNorm1d(3)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.norm(x, mask=nk.mask_from_lengths(lengths, x.shape[-1]))

    g, model = generator(), Masked()
    lengths = [torch.tensor([5, 2, 0]), torch.tensor([1, 0, 0]), torch.tensor([0, 0, 0]), torch.tensor([5, 5, 4])]
    batches = []
    for length in lengths:
        x = torch.randn(3, 3, 5, generator=g)
        x[~nk.mask_from_lengths(length, 5).unsqueeze(1).expand_as(x)] = float("nan")
        batches.append({"x": x, "lengths": length})
    report = nk.recalibrate(model, batches)
    real = torch.cat([b["x"][i, :, :n].T.double() for b in batches for i, n in enumerate(b["lengths"].tolist())])
    assert report["norm"].values == len(real) == 22
    assert_statistics(model.norm, real.mean(0), real.var(0))


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d, nk.InstanceNorm2d], ids=["torch", "normkit"])
@pytest.mark.parametrize("estimator", TRUTH)
def test_instance_norm_gets_the_averages_over_samples(norm, estimator):
    batches = data((3, 5, 1))
    layer = norm(3, track_running_stats=True)
    report = nk.recalibrate(layer, batches, estimator=estimator)
    samples = torch.cat(batches).double()
    assert_statistics(layer, samples.mean((2, 3)).mean(0), samples.var((2, 3)).mean(0))
    assert report[""].values == 9
    assert layer.track_running_stats


@pytest.mark.parametrize("norm", [nn.InstanceNorm1d, nk.InstanceNorm1d], ids=["torch", "normkit"])
def test_instance_norm_without_a_batch_axis(norm):
    g = generator()
    batches = [torch.randn(3, 7, generator=g) for _ in range(4)]
    layer = norm(3, track_running_stats=True)
    nk.recalibrate(layer, batches)
    samples = torch.stack(batches).double()
    assert_statistics(layer, samples.mean(2).mean(0), samples.var(2).mean(0))


def test_masked_instance_norm_leaves_short_samples_out():
    g, layer = generator(), nk.InstanceNorm1d(3, track_running_stats=True)
    x, lengths = torch.randn(4, 3, 6, generator=g), torch.tensor([6, 3, 1, 0])
    mask = nk.mask_from_lengths(lengths, 6)
    nk.recalibrate(layer, [(x, mask)], forward=lambda model, batch: model(batch[0], mask=batch[1]))
    real = [x[0].double(), x[1, :, :3].double()]
    mean, var = (torch.stack([getattr(r, f)(1) for r in real]).mean(0) for f in ("mean", "var"))
    assert_statistics(layer, mean, var)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    batches, model = [b.to(dtype) for b in data()], net(nk.BatchNorm2d).to(dtype)
    nk.recalibrate(model, batches)
    assert model[0].running_mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_statistics(model[0], *reference.population([b.double() for b in batches]))


def test_more_calls_than_are_merged_at_once():
    g = generator()
    batches = [torch.randn(int(n), 3, generator=g) + n for n in torch.randint(1, 9, (70,), generator=g)]
    layer = nn.BatchNorm1d(3)
    nk.recalibrate(layer, batches)
    assert_statistics(layer, *reference.population([b.double() for b in batches]))


def test_dropout_is_off_also_inside_a_norm():
    """The statistics are for evaluation: dropout before a norm would add variance that evaluation does not have."""
    model = nn.Sequential(nn.Dropout(0.5), ForeignBatchNorm(3)).train()
    batches = data((8, 8))
    nk.recalibrate(model, batches)
    assert_statistics(model[1], *reference.population([b.double() for b in batches]))


def test_statistics_are_written_in_place_and_nothing_else_moves():
    model = net()
    mean, var, counter = model[0].running_mean, model[0].running_var, model[0].num_batches_tracked
    weights = [p.detach().clone() for p in model.parameters()]
    nk.recalibrate(model, data())
    assert model[0].running_mean is mean
    assert model[0].running_var is var
    assert mean.abs().max() > 0
    assert counter == 0
    assert model[0].momentum == 0.1
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize("norm", ["torch", "normkit"])
def test_the_input_may_be_named_and_the_mask_none(norm):
    layer, batches = BATCH_NORMS[norm](3), data()
    extra = {"mask": None, "residual": None} if norm == "normkit" else {}
    nk.recalibrate(layer, batches, forward=lambda model, batch: model(input=batch, **extra))
    assert_statistics(layer, *reference.population([b.double() for b in batches]))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nk.BatchNorm1d], ids=["torch", "normkit"])
def test_one_value_per_channel_is_normalized_by_what_was_merged_so_far(norm):
    model, g = nn.Sequential(norm(3), norm(3)), generator()
    batches = [100 + 5 * torch.randn(n, 3, generator=g) for n in (8, 1)]
    nk.recalibrate(model, batches)
    first, last = (b.double() for b in batches)
    both = torch.cat([first, last])
    seen = [(first - first.mean(0)) / (first.var(0, correction=0) + 1e-5).sqrt(),
            (last - both.mean(0)) / (both.var(0, correction=0) + 1e-5).sqrt()]  # fmt: skip
    mean, var = reference.population(seen)
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=1e-5, atol=1e-5)  # the input's float32: 20 u
    torch.testing.assert_close(model[1].running_var.double(), var, rtol=1e-5, atol=0)
