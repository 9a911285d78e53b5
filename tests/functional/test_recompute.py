"""Outputs computed again: bit for bit the forward's, never kept twice, and nothing left behind."""

from __future__ import annotations

import copy
import gc
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.functional import _autograd, recompute
from normkit.kernels import native
from tests.cases import DTYPES, EPS, gaussian, generator
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_same

BACKENDS = ["native", "aten"] if native.available() else ["aten"]
FUSED = needs_native  # without the core the choice of paths takes composed operations, whose outputs are kept


@pytest.fixture(autouse=True)
def nothing_stays_on() -> Iterator[None]:
    yield
    assert _autograd.output_listener is None
    assert recompute._local.recorder is None


def memory(tensor: Tensor) -> StorageWeakRef:
    """Expires with the tensor's memory."""
    return StorageWeakRef(tensor.untyped_storage())


def kept(x: Tensor) -> Tensor:
    """Something behind a norm that keeps its input: x * p."""
    return x * torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype).view(-1, *[1] * (x.dim() - 2)).requires_grad_()


class Masked(nk.BatchNorm2d):
    """Its last two columns are padding."""

    def forward(self, input: Tensor) -> Tensor:
        mask = torch.arange(input.shape[-1]) < input.shape[-1] - 2
        return super().forward(input, mask=mask.expand(input.shape[0], *input.shape[2:]))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "masked": lambda: Masked(6, EPS, activation="relu"),
    "ghost": lambda: nk.GhostBatchNorm2d(6, EPS, virtual_batch_size=2),
    "renorm": lambda: nk.BatchRenorm2d(6, EPS),  # never made again: its output is kept
    "batch": lambda: nk.BatchNorm2d(6, EPS),
    "batch_relu": lambda: nk.BatchNorm2d(6, EPS, activation="relu"),
    "batch_silu": lambda: nk.BatchNorm2d(6, EPS, activation="silu"),
    "batch_softplus": lambda: nk.BatchNorm2d(6, EPS, activation="softplus"),  # in no kernel: an operation of its own
    "batch_cumulative": lambda: nk.BatchNorm2d(6, EPS, momentum=None, affine=False),
    "frozen": lambda: nk.FrozenBatchNorm2d(6, EPS, activation="relu"),
    "group_relu": lambda: nk.GroupNorm(2, 6, EPS, activation="relu"),
    "instance": lambda: nk.InstanceNorm2d(6, EPS, affine=True, track_running_stats=True),
    "layer_2d": lambda: nk.LayerNorm2d(6, EPS),
    "layer": lambda: nk.LayerNorm(5, EPS),
    "rms": lambda: nk.RMSNorm(5, EPS),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_the_output_is_made_again_bit_for_bit(
    make: Callable[[], nn.Module], dtype: torch.dtype, layout: torch.memory_format, training: bool, backend: str
) -> None:
    x = gaussian((3, 6, 4, 5), generator(0), mean=40.0).to(dtype).contiguous(memory_format=layout).requires_grad_()
    norm = make().to(torch.promote_types(dtype, torch.float32)).train(training)
    if backend == "aten" and make in (NORMS["masked"], NORMS["ghost"], NORMS["renorm"]):
        pytest.skip("PyTorch has no such kernel")
    with nk.backend(backend), nk.recompute_outputs():
        y = norm(x)
        out = kept(y)
    expected, gone = y.detach().clone(), memory(y)
    buffers = copy.deepcopy(list(norm.buffers()))
    del y
    again = out.grad_fn._saved_self  # type: ignore[union-attr]  # of x * p
    assert_same(again, expected)
    assert again.stride() == expected.stride()
    if backend == "native":
        # an activation that the kernel lacks, and the copy of a planar layer norm, are operations of their own
        own = make is not NORMS["batch_softplus"] and (make is not NORMS["layer_2d"] or layout is torch.channels_last)
        assert gone.expired() == own or make in (NORMS["masked"], NORMS["ghost"], NORMS["renorm"])
    assert all(map(torch.equal, norm.buffers(), buffers))


