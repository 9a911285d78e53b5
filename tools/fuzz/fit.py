"""Makes a case whole: what does not concern its norm or cannot be said of it goes to its simplest value.

The generator and the shrinker change one field at a time; this keeps programs from failing before they reach a norm.
"""

from __future__ import annotations

import dataclasses
import math

from . import program
from .case import TENSORS, Array, Case, usual
from .modulation import is_modulated, shape_of_form
from .norms import NORMS, RANKED, is_unbatched

_SLICES = 40
_FEW = 64  # elements, where a whole Jacobian is made
_CHANGES = ("x", "weight", "bias", "residual", "scale", "shift", "running_mean", "running_var", "mask")  # of values
_COPIES = ("saved('clone')", "saved('sparse')", "saved('stay_sparse')", "saved('freed')")  # hooks that keep a copy
_NO_GRAPH = ("torch.no_grad()", "torch.inference_mode()")


def fit(case: Case) -> Case:
    """The nearest case that can be run."""
    case = _fit_shape(case)
    case = _fit_tensors(case)
    case = _fit_calls(case)
    wanted = tuple(dict.fromkeys(n for n in case.wanted if n in case.tensors))
    if case.norm == "frozen_batch_norm":
        wanted = tuple(n for n in wanted if n not in ("weight", "bias"))
    if case.plan in ("double", "accumulate") and "x" not in wanted:
        wanted = ("x", *wanted)
    if not wanted or any(c in _NO_GRAPH for c in case.contexts) or case.transform not in program.KEEPS_GRAPH:
        case = case.but(plan="none", hook="", edit="", around=())
    if case.plan == "none":
        case = case.but(around=(), hook="")
    return case.but(wanted=wanted)


def nearest(case: Case) -> Case:
    """What torch has that is nearest to a case that it has no program of: without the mask, by its batch norm."""
    norm = "batch_norm" if case.norm in ("ghost_batch_norm", "batch_renorm") else case.norm
    return fit(case.but(norm=norm, mask="", edit="" if case.edit == "mask" else case.edit))


def _fit_shape(case: Case) -> Case:
    norm, shape, layer = NORMS[case.norm], case.shape, case.layer
    if not norm.function or (case.norm == "batch_renorm" and case.transform.startswith("checkpoint")):
        layer = True  # the function of batch renorm remembers no forward
    if not norm.layer:
        layer = False
    part = case.part
    if case.norm == "layer_norm_2d":
        shape = (*shape, 1, 1, 1)[:4] if len(shape) < 4 else (*shape[:3], math.prod(shape[3:]))
    if norm.channels and len(shape) < 2:
        shape = (*shape, 1, 1)[:2]
    if not norm.channels:
        part = max(1, min(part, len(shape)))
    elif case.norm in RANKED and layer and case.norm != "ghost_batch_norm":
        unbatched = case.norm == "instance_norm" and case.part == len(shape) - 1 and 2 <= len(shape) <= 4
        if (part >= 0 or len(shape) <= 3) and not unbatched:  # a negative one stands for a layer of another rank
            part = max(1, len(shape) - 2)
    elif not norm.part or (case.norm == "group_norm" and 0 < part < 5 and shape[1] % part):
        part = 1
    if case.norm == "ghost_batch_norm":  # float64 goes slice by slice
        shape = (min(shape[0], _SLICES), *shape[1:])
    return case.but(shape=shape, layer=layer, part=part)


def _fit_tensors(case: Case) -> Case:
    takes, tensors = NORMS[case.norm].takes, dict(case.tensors)
    tensors.setdefault("x", Array())
    tensors.setdefault("dy", Array(dtype=tensors["x"].dtype))
    for name in ("bias", "residual"):
        if name not in takes:
            tensors.pop(name, None)
    adds = case.norm.startswith("add_")
    if adds:
        tensors.setdefault("residual", Array(dtype=tensors["x"].dtype))
    running = {"running_mean", "running_var"} & tensors.keys()
    whole = case.norm == "frozen_batch_norm"
    if "running" not in takes or (case.layer and len(running) == 1):
        for name in ("running_mean", "running_var"):
            tensors.pop(name, None)
    needed = ("weight", "bias", "running_mean", "running_var") if whole else ()
    if case.norm == "batch_renorm":
        needed = ("running_mean", "running_var")
    for name in needed:
        tensors.setdefault(name, usual(name))
    if case.layer and "weight" not in tensors:
        tensors.pop("bias", None)
    for name, array in tensors.items():
        if array.layout == "channels_last" and (len(case.shape) < 3 or _rank(name, array, case) < 3):
            tensors[name] = array = dataclasses.replace(array, layout="contiguous")
        if array.dtype == "bfloat16" and array.trick in ("from_numpy", "read_only"):  # which numpy has not
            tensors[name] = dataclasses.replace(array, trick="")
    case = case.but(tensors={n: tensors[n] for n in TENSORS if n in tensors})
    if case.norm == "normalize":
        case = case.but(activation="").with_tensor("scale", None).with_tensor("shift", None)
    for name in ("scale", "shift"):
        if name in case.tensors and is_unbatched(case) and case.tensors[name].form in ("number", "vector"):
            case = case.tensor(name, form="")
    mask = case.mask if "mask" in takes else ""
    alias = case.alias
    needs = {
        "residual_is_x": ("residual",), "residual_is_view": ("residual",), "bias_is_weight": ("weight", "bias"),
        "running_is_one": ("running_mean", "running_var"), "running_overlaps": ("running_mean", "running_var"),
    }  # fmt: skip
    if any(n not in tensors for n in needs.get(alias, ())) or (adds and alias == "residual_is_x"):
        alias = ""
    if alias == "running_overlaps" and tensors["running_mean"].trick:
        alias = ""  # of what memory a trick makes, the truth knows nothing
    wanted = case.wanted
    if alias.startswith("residual"):
        wanted = tuple(n for n in wanted if n != "residual")
    if alias == "bias_is_weight":
        wanted = tuple(n for n in wanted if n not in ("weight", "bias"))
    return case.but(mask=mask, alias=alias, wanted=wanted)


