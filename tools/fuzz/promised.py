"""Errors that are promised, or torch's own: normkit may raise them where torch computes, and torch where normkit does.

Each is known by its words, and only in the cases that it is promised for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .case import Array, Case
from .modulation import is_modulated
from .norms import channels
from .pools import WRONG_EPS

_SHARED = ("expanded", "scalar", "overlapping")  # elements that share memory
_IN_PLACE = ("mul_", "view_mul_", "relu_")


def is_promised(case: Case, text: str) -> bool:
    """Whether an error of these words may be raised in this case by one of the two libraries alone."""
    return any(words in text and is_due(case) for words, is_due in _PROMISED)


def _has(*parts: str) -> Callable[[Case], bool]:
    """Whether a context of the forward or the backward has one of these texts in it."""
    return lambda case: any(part in text for part in parts for text in (*case.contexts, *case.around))


def is_fake(case: Case) -> bool:
    """Whether fake tensors take part."""
    tricks = {array.trick for array in case.tensors.values()}
    return "fake" in (case.transform, case.hook) or "fake" in tricks or _has("FakeTensorMode")(case)


def _frees(case: Case) -> bool:
    """normkit looks at each gradient and at all that it kept; torch hands gradients on unread, and keeps copies."""
    return case.edit.startswith("free") or "freed" in (case.hook, case.tensors["dy"].trick)


def _is_kept_by_normkit_alone(case: Case) -> bool:
    """A residual and a shift get the gradient of the sum, and torch's batch norm of an empty batch is a copy."""
    return case.plan == "twice" and ({*case.wanted} <= {"residual", "shift"} or 0 in case.shape)


def _is_called_otherwise(case: Case) -> bool:
    """Whether a checkpoint's second forward is another call than the first: it takes another path, under a context of
    one of the two or of a subclass, which torch switches off within its backward; or hooks on saved tensors have given
    the input back in another dtype."""
    moves = ("nk.backend", "Silent", "FakeTensorMode")
    contexts = [{c for c in texts if c.startswith(moves)} for texts in (case.contexts, case.around)]
    widened = _has("saved('float32')", "saved('bfloat16')", "saved('double')")
    others = _is_trick("subclass")(case) or contexts[0] != contexts[1] or widened(case)
    return case.transform == "checkpoint" and others


def _is_trick(trick: str) -> Callable[[Case], bool]:
    """Whether one of the tensors is of a trick."""
    return lambda case: any(a.trick == trick for a in case.tensors.values())


def _meets_a_mode(case: Case) -> bool:
    """Whether a subclass without rules of its own is where a mode has tensors of another class: torch computes
    F.group_norm(x) there, which is one operation, but neither fake + x nor make_fx(lambda x: (x * 2).view(-1))."""
    return _is_trick("subclass")(case) and (is_fake(case) or case.transform == "make_fx")


def _is_faked_forward(case: Case) -> bool:
    """Whether the norm itself is of fake tensors."""
    given = any(a.trick == "fake" for name, a in case.tensors.items() if name != "dy")
    return case.transform == "fake" or given or any("FakeTensorMode" in text for text in case.contexts)


def _has_two_fake_modes(case: Case) -> bool:
    """Whether tensors of one fake mode meet another: each trick and hook makes its own."""
    given = [a.trick for a in case.tensors.values()].count("fake") + (case.hook == "fake")
    return given + (case.transform == "fake" or _has("FakeTensorMode")(case)) > 1


def _is_sparse_bias_of_all(case: Case) -> bool:
    """Whether a layer norm over all axes has a sparse bias: torch adds it as it is to a sum of its sizes, where no
    gradient is wanted; it refuses one of fewer axes, a sparse weight, and the backward."""
    whole = case.norm in ("layer_norm", "add_layer_norm") and case.part == len(case.shape)
    return whole and case.tensors.get("bias", Array()).trick == "sparse"


def _is_no_vector(name: str) -> Callable[[Case], bool]:
    """Whether a running statistic has not one axis where torch does not look at that: a number for an instance norm,
    which torch repeats for each sample, and any of a faked forward."""

    def is_due(case: Case) -> bool:
        size = case.tensors.get(name, Array()).size
        if size is None or len(size) == 1:
            return False
        return _is_faked_forward(case) or (case.norm == "instance_norm" and size == ())

    return is_due


def _mixes_dtypes(case: Case) -> bool:
    """Whether a parameter's dtype does not go with that of x, or a running statistic has none of floating point."""
    x = case.tensors["x"].dtype
    fitting = (x, "float32") if x in ("float16", "bfloat16") else (x,)
    parameters, running = (
        [a.dtype for name, a in case.tensors.items() if name in names]
        for names in (("weight", "bias"), ("running_mean", "running_var"))
    )
    return any(dtype not in fitting for dtype in parameters) or any("float" not in dtype for dtype in running)


