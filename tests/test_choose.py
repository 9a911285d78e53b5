"""The choice of a path: one test per condition, each by its reason, and that a wrong choice would be refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import normkit as nk
from normkit._activation import NONE
from normkit._operands import Operands
from normkit.functional import choose as _choose
from normkit.functional.batch_norm import BatchNormSpec
from normkit.functional.batch_renorm import Limits, corrected
from normkit.functional.choose import choose
from normkit.functional.ghost_batch_norm import sliced
from normkit.functional.group_norm import GroupNormSpec
from normkit.functional.instance_norm import InstanceNormSpec
from normkit.functional.layer_norm import LayerNormSpec
from normkit.functional.running import Running
from normkit.functional.spec import NormSpec
from normkit.functional.sync_batch_norm import SyncBatchNormSpec
from normkit.kernels import native, triton
from tests.kernels.native_isa import needs_native

X = torch.ones(4, 3)
IMAGES, MASK = torch.ones(4, 3, 5, 6).movedim(1, 3), torch.ones(4, 6, 3, dtype=torch.bool)


class Marked(Tensor):
    """A tensor subclass that computes as its base does."""


BATCH, GROUPS = BatchNormSpec(NONE, None, True, 1e-3), GroupNormSpec(NONE, 1, 1e-3)


def pick(x: Tensor = X, norm: NormSpec = BATCH, **others: Tensor) -> tuple[str, str]:
    return choose(norm, Operands(x, **others))


@needs_native
def test_a_plain_cpu_tensor_takes_the_native_kernel() -> None:
    assert pick() == ("native", "as it is")
    assert pick(torch.nn.Parameter(X))[0] == "native"
    assert pick(torch.ones(4, 4, 5, 5)[::2, :, 1:].transpose(2, 3))[0] == "native"  # made dense first


@needs_native
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: pick(X.as_subclass(Marked)), "Marked is a tensor subclass"),
        (lambda: pick(torch.ones(4, 3, device="meta")), "the tensor is on meta"),
        (lambda: pick(X.to(torch.float8_e5m2)), "no native kernel for torch.float8_e5m2"),
        (lambda: pick(IMAGES, GROUPS, mask=MASK, residual=IMAGES), "a mask and a residual are given, and they are not"),
        (lambda: pick(X.to_sparse()), "the layout is torch.sparse_coo"),
        (
            lambda: pick(weight=torch.ones(3).as_subclass(Marked)),
            "a parameter, buffer, residual or mask is not a plain CPU",
        ),
        (
            lambda: pick(residual=torch.ones(4, 3, device="meta")),
            "a parameter, buffer, residual or mask is not a plain CPU",
        ),
    ],
    ids=["subclass", "device", "dtype", "mask", "layout", "parameter_subclass", "residual_elsewhere"],
)
def test_one_failed_condition_gives_the_composed_operations_and_its_reason(
    call: Callable[[], tuple[str, str]], reason: str
) -> None:
    path, why = call()
    assert path == "composed"
    assert why.startswith(reason)


@needs_native
def test_fake_tensors_have_no_memory() -> None:
    with FakeTensorMode():
        path, why = pick(X)
        assert path == "composed"
        assert why.startswith("a torch-dispatch mode is active")
        assert nk.functional.batch_norm(torch.ones(4, 3), None, None, training=True).shape == (4, 3)


@needs_native
def test_a_transform_or_a_forward_mode_level_is_composed() -> None:
    seen = []

    def record(x: Tensor) -> Tensor:
        seen.append(pick(X))
        return x.sum()

    torch.func.grad(record)(X)
    torch.func.vmap(record)(X)
    with forward_ad.dual_level():
        record(X)
    assert seen == [("composed", "a torch.func transform or forward-mode level is active")] * 3


def test_without_the_native_core_the_reason_is_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "supports_dtype", lambda dtype: False)
    monkeypatch.setattr(native, "why_not", lambda: "the native core is not built (no compiler)")
    assert pick() == ("composed", "the native core is not built (no compiler)")


@needs_native
def test_compiled_code_takes_the_native_kernel_as_an_opaque_operator_but_not_under_a_transform() -> None:
    def plain(x: Tensor) -> Tensor:
        return x + (choose(BATCH, Operands(x))[0] == "native")

    def transformed(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (x * (choose(BATCH, Operands(x))[0] == "native")).sum())(x)

    assert torch.equal(torch.compile(plain, backend="eager", fullgraph=True)(X), X + 1)
    assert torch.equal(torch.compile(transformed, backend="eager", fullgraph=True)(X), 0 * X)


def test_tracing_needs_no_normkit_in_the_result() -> None:
    """The trace of a layer is torch's own batch_norm."""
    layer = nk.BatchNorm1d(3).eval()
    with warnings.catch_warnings(record=True) as caught:  # torch's own, that it is deprecated, from some version on
        warnings.simplefilter("always")
        traced = torch.jit.trace(layer, X)
    assert not any(issubclass(w.category, torch.jit.TracerWarning) for w in caught)
    assert "aten::batch_norm" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(X), layer(X))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("native", "a mask and a residual are given", marks=needs_native),
        ("aten", "PyTorch's norms take no mask"),
        ("triton", "(Triton's kernels run on CUDA devices|Triton is not installed)"),
    ],
)
def test_asking_for_what_cannot_run_raises_and_says_why(name: str, why: str) -> None:
    with nk.backend(name), pytest.raises(RuntimeError, match=f"backend '{name}' was asked for and cannot .*{why}"):
        nk.functional.group_norm(IMAGES, 1, mask=MASK, residual=IMAGES)


