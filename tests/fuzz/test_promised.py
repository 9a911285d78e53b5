"""What one of the libraries alone may raise: only in the cases that it is promised for."""

from __future__ import annotations

import pytest
from tools.fuzz.case import Array, Case
from tools.fuzz.errors import accepted, raised
from tools.fuzz.finding import Outcome
from tools.fuzz.promised import is_promised

X, DY, P = Array(), Array(), Array(values="param")
PROMISED = {
    "backend 'native' was asked for and cannot serve this call: a mask is given": Case(
        contexts=("nk.backend('native')",)
    ),
    "torch.func transforms don't yet support saved tensor hooks.": Case(contexts=("nk.recompute_outputs()",)),
    "one of the variables needed has been modified by an inplace operation": Case(edit="weight"),
    "Inference tensors cannot be saved for backward.": Case(
        tensors={"x": X, "weight": Array(trick="inference"), "dy": DY}
    ),
    "Trying to backward through the graph a second time": Case(plan="twice", wanted=("residual", "shift")),
    "Cannot convert a ZeroTensor to numpy.": Case(contexts=("saved('numpy')",)),
    "The tensor has elements, but its data is not allocated yet.": Case(hook="freed"),
    "residual must have the input's shape: it is added element by element": Case(
        tensors={"x": X, "residual": Array(size=(1,)), "dy": DY}
    ),
    "expected 4D input (got 3D input)": Case(norm="frozen_batch_norm"),
    "instance_norm eps must be positive, but got: -1": Case(norm="instance_norm", eps="-1.0"),
    "SyncBatchNorm number of input channels should be non-zero": Case(norm="sync_batch_norm", shape=(2, 0, 3)),
    "more than one element of the written-to tensor refers to a single memory location": Case(
        tensors={"x": X, "running_mean": Array(layout="expanded"), "running_var": Array(values="var"), "dy": DY}
    ),
    "torch.utils.checkpoint: Recomputed values have different metadata": Case(
        transform="checkpoint", contexts=("saved('bfloat16')",)
    ),
    "Trying to resize storage that is not resizable": Case(edit="free_y"),
    "running_mean must have the shape (1,), got ()": Case(
        norm="instance_norm", tensors={"x": X, "running_mean": Array(size=()), "running_var": P, "dy": DY}
    ),
    "the bias of sizes [2, 3, 4] has the layout torch.sparse_coo": Case(
        norm="layer_norm", part=3, tensors={"x": X, "bias": Array(trick="sparse"), "dy": DY}
    ),
    "the input of sizes [2, 3, 4] has the layout torch._mkldnn": Case(
        norm="ghost_batch_norm", tensors={"x": Array(trick="mkldnn"), "dy": DY}
    ),
    "Output 0 of View is a view and is being modified inplace.": Case(
        norm="layer_norm_2d",
        shape=(2, 3, 4, 5),
        transform="checkpoint_reentrant",
        after="view_mul_",
        tensors={"x": Array(layout="channels_last"), "dy": DY, "shift": X},
    ),
    "Mixing fake modes NYI": Case(
        contexts=("FakeTensorMode(allow_non_fake_inputs=True)",), tensors={"x": X, "dy": Array(trick="fake")}
    ),
    "aten._local_scalar_dense.default": Case(transform="fake", around=("torch.autograd.set_detect_anomaly(True)",)),
    "mixed dtype (CPU): all inputs must share same datatype.": Case(
        transform="fake", tensors={"x": Array(dtype="float64"), "bias": X, "dy": DY}
    ),
    "running_var must have the shape (1,), got (1, 1)": Case(
        transform="fake", tensors={"x": X, "running_mean": X, "running_var": Array(size=(1, 1)), "dy": DY}
    ),
    "unsupported operand type(s) for +: 'FakeTensor' and 'Plain'": Case(
        transform="fake", tensors={"x": Array(trick="subclass"), "dy": DY}
    ),
    "Multiple dispatch failed for 'torch._ops.aten.view.default'": Case(
        transform="make_fx", tensors={"x": Array(trick="subclass"), "dy": DY}
    ),
    "Function 'MulBackward0' returned nan values in its 0th output.": Case(
        contexts=("torch.autograd.set_detect_anomaly(True)",)
    ),
    "Please convert all Tensors to FakeTensors first": Case(hook="fake"),
    "Expected all tensors to be on the same device, but found at least two devices, meta and cpu!": Case(
        around=("FakeTensorMode(allow_non_fake_inputs=True)",),
        tensors={"x": X, "weight": Array(trick="zerotensor"), "dy": DY},
    ),
    "Cannot set version_counter for inference tensor": Case(
        plan="under_inference", tensors={"x": Array(trick="wrapper"), "dy": DY}
    ),
    "!this_view_meta->has_fw_view() INTERNAL ASSERT FAILED at": Case(
        transform="jvp", tensors={"x": Array(trick="negated"), "dy": DY}
    ),
    "Expected X.is_contiguous(memory_format) to be true, but got false.": Case(
        norm="instance_norm", tensors={"x": Array(trick="zerotensor"), "dy": DY}
    ),
    "could not construct a memory descriptor using strides": Case(
        activation="'gelu'", tensors={"x": X, "dy": Array(layout="overlapping")}
    ),
}


