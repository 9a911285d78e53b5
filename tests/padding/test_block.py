"""The block itself: what it refuses, what it says, and that everything is as before when it is over."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import CheckpointError, checkpoint

import normkit as nk
from normkit._torch import count_function_modes
from normkit.functional import mask as masks
from tests.padding.models import batch
from tests.padding.test_layers import Doubled
from tests.tolerances import assert_equal64

LENGTHS = [9, 4, 7]


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 3, padding=1)
    ).double()


def padded(junk: float = 0.0) -> Tensor:
    return batch((3, 3, 9), LENGTHS, -1, junk=junk)


def assert_nothing_is_left() -> None:
    assert count_function_modes() == 0
    assert masks.follow is None
    assert masks.find is None
    assert not torch_module._global_forward_pre_hooks
    assert not torch_module._global_forward_hooks


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        (torch.ones(3), TypeError, r"lengths must be integers, got torch\.float32: use lengths\.long\(\)"),
        (torch.ones(3, dtype=torch.bool), TypeError, "got torch.bool"),
        (torch.ones(3, 2, dtype=torch.int64), ValueError, r"one number a sample, shape \(N,\), got shape \(3, 2\)"),
        ([3, -1, 2], ValueError, "every length must be 0 or more, got -1"),
    ],
)
def test_what_is_no_length_is_refused_before_the_block(lengths: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        nk.lengths(lengths)


@pytest.mark.parametrize(
    ("lengths", "dim", "words"),
    [
        ([9, 4], -1, r"lengths are for 2 samples, and the input of shape \(3, 3, 9\) has 3 along axis 0"),
        (
            [10, 4, 7],
            -1,
            r"every length must lie in 0\.\.9, the size of axis 2 of the input .*, got 10; .* dim= says which",
        ),
        (LENGTHS, 1, r"every length must lie in 0\.\.3"),
        (LENGTHS, 5, r"the input of shape \(3, 3, 9\) has no axis 5"),
    ],
)
def test_lengths_that_do_not_fit_the_input_are_refused(lengths: list[int], dim: int, words: str) -> None:
    with pytest.raises(ValueError, match=words), nk.lengths(lengths, dim):
        net()(padded())
    assert_nothing_is_left()


def test_masks_that_are_no_boxes_or_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"mask must be a bool tensor .* got torch.float32: use mask.bool\(\)"):
        nk.mask(torch.ones(3, 9))
    with pytest.raises(ValueError, match=r"shape \(N, T\) or \(N, \*spatial\), got \(3,\)"):
        nk.mask(torch.ones(3, dtype=torch.bool))
    holes = torch.ones(3, 9, dtype=torch.bool)
    holes[1, 2] = False
    with pytest.raises(ValueError, match=r"real values must come first .* norm\(x, mask=mask\)"):
        nk.mask(holes)
    with pytest.raises(ValueError, match="dim must name one axis of the input for each of the mask's 2 behind"):
        nk.mask(torch.ones(3, 4, 4, dtype=torch.bool), dim=-1)
    with (
        pytest.raises(ValueError, match=r"the mask has 8 positions where axis 2 .* has 9"),
        nk.mask(torch.ones(3, 8).bool()),
    ):
        net()(padded())


def test_compiled_programs_and_data_parallel_are_refused_or_run_eagerly() -> None:
    model = net().eval()
    with nk.lengths(LENGTHS):
        expected = model(padded(junk=5.0))
    compiled = torch.compile(model, backend="eager")
    compiled(padded())
    filters = list(warnings.filters)  # the first call of torch 2.4's compiler adds its own
    with nk.lengths(LENGTHS):
        assert torch.equal(compiled(padded(junk=5.0)), expected)
    compiled(padded())
    assert warnings.filters == filters
    assert_nothing_is_left()

    def inside(x: Tensor) -> Tensor:
        with nk.lengths(LENGTHS):
            return model(x)

    # Dynamo of 2.8 says no more than that something was raised; those of 2.6 and older may run the block as it is
    for fullgraph in (True, False) if torch.__version__ >= (2, 8) else ():
        with pytest.raises(Exception, match=r"follows a run in eager mode|Observed exception"):
            torch.compile(inside, backend="eager", fullgraph=fullgraph)(padded())
    # those of 2.4 and 2.6 export nothing while what is compiled runs as it is
    with (
        pytest.raises(Exception, match=r"follows a run in eager mode|Observed exception|no tensor operations|found a"),
        nk.lengths(LENGTHS),
    ):
        torch.export.export(model, (padded(),))
    assert_nothing_is_left()
    parallel = nn.DataParallel(model)
    with nk.lengths(LENGTHS):
        assert torch.equal(parallel(padded(junk=5.0)), expected)  # without devices it calls the model itself
    parallel.device_ids = [0, 1]
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"), nk.lengths(LENGTHS):
        parallel(padded())


# --- what is said ----------------------------------------------------------------------------------------------------
def test_a_block_in_which_no_norm_took_a_mask_warns() -> None:
    with pytest.warns(UserWarning, match="no norm inside of the block took a mask"), nk.lengths(LENGTHS):
        pass
    with pytest.warns(UserWarning, match="no norm inside of the block took a mask"), nk.lengths(LENGTHS):
        nn.Conv1d(3, 4, 3).double()(padded())


class Loses(nn.Module):
    """A norm before and one behind a step that nobody can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(9).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(
            torch.einsum("nct,ndt->ncd", self.first(x), torch.ones(3, 5, 9, dtype=x.dtype)).repeat(1, 3, 1)
        )