class Block(nn.Module):
    """The end of a residual network: two blocks, a projection, a head; norms and convolutions as given."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 6, 3), norm("relu")
        self.a, self.norm_a = nn.Conv2d(6, 6, 1), norm("relu")
        self.project, self.norm_p = nn.Conv2d(6, 6, 1), norm(None)
        self.b, self.norm_b = nn.Conv2d(6, 6, 1), norm("relu")
        self.c, self.norm_c = nn.Conv2d(6, 6, 1), norm("silu")
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        x = self.norm_a(self.a(x), residual=self.norm_p(self.project(x)))
        x = self.norm_b(self.b(x), residual=x)
        x = self.norm_c(self.c(x), residual=x)
        return self.head(x.mean((2, 3)))


NETS = {
    "batch": lambda activation: nk.BatchNorm2d(6, EPS, activation=activation),
    "group": lambda activation: nk.GroupNorm(3, 6, EPS, activation=activation),
    "instance": lambda activation: nk.InstanceNorm2d(6, EPS, affine=True, activation=activation),
}


def step(net: nn.Module, x: Tensor, context: AbstractContextManager[Any]) -> list[Tensor]:
    """Loss, gradients and buffers of one training step of a copy."""
    net = copy.deepcopy(net)
    x = x.clone().requires_grad_()
    with context:
        loss = net(x).square().sum()
    loss.backward()
    assert x.grad is not None
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return [loss.detach(), x.grad, *gradients, *(b.double() for b in net.buffers())]


def assert_all_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("depth", [1, 2, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_step_is_the_same_step(make: Callable[..., nn.Module], dtype: torch.dtype, depth: int) -> None:
    net = Block(make).to(dtype)
    x = gaussian((4, 3, 6, 6), generator(1)).to(dtype)
    assert_all_same(step(net, x, nk.recompute_outputs(depth=depth)), step(net, x, nullcontext()))


@FUSED
def test_each_output_is_made_once_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that two layers wait for, and one that is a residual on the way to another."""
    made: list[Any] = []
    original = recompute._Recipe._make
    monkeypatch.setattr(recompute._Recipe, "_make", lambda self: made.append(self) or original(self))
    net = Block(NETS["batch"])
    with nk.recompute_outputs(depth=9):
        loss = net(torch.randn(4, 3, 6, 6)).sum()
    loss.backward(retain_graph=True)
    # first, norm_p, norm_a, norm_b; nobody keeps norm_c's output: the mean needs its size alone
    assert len(made) == len(set(made)) == 4
    assert all(recipe.made is None and recipe.waiting == 0 for recipe in made)
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    loss.backward()
    assert_all_same([p.grad for p in net.parameters() if p.grad is not None], [2 * gradient for gradient in before])
    assert all(recipe.made is None for recipe in made)


@FUSED
@pytest.mark.parametrize(("depth", "chain"), [(1, [True, False, True]), (2, [True, True, False]), (3, [True] * 3)])
def test_depth_limits_the_chain_of_residuals(depth: int, chain: list[bool]) -> None:
    """Beyond it an output is kept, and the next one starts from that."""
    norm = nk.BatchNorm1d(3)
    gone = []
    with nk.recompute_outputs(depth=depth):
        y, outs = None, []
        for _ in chain:
            y = norm(torch.randn(4, 3, requires_grad=True), residual=y)
            gone.append(memory(y))
            outs.append(kept(y))
    del y
    assert [reference.expired() for reference in gone] == chain


@FUSED
@pytest.mark.parametrize("somebody_keeps_it", [True, False])
def test_a_residual_stands_in_for_the_output_only_if_it_is_kept_anyway(somebody_keeps_it: bool) -> None:
    residual = torch.randn(4, 3, requires_grad=True) + 1
    with nk.recompute_outputs():
        other = kept(residual) if somebody_keeps_it else None
        y = nk.BatchNorm1d(3, activation="relu")(torch.randn(4, 3), residual=residual)
        out = kept(y)
    of_output, of_residual = memory(y), memory(residual)
    del y, residual
    assert of_output.expired() == somebody_keeps_it
    assert of_residual.expired() != somebody_keeps_it
    del other
    out.sum().backward()


@FUSED
def test_an_output_that_is_still_there_is_used() -> None:
    with nk.recompute_outputs():
        y = nk.BatchNorm1d(3)(torch.randn(4, 3))
        out = kept(y)
    assert out.grad_fn._saved_self.data_ptr() == y.data_ptr()  # type: ignore[union-attr]


@FUSED
def test_views_of_an_output_are_made_from_it() -> None:
    layer = nk.BatchNorm2d(4)
    with nk.recompute_outputs():
        y = layer(torch.randn(3, 4, 2, 2))
        flat, part = kept(y.flatten(1)), kept(y[:, 1:3])
    expected, gone = y.detach().clone(), memory(y)
    del y
    assert gone.expired()
    assert_same(flat.grad_fn._saved_self, expected.flatten(1))  # type: ignore[union-attr]
    assert_same(part.grad_fn._saved_self, expected[:, 1:3])  # type: ignore[union-attr]