def _rank(name: str, array: Array, case: Case) -> int:
    return (
        len(shape_of_form(case, array.form)) if name in ("scale", "shift") and array.size is None else len(case.shape)
    )


def _fit_freed(case: Case) -> Case:
    """Freed memory where normkit can look before torch's own operations read it, which end the process."""
    modes = ("Fake", "Silent", "meta")
    texts = [text for text in (*case.contexts, *case.around) if not text.startswith("saved(")]
    moded = any(m in text for m in modes for text in texts)
    sums = case.norm.startswith("add_") or case.norm == "normalize"
    if case.transform or moded or sums:
        for name, array in case.tensors.items():
            if array.trick == "freed" and name != "dy":
                case = case.tensor(name, trick="")
    asked = any("composed" in text or "aten" in text for text in texts)
    wrapped = any(a.trick in ("subclass", "wrapper") for n, a in case.tensors.items() if n != "dy")
    twice = case.plan in ("double", "create_graph", "batched") or case.hook not in ("", "freed") or bool(case.after)
    freed = "saved('freed')" in case.contexts or case.tensors["dy"].trick == "freed" or case.hook == "freed"
    follows = freed and bool(case.activation)  # which may be an operation of its own
    if bool(case.mask or case.transform) or moded or sums or asked or wrapped or twice or follows or is_modulated(case):
        case = _with_graph_memory(case)
    if case.edit == "free_y" and case.plan == "sum":  # the sum reads it
        case = case.but(edit="")
    if case.tensors["dy"].trick == "freed" and case.tensors["dy"].dtype != case.tensors["x"].dtype:
        case = case.tensor("dy", trick="")  # autograd casts it before any backward
    return case


def _with_graph_memory(case: Case) -> Case:
    """Without freed memory in the backward, and without hooks that give back what torch's operations take as it is."""
    if case.tensors["dy"].trick == "freed":
        case = case.tensor("dy", trick="")
    broken = tuple(f"saved({kind!r})" for kind in ("freed", "flat", "shorter", "none", "meta"))
    case = case.but(contexts=tuple(c for c in case.contexts if c not in broken))
    if case.hook == "freed":
        case = case.but(hook="")
    return case.but(edit="") if case.edit.startswith("free") else case


def _fit_calls(case: Case) -> Case:
    adds = case.norm.startswith("add_")
    if adds and case.transform:
        case = case.but(transform="")
    if case.transform in ("grad", "vmap_grad", "jacrev", "jacfwd", "grad_grad", "jvp", "dual", "vjp"):
        case = case.but(after="")
    if case.transform.startswith("checkpoint"):
        case = case.but(edit="")  # a recomputation sees what was edited
    elif case.alias == "residual_is_x" and case.transform not in program.KEEPS_GRAPH:
        case = case.but(alias="")  # x within a transform is another one
    if case.transform in ("jacrev", "jacfwd"):
        if case.tensors["x"].layout in ("expanded", "scalar", "overlapping"):  # elements that share a derivative
            case = case.tensor("x", layout="contiguous")
        if math.prod(case.shape) > _FEW:
            case = case.but(transform="vjp")
        else:
            for name, array in case.tensors.items():
                if array.values in ("nan", "inf", "minus_inf"):  # which a product with a Jacobian spreads
                    case = case.tensor(name, values=usual(name).values)
    twice = case.transform == "threads" or (case.transform == "make_fx" and case.norm == "batch_renorm")
    if twice and "running_mean" in case.tensors:
        case = case.but(training=False)  # several calls move running statistics several times
    case = _fit_freed(case)
    if math.prod(case.shape) > 4000:  # a broadcast of what a hook flattened may fill the memory
        case = case.but(contexts=tuple(c for c in case.contexts if c != "saved('flat')"))
    if case.after == ("reuse" if adds else "join"):
        case = case.but(after="")
    # hooks keep the very tensor, unwatched: what was edited is what comes back
    kept = any("save" in c and c not in _COPIES for c in case.contexts)
    if (case.edit in _CHANGES and kept) or (case.edit == "mask" and case.mask == "expanded"):
        case = case.but(edit="")  # nor writes anything to elements that share memory
    if kept and case.activation and case.after in ("mul_", "view_mul_", "relu_"):
        case = case.but(after="")  # an activation may keep what is written then
    if case.edit.startswith("free"):  # a hook that copies what is gone fails by itself
        case = case.but(contexts=tuple(c for c in case.contexts if not c.startswith("saved(")))
    if case.transform in ("thread", "threads"):  # torch itself locks up: two custom functions write their stacks
        case = case.but(contexts=tuple(c for c in case.contexts if "detect_anomaly" not in c))
    return case if not case.edit or program.can_edit(case.edit, case) else case.but(edit="")