def test_a_norm_behind_a_lost_axis_is_named() -> None:
    words = r"1 calls of norms took no mask.*lost at torch's einsum\); 1 took one"
    with pytest.warns(UserWarning, match=words), nk.lengths(LENGTHS):
        Loses()(padded())


class Hides(nn.Module):
    """An operation that no function mode sees in front of a norm, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Doubled.apply(self.first(x)))


def test_a_norm_of_an_input_that_is_not_known_is_counted() -> None:
    with pytest.warns(UserWarning, match="1 calls of norms took no mask"), nk.lengths(LENGTHS):
        Hides()(padded())


def test_lengths_behind_layers_can_be_asked_for() -> None:
    model = nn.Sequential(net(), nn.MaxPool1d(2))
    with nk.lengths(LENGTHS) as block:
        y = model(padded())
        assert block.lengths_of(y).tolist() == [4, 2, 3]
        with pytest.raises(ValueError, match=r"padding along axis 1 of a tensor of shape \(3, 2, 4\)"):
            block.lengths_of(y, 1)
    with pytest.raises(ValueError, match="nothing is known of padding"):
        block.lengths_of(y)


def test_what_comes_later_and_does_not_fit_is_something_else() -> None:
    """As the steps of a decoder, a token at a time; a norm of channels in it is told of."""
    step = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).double()
    with nk.lengths(LENGTHS):
        net()(padded())
        step(torch.zeros(3, 1, 3).double())

    def run() -> None:
        with nk.lengths(LENGTHS):
            net()(padded())
            nn.BatchNorm1d(3).double()(padded()[:2])

    with pytest.warns(UserWarning, match="1 calls of norms took no mask"):
        run()


def test_losses_and_norms_behind_a_pool_are_no_reason_to_warn() -> None:
    model = nn.Sequential(net(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.BatchNorm1d(2).double())
    with nk.lengths(LENGTHS):
        loss = nn.CrossEntropyLoss()(model(padded()), torch.tensor([0, 1, 0]))
    loss.backward()
    assert_nothing_is_left()


# --- what is left ----------------------------------------------------------------------------------------------------
def test_the_model_is_untouched_and_so_is_the_input() -> None:
    model, x = net(), padded(junk=float("nan"))
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    given = x.clone()
    with nk.lengths(LENGTHS, zero_input=True):
        inside = {name: dict(vars(module)) for name, module in model.named_modules()}
        model(x)
    assert torch.equal(x.isnan(), given.isnan())
    after = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert before.keys() == after.keys()
    for name, attributes in before.items():
        assert attributes.keys() == inside[name].keys() == after[name].keys()
        assert all(attributes[key] is after[name][key] for key in attributes)
    assert_nothing_is_left()


def test_an_exception_ends_the_block() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ArithmeticError("within")

    model = nn.Sequential(net(), Broken())
    with pytest.raises(ArithmeticError, match="within"), nk.lengths(LENGTHS):
        model(padded())
    assert_nothing_is_left()
    plain = net().eval()
    y = plain(padded(junk=5.0))
    with nk.lengths(LENGTHS):
        assert not torch.equal(plain(padded(junk=5.0)), y)
    assert torch.equal(plain(padded(junk=5.0)), y)


def test_blocks_nest_and_may_be_entered_again() -> None:
    model, x, other = net().eval(), padded(junk=2.0), padded(junk=2.0)[:2, :, :6]
    with nk.lengths(LENGTHS):
        expected = model(x)
    with nk.lengths([6, 3]):
        inner = model(other)
    block = nk.lengths(LENGTHS)
    for _ in range(2):
        with block:
            first = model(x)
            with nk.lengths([6, 3]):
                assert torch.equal(model(other), inner)
            assert torch.equal(model(x), first)
            assert torch.equal(first, expected)
    with block:
        with pytest.raises(RuntimeError, match="already entered"), block:
            pass  # pragma: no cover
        assert torch.equal(model(x), expected)
    assert_nothing_is_left()


def test_only_the_inner_block_counts_for_a_tensor_of_both() -> None:
    model, x = net().eval(), padded(junk=2.0)
    with nk.lengths([3, 8, 2]):
        expected = model(x)
    with nk.lengths(LENGTHS):
        model(x)
        with nk.lengths([3, 8, 2]):
            assert torch.equal(model(x), expected)


def test_each_thread_has_its_own_block() -> None:
    model, x = net().eval(), padded(junk=2.0)
    plain = model(x)
    expected = []
    for lengths in ([9, 4, 7], [3, 8, 2]):
        with nk.lengths(lengths):
            expected.append(model(x))
    results: dict[Any, list[Tensor]] = {}
    ready = threading.Barrier(3)

    def work(key: int, lengths: list[int] | None) -> None:
        if lengths is None:
            ready.wait()
            results[key] = [model(x) for _ in range(20)]
            return
        with nk.lengths(lengths):
            ready.wait()
            results[key] = [model(x) for _ in range(20)]

    threads = [threading.Thread(target=work, args=job) for job in enumerate(([9, 4, 7], [3, 8, 2], None))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key, truth in enumerate((*expected, plain)):
        assert len(results[key]) == 20
        assert all(torch.equal(one, truth) for one in results[key])
    assert_nothing_is_left()


def test_the_model_may_take_its_input_by_name_and_more_than_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 3).double()

        def forward(self, features: Tensor, keep: Tensor, other: Tensor | None = None) -> Tensor:
            assert keep.dtype == torch.bool
            return self.norm(features + (0 if other is None else other))

    model, x, keep = Two(), padded(junk=float("inf")), nk.mask_from_lengths(LENGTHS, 9)
    with nk.lengths(LENGTHS, zero_input=True):
        y = model(keep=keep, features=x, other=x)
    for n, length in enumerate(LENGTHS):
        assert_equal64(y[n : n + 1, :, :length], model(x[n : n + 1, :, :length], keep, x[n : n + 1, :, :length]))


def test_positions_first_and_positions_as_rows() -> None:
    """(T, N, C), and batch norm over rows of all positions."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.LayerNorm(3).double(), nn.BatchNorm1d(3).double()

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x)
            return self.norm(x.reshape(-1, 3)).view(x.shape)

    x, model = batch((3, 9, 3), LENGTHS, 1, junk=4.0), Rows()
    real = torch.cat([x[n, :length] for n, length in enumerate(LENGTHS)])
    other = Rows()
    expected = other(real)
    with nk.lengths(LENGTHS, dim=0):
        y = model(x.transpose(0, 1).contiguous()).transpose(0, 1)
    got = torch.cat([y[n, :length] for n, length in enumerate(LENGTHS)])
    assert_equal64(got, expected)
    assert_equal64(model.norm.running_var, other.norm.running_var)