@pytest.mark.parametrize("change", [Tensor.relu_, lambda y: y[:, 0].zero_()], ids=["whole", "view"])
def test_an_output_changed_in_place_is_kept(change: Callable[[Tensor], Tensor]) -> None:
    def gradients(context: AbstractContextManager[Any]) -> list[Tensor]:
        x, weight = gaussian((4, 3), generator(3)).requires_grad_(), torch.ones(2, 3, requires_grad=True)
        with context:
            y = nk.BatchNorm1d(3).double()(x)
            change(y)
            loss = F.linear(y, weight.double()).square().sum()
        del y
        return list(torch.autograd.grad(loss, [x, weight]))

    assert_all_same(gradients(nk.recompute_outputs()), gradients(nullcontext()))


@FUSED
def test_an_output_changed_after_it_was_kept_is_made_as_it_was() -> None:
    with nk.recompute_outputs():
        y = nk.BatchNorm1d(3)(torch.randn(4, 3))
        expected = y.detach().clone()
        out = kept(y)
        y.detach().zero_()
    assert_same(out.grad_fn._saved_self, expected)  # type: ignore[union-attr]


MODIFIED = r"modified by an inplace operation: \[torch.FloatTensor .*\] is at version \d; expected version \d instead"


# composed operations keep the input widened, not the input
@pytest.mark.parametrize("what", [pytest.param("input", marks=FUSED), "weight", "residual", "following"])
def test_what_is_needed_must_not_change(what: str) -> None:
    """The norm's input and parameters, and everything else that autograd keeps: hooks switch torch's own check off."""
    layer, following = nk.BatchNorm1d(3, activation="relu"), nn.Linear(3, 2)
    x, r = torch.randn(4, 3, requires_grad=True) * 1, torch.randn(4, 3, requires_grad=True) * 1
    with nk.recompute_outputs():
        branch = kept(r)
        out = following(layer(x, residual=r))
    changed = {"input": x, "weight": layer.weight, "residual": r, "following": following.weight}[what]
    changed.detach().add_(1)
    with pytest.raises(RuntimeError, match=MODIFIED):
        (out.sum() + branch.sum()).backward()


@FUSED
def test_nothing_outlives_the_graph() -> None:
    def graph() -> tuple[list[StorageWeakRef], Tensor]:
        x = torch.randn(4, 3, requires_grad=True) * 1
        layer = nk.BatchNorm1d(3)
        y = layer(x)
        out = kept(kept(y).relu())
        return [memory(tensor) for tensor in (x, y, out)], out.sum()

    gc.collect()
    gc.disable()
    try:
        with nk.recompute_outputs():
            references, loss = graph()
            assert [reference.expired() for reference in references] == [False, True, True]
            recorder = recompute._local.recorder
            assert recorder is not None
            assert len(recorder.recipes) == 1
            del loss
            assert all(reference.expired() for reference in references)
            assert len(recorder.recipes) == len(recorder.kept) == 0
    finally:
        gc.enable()


@FUSED
def test_an_output_that_stays_keeps_its_input_no_longer_than_the_backward() -> None:
    layer = nk.BatchNorm1d(3)
    with nk.recompute_outputs():
        x = torch.randn(4, 3, requires_grad=True) * 1
        y = layer(x)
        gone = memory(x)
        del x
        kept(y).sum().backward()
        assert gone.expired()
        assert y.shape == (4, 3)


def test_an_exception_leaves_nothing_behind() -> None:
    with pytest.raises(KeyboardInterrupt), nk.recompute_outputs():
        raise KeyboardInterrupt
    out = kept(torch.randn(4, 3, requires_grad=True) * 1)
    assert out.grad_fn is not None


def test_contexts_nest_and_decorate() -> None:
    net = Block(NETS["batch"])
    x = gaussian((4, 3, 6, 6), generator(1)).float()
    expected = step(net, x, nullcontext())

    @nk.recompute_outputs(depth=1)
    def forward(x: Tensor) -> Tensor:
        return type(net).forward(inner, x)

    inner = copy.deepcopy(net)
    wrapped = copy.deepcopy(inner)
    inner.__dict__["forward"] = forward
    with nk.recompute_outputs(depth=3):
        loss = inner(x).square().sum()
    loss.backward()
    got = [p.grad for p in inner.parameters() if p.grad is not None]
    assert_all_same(got, expected[2 : 2 + len(got)])
    assert_all_same(step(wrapped, x, nk.recompute_outputs()), expected)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "saved_tensor_hooks"])
def test_checkpoints_inside(reentrant: bool) -> None:
    """The checkpoint's own hooks are the inner ones; its recomputation is a forward without a context."""
    net = Block(NETS["batch"])
    x = gaussian((4, 3, 6, 6), generator(1)).float()

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.after = net, nk.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(checkpoint(self.net, x, use_reentrant=reentrant))

    whole = Checkpointed()
    assert_all_same(step(whole, x, nk.recompute_outputs()), step(whole, x, nullcontext()))