def test_without_triton_asking_for_it_raises_with_the_line_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "INSTALLED", False)
    line = "Triton is not installed: pip install 'normkit[triton]'"
    with nk.backend("triton"), pytest.raises(RuntimeError, match=re.escape(line)):
        nk.BatchNorm1d(3)(X)


class OnCuda:
    """The tensor as it would look on a GPU, as far as `choose` looks."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.device, self.is_cpu = tensor, torch.device("cuda"), False

    def __getattr__(self, name: str) -> object:
        return getattr(self.tensor, name)


@pytest.mark.skipif(not hasattr(torch.library, "triton_op"), reason="torch.library.triton_op is of torch 2.6")
def test_cuda_takes_triton_where_it_is_installed_and_pytorch_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_choose, "is_plain", lambda tensor: True)
    x, mask = OnCuda(X), torch.ones(4, 1, dtype=torch.bool)
    monkeypatch.setattr(triton, "INSTALLED", True)
    assert pick(x) == ("triton", "Triton's kernels serve CUDA")
    assert pick(x, mask=OnCuda(mask)) == ("triton", "Triton's kernels serve CUDA")
    assert pick(x, mask=mask)[0] == "composed"  # of another device
    running = Running(OnCuda(torch.zeros(3)), OnCuda(torch.ones(3)), None, 0.1)
    batch = BatchNormSpec(NONE, running, True, 1e-3)
    for norm in (
        sliced(batch, X, 2), corrected(batch, Limits(3.0, 5.0), None), SyncBatchNormSpec(NONE, running, True, 1e-3),
        InstanceNormSpec(NONE, running, True, 1e-3), GROUPS,
    ):  # fmt: skip
        assert pick(x, norm, mask=OnCuda(mask)) == ("triton", "Triton's kernels serve CUDA"), norm.name
    assert pick(x, LayerNormSpec(NONE, (3,), 1e-3)) == ("aten", "PyTorch's own kernels serve CUDA")
    assert pick(OnCuda(X.double()))[0] == "aten"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert pick(x)[0] == "aten"
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(triton, "INSTALLED", False)
    assert pick(x)[0] == "aten"


@pytest.mark.skipif(not hasattr(torch.library, "triton_op"), reason="torch.library.triton_op is of torch 2.6")
def test_few_bytes_are_left_to_pytorch_where_it_has_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the size on that is measured on a GPU; until then nothing is."""
    monkeypatch.setattr(_choose, "is_plain", lambda tensor: True)
    monkeypatch.setattr(triton, "INSTALLED", True)
    x, ghost = OnCuda(X), sliced(BatchNormSpec(NONE, None, True, 1e-3), X, 2)
    assert triton.SMALL == 0
    assert pick(x)[0] == "triton"
    monkeypatch.setattr(triton, "SMALL", X.nbytes + 1)
    assert pick(x) == ("aten", "PyTorch's own kernels serve CUDA, faster on so few bytes")
    assert pick(x, ghost)[0] == "triton"
    monkeypatch.setattr(triton, "SMALL", X.nbytes)
    assert pick(x)[0] == "triton"


def test_aten_refuses_a_transform_and_an_unknown_norm() -> None:
    with nk.backend("aten"):
        with pytest.raises(RuntimeError, match=r"a torch\.func transform is active"):
            torch.func.grad(lambda x: nk.functional.batch_norm(x, None, None, training=True).sum())(X)
        with pytest.raises(RuntimeError, match="PyTorch has no kernel of ghost_batch_norm"):
            nk.GhostBatchNorm1d(3, virtual_batch_size=2)(X)


def test_a_backend_holds_inside_its_block_and_blocks_nest() -> None:
    with nk.backend("composed"):
        assert pick() == ("composed", "asked for")
        with nk.backend("aten"):
            assert pick() == ("aten", "asked for")
        assert pick() == ("composed", "asked for")
    assert _choose._requested is None


def test_backends_of_several_threads_end_in_any_order() -> None:
    first, second = nk.backend("composed"), nk.backend("aten")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert pick() == ("aten", "asked for")
    second.__exit__(None, None, None)
    assert _choose._requested is None


def test_a_backend_ends_when_an_exception_leaves_its_block() -> None:
    with pytest.raises(KeyError), nk.backend("composed"):
        raise KeyError
    assert _choose._requested is None
    with pytest.raises(ValueError, match="backend must be one of 'aten', 'native', 'composed', 'triton', got 'fast'"):
        nk.backend("fast").__enter__()