def test_a_default_device_changes_nothing() -> None:
    """Lengths are counted on the CPU, where the model is."""
    model = nn.Sequential(net(), nn.AvgPool1d(3, 2, 1), nn.AdaptiveMaxPool1d(2))
    with nk.lengths(LENGTHS):
        expected = model.eval()(padded())
    with torch.device("meta"), nk.lengths(torch.tensor(LENGTHS, device="cpu")):
        assert torch.equal(model(x := padded_on_cpu()), expected), x.device


def padded_on_cpu() -> Tensor:
    with torch.device("cpu"):
        return padded()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_block_inside_of_a_checkpointed_function_works(reentrant: bool) -> None:
    def run(model: nn.Module, x: Tensor) -> Tensor:
        with nk.lengths(LENGTHS):
            return model(x)

    results = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        model, x = nk.convert(net(), "batch"), padded(junk=3.0).requires_grad_()
        y = checkpoint(run, model, x, use_reentrant=reentrant) if recomputes else run(model, x)
        y.square().sum().backward()
        results.append([x.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert_nothing_is_left()


def test_a_block_around_a_checkpoint_is_an_error_in_the_backward() -> None:
    model = net()
    with nk.lengths(LENGTHS):
        y = checkpoint(model, padded(junk=3.0).requires_grad_(), use_reentrant=False)
    with pytest.raises(CheckpointError):
        y.square().sum().backward()


def test_norms_called_as_functions_of_torch_take_masks() -> None:
    weight, bias, x = torch.rand(4).double(), torch.rand(4).double(), batch((3, 4, 9), LENGTHS, -1, junk=7.0)
    mean, var = torch.zeros(4).double(), torch.ones(4).double()
    mask = nk.mask_from_lengths(LENGTHS, 9)
    functions = {
        "batch": (lambda x: torch.batch_norm(x, weight, bias, mean, var, False, 0.1, 1e-5, False)),
        "group": (lambda x: torch.group_norm(x, 2, weight, bias, 1e-5, False)),
        "instance": (lambda x: torch.instance_norm(x, weight, bias, None, None, True, 0.1, 1e-5, False)),
        "layer": (lambda x: torch.layer_norm(x.mT, [4], weight, bias, 1e-5, False).mT),
        "rms": (lambda x: torch.rms_norm(x.mT, [4], weight, 1e-5).mT),
        "named": (lambda x: F.batch_norm(input=x, running_mean=None, running_var=None, training=True)),
    }
    expected = {
        "batch": nk.functional.batch_norm(x, mean, var, weight, bias, mask=mask),
        "group": nk.functional.group_norm(x, 2, weight, bias, mask=mask),
        "instance": nk.functional.instance_norm(x, None, None, weight, bias, mask=mask),
        "layer": nk.functional.layer_norm(x.mT, [4], weight, bias, mask=mask).mT,
        "rms": nk.functional.rms_norm(x.mT, [4], weight, 1e-5, mask=mask).mT,
        "named": nk.functional.batch_norm(x, None, None, training=True, mask=mask),
    }

    class Calls(nn.Module):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x)

    for name, function in functions.items():
        with nk.lengths(LENGTHS):
            y = Calls(function)(x)
        assert torch.equal(y, expected[name]), name


def test_added_norms_and_layers_with_a_residual_take_masks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.ln = nk.BatchNorm1d(4, activation="relu").double(), nk.LayerNorm(4).double()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.ln(self.bn(x, residual=2 * x).mT)
            return nk.functional.add_rms_norm(y, x.mT.contiguous(), (4,))

    x, model, mask = batch((3, 4, 9), LENGTHS, -1, junk=7.0), Block(), nk.mask_from_lengths(LENGTHS, 9)
    with nk.lengths(LENGTHS):
        y, total = model(x)
    expected = nk.LayerNorm(4).double()(nk.BatchNorm1d(4, activation="relu").double()(x, 2 * x, mask).mT, mask)
    assert_equal64(total, expected + x.mT)
    assert_equal64(y, nk.functional.rms_norm(expected + x.mT, (4,), mask=mask))