@FUSED
def test_an_input_that_other_hooks_keep_away_is_not_kept_for_the_output() -> None:
    with nk.recompute_outputs():
        x = torch.randn(4, 3, requires_grad=True) * 1
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.shape, torch.zeros):
            y = nk.BatchNorm1d(3)(x)
        out = kept(y)
        gone, there = memory(x), memory(y)
        del x, y
        assert gone.expired()
        assert not there.expired()
        del out


@pytest.mark.parametrize("inside", [True, False], ids=["backward_inside", "backward_outside"])
def test_second_derivatives(inside: bool) -> None:
    def derivatives(context: AbstractContextManager[Any]) -> list[Tensor]:
        layer = nk.BatchNorm1d(3, activation="silu").double()
        x, w = gaussian((4, 3), generator(2)).requires_grad_(), torch.ones(2, 3).double().requires_grad_()
        with context:
            loss = F.linear(layer(x), w).square().sum()
            first = torch.autograd.grad(loss, [x, w], create_graph=True) if inside else ()
        first = first or torch.autograd.grad(loss, [x, w], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, w, *layer.parameters()])
        return [*first, *second]

    assert_all_same(
        [t.detach() for t in derivatives(nk.recompute_outputs())], [t.detach() for t in derivatives(nullcontext())]
    )


@pytest.mark.filterwarnings("ignore")  # Dynamo warns about itself
def test_no_effect_in_compiled_code() -> None:
    net = Block(NETS["batch"])
    x = gaussian((4, 3, 6, 6), generator(1)).float()
    expected = step(net, x, nullcontext())

    def forward(x: Tensor) -> Tensor:
        with nk.recompute_outputs():
            return net(x)

    torch._dynamo.reset()
    with nk.recompute_outputs():
        loss = torch.compile(forward, backend="aot_eager", fullgraph=False)(x.clone()).square().sum()
    loss.backward()
    got = [p.grad for p in net.parameters() if p.grad is not None]
    for ours, theirs in zip(got, expected[2:], strict=False):
        torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


class Silent(TorchDispatchMode):
    """Changes nothing, and is seen by every operation of torch."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@FUSED
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # fake tensors look at it
@pytest.mark.parametrize("viewed", [False, True], ids=["itself", "viewed"])
@pytest.mark.parametrize("there", [False, True], ids=["gone", "there"])
@pytest.mark.parametrize("mode", [Silent, lambda: FakeTensorMode(allow_non_fake_inputs=True)], ids=["silent", "fake"])
def test_an_output_is_made_again_under_a_dispatch_mode(
    mode: Callable[[], AbstractContextManager[Any]], there: bool, viewed: bool
) -> None:
    x = gaussian((4, 3, 6), generator(1)).float().requires_grad_()

    def loss() -> tuple[Tensor, Any]:
        y = nk.functional.batch_norm(x, None, None, training=True, eps=EPS)
        z = y.reshape(4, 18) if viewed else y
        return (z * z).sum(), z if there else None

    with nk.recompute_outputs():
        found, holds = loss()
    with mode():
        (dx,) = torch.autograd.grad(found, x)
    del holds
    if isinstance(dx, FakeTensor):
        assert dx.shape == x.shape  # as where the output is kept: real memory went in
    else:
        torch.testing.assert_close(dx, torch.autograd.grad(loss()[0], x)[0])


def test_no_effect_without_gradients_or_in_another_thread() -> None:
    layer, seen = nk.BatchNorm1d(3), []

    def elsewhere() -> None:
        y = layer(torch.randn(4, 3))
        out, there = kept(y), memory(y)
        del y
        seen.append(not there.expired())
        del out

    with nk.recompute_outputs():
        with torch.no_grad():
            y = layer(torch.randn(4, 3))
        out, there = kept(y), memory(y)
        del y
        assert not there.expired()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == [True]
    del out


def test_wrong_use() -> None:
    with (
        pytest.raises(ValueError, match="depth must be at least 1, the output's own norm, got 0"),
        nk.recompute_outputs(depth=0),
    ):
        pass  # pragma: no cover

    def loss(x: Tensor) -> Tensor:
        with nk.recompute_outputs():
            return nk.BatchNorm1d(3)(x).sum()

    with pytest.raises(RuntimeError, match="saved tensor hooks"):
        torch.func.grad(loss)(torch.randn(4, 3))


def test_the_code_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recompute.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/recompute.md", "exec"), names)
    assert all(p.grad is not None for p in names["model"].parameters())