@pytest.mark.parametrize("text", PROMISED)
def test_a_promise_holds_for_its_cases_alone(text: str) -> None:
    plain = Case(tensors={"x": X, "weight": P, "residual": X, "dy": DY}, wanted=("x", "weight"))
    assert is_promised(PROMISED[text], text)
    assert not is_promised(plain, text)
    computed, error = Outcome(found={}), Outcome(error=RuntimeError(text))
    assert raised(PROMISED[text], RuntimeError(text), computed) is None
    assert accepted(PROMISED[text], error, None) is None
    assert raised(plain, RuntimeError(text), computed) is not None
    assert (accepted(plain, error, None) is None) == ("INTERNAL ASSERT" in text)  # of torch's, a fault anywhere


def test_a_second_backward_is_excused_where_torch_keeps_nothing_alone() -> None:
    text = "Trying to backward through the graph a second time"
    assert is_promised(Case(plan="twice", shape=(0, 3)), text)
    assert not is_promised(Case(plan="twice"), text)
    assert not is_promised(Case(plan="retain", wanted=("residual",)), text)


def test_tensors_of_one_fake_mode_alone_do_not_mix_modes() -> None:
    text = "AssertionError: Mixing fake modes NYI"
    assert not is_promised(Case(transform="fake"), text)
    assert is_promised(Case(hook="fake", tensors={"x": Array(trick="fake"), "dy": DY}), text)


def test_anomalies_alone_are_no_reason_to_ask_for_values_that_are_not_there() -> None:
    assert not is_promised(Case(transform="fake"), "aten._local_scalar_dense.default")
    assert not is_promised(Case(around=("torch.autograd.set_detect_anomaly(True)",)), "aten._local_scalar_dense")


@pytest.mark.parametrize(
    ("dtype", "others", "mixes"),
    [
        ("float32", {}, False),
        ("float32", {"weight": "float64"}, True),
        ("float64", {"bias": "float32"}, True),
        ("bfloat16", {"weight": "float32", "bias": "bfloat16"}, False),
        ("bfloat16", {"weight": "float16"}, True),
        ("float32", {"running_mean": "float64", "running_var": "bfloat16"}, False),
        ("float32", {"running_var": "int64"}, True),
        ("float32", {"scale": "float64", "residual": "float64", "dy": "float64"}, False),
    ],
)
def test_mixed_dtypes_are_excused_where_the_tensors_of_a_faked_forward_mix_them(
    dtype: str, others: dict[str, str], mixes: bool
) -> None:
    text = "mixed dtype (CPU): all inputs must share same datatype."
    tensors = {"x": Array(dtype=dtype), "dy": DY, **{name: Array(dtype=other) for name, other in others.items()}}
    assert is_promised(Case(transform="fake", tensors=tensors), text) == mixes
    assert not is_promised(Case(tensors=tensors), text)


@pytest.mark.parametrize(
    ("norm", "transform", "size", "due"),
    [
        ("batch_norm", "fake", (1, 3), True),
        ("batch_norm", "fake", (), True),
        ("batch_norm", "fake", None, False),
        ("batch_norm", "fake", (1,), False),
        ("batch_norm", "", (1, 3), False),
        ("instance_norm", "", (), True),
        ("instance_norm", "", (1, 3), False),
        ("batch_norm", "", (), False),
    ],
)
def test_a_running_statistic_is_excused_by_its_own_shape(
    norm: str, transform: str, size: tuple[int, ...] | None, due: bool
) -> None:
    tensors = {"x": X, "running_mean": Array(size=size), "running_var": P, "dy": DY}
    case = Case(norm=norm, transform=transform, tensors=tensors)
    assert is_promised(case, "running_mean must have the shape (1,), got (1, 1)") == due
    assert not is_promised(case, "running_var must have the shape (1,), got (1, 1)")
    assert not is_promised(case, "weight must have the shape (1,), got (1, 1)")


IN_PLACE = Case(
    norm="layer_norm_2d", shape=(2, 3, 4, 5), transform="checkpoint_reentrant", after="mul_",
    tensors={"x": Array(layout="channels_last"), "dy": DY}, activation="'relu'",
)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "due"),
    [
        (IN_PLACE, True),
        (IN_PLACE.but(activation="", tensors={**IN_PLACE.tensors, "scale": P}), True),
        (IN_PLACE.but(activation=""), False),  # torch's too ends in a view
        (IN_PLACE.but(after="square"), False),
        (IN_PLACE.but(transform="checkpoint"), False),
        (IN_PLACE.but(norm="group_norm"), False),
        (IN_PLACE.tensor("x", layout="contiguous"), False),  # whose output is made contiguous
        (IN_PLACE.tensor("x", layout="contiguous").but(shape=(2, 1, 4, 5)), True),  # which it is
        (IN_PLACE.tensor("x", layout="contiguous").but(shape=(2, 3, 1, 1)), True),
    ],
)
def test_a_view_is_excused_where_normkit_alone_ends_in_one(case: Case, due: bool) -> None:
    assert is_promised(case, "Output 0 of View is a view and is being modified inplace.") == due


def test_a_sparse_bias_is_excused_over_all_axes_alone() -> None:
    tensors = {"x": X, "bias": Array(trick="sparse"), "dy": DY}
    assert not is_promised(Case(norm="layer_norm", part=1, tensors=tensors), "has the layout torch.sparse_coo")