def _ends_in_a_view(case: Case) -> bool:
    """Whether a norm over channels is modulated, or activated, as rows, and their axes are then moved, which leaves a
    view; of torch's three steps that one is in the midst."""
    moved = case.tensors["x"].layout != "contiguous" or channels(case) == 1 or math.prod(case.shape[2:]) <= 1
    return case.norm == "layer_norm_2d" and moved and (is_modulated(case) or bool(case.activation))


_PROMISED: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    # -- What normkit does otherwise, as its pages say.
    ("was asked for and cannot serve this call", _has("nk.backend")),
    ("don't yet support saved tensor hooks", _has("nk.recompute_outputs")),  # inside of torch.func
    ("modified by an inplace operation", lambda case: bool(case.edit or case.after)),  # it keeps another tensor
    ("Inference tensors cannot be saved for backward", _is_trick("inference")),  # the same
    ("through the graph a second time", _is_kept_by_normkit_alone),  # the same
    ("Cannot convert a ZeroTensor to numpy", _has("saved('numpy')")),  # the same: by the hook itself
    ("its data is not allocated yet", _frees),
    ("it is added element by element", lambda case: case.tensors.get("residual", Array()).size is not None),  # no more
    ("D input (got", lambda case: case.norm == "frozen_batch_norm"),  # torch's function has no rank
    ("eps must be", lambda case: case.norm == "instance_norm" and case.eps in WRONG_EPS),  # torch's does not look
    ("number of input channels should be non-zero", lambda case: case.norm == "sync_batch_norm" and not channels(case)),
    # a mask leaves one; torch's nearest norm, without the mask or the slices, says nothing of it
    ("Expected more than 1 value per channel", lambda case: bool(case.mask)),
    ("virtual_batch_size must be 1 or more", lambda case: case.norm == "ghost_batch_norm" and case.part < 1),
    ("is not on the expected device", lambda case: bool(case.mask) and _is_trick("meta")(case)),
    # batch norm's call of the core compares it as it is: torch's class, Python's words
    ("not supported between instances", lambda case: case.eps in ("None", "'1e-5'", "1j")),
    (
        "more than one element of the written-to tensor",
        lambda case: any(a.layout in _SHARED for n, a in case.tensors.items() if n.startswith("running")),
    ),
    ("torch.utils.checkpoint: ", _is_called_otherwise),
    # a large output's memory is not torch's (docs/layers.md)
    ("Trying to resize storage that is not resizable", lambda case: case.edit == "free_y"),
    ("running_mean must have the shape", _is_no_vector("running_mean")),
    ("running_var must have the shape", _is_no_vector("running_var")),
    ("has the layout torch.sparse_coo", _is_sparse_bias_of_all),
    (  # torch's batch norm takes oneDNN's layout, and has neither slices nor a correction
        "has the layout torch._mkldnn",
        lambda case: case.norm in ("ghost_batch_norm", "batch_renorm") and case.tensors["x"].trick == "mkldnn",
    ),
    (  # a custom function's output, which such a checkpoint is
        "is a view and is being modified inplace",
        lambda case: case.transform == "checkpoint_reentrant" and case.after in _IN_PLACE and _ends_in_a_view(case),
    ),
    # -- What torch's operations do, of which normkit calls others than torch's norm does.
    ("returned nan values in its", _has("detect_anomaly")),  # it looks at every step
    ("convert all Tensors to FakeTensors first", is_fake),
    ("Mixing fake modes NYI", _has_two_fake_modes),
    ("aten._local_scalar_dense", lambda case: is_fake(case) and _has("detect_anomaly")(case)),  # anomalies are values
    # torch's fake kernels do not look at dtypes, where its own raise this
    ("mixed dtype (CPU)", lambda case: _is_faked_forward(case) and _mixes_dtypes(case)),
    ("unsupported operand type(s) for", _meets_a_mode),
    ("Multiple dispatch failed for", _meets_a_mode),
    # a product with torch's tensor of zeros is one on "meta"
    ("found at least two devices, meta and cpu", lambda case: is_fake(case) and _is_trick("zerotensor")(case)),
    (  # in the backward of an operation that keeps its result, such as rsqrt
        "Cannot set version_counter for inference tensor",
        lambda case: case.plan == "under_inference" and _is_trick("wrapper")(case),
    ),
    (  # torch makes no view of a lazily negated tensor that has a tangent: x.reshape(x.shape) asserts
        "has_fw_view() INTERNAL ASSERT FAILED",
        lambda case: (
            case.transform in ("jvp", "dual") and case.tensors["x"].trick in ("negated", "conjugated")
        ),
    ),
    # F.group_norm(x), by which instance norm is asked of torch's kernels
    ("Expected X.is_contiguous(memory_format)", lambda case: case.tensors["x"].trick == "zerotensor"),
    (  # F.gelu(x).backward(dy), where oneDNN serves x
        "could not construct a memory descriptor using strides",
        lambda case: "gelu" in case.activation.lower() and case.tensors["dy"].layout == "overlapping",
    ),
)  # fmt: skip
