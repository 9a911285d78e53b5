"""A case as the text of a program: what is run, and what a finding's script holds.

`make` gives the tensors, plain and whole (the truth is computed from them); `with_normkit` and `with_torch` take them,
do to them what the case says, and return results by name: y, total, dx, dweight, dbias, dresidual, jvp, ddx, ddy,
running_mean, running_var, batches.
"""

from __future__ import annotations

from .case import Array, Case
from .modulation import axes_of, is_modulated, shape_of_form
from .norms import NORMS, channels, filled, is_unbatched, leading, parameter_shape

# What torch.func and others make of `norm`, a function of x: the lines, and what they find.
TRANSFORMS: dict[str, tuple[str, ...]] = {
    "checkpoint": ("y = checkpoint(norm, x, use_reentrant=False)",),
    "checkpoint_reentrant": ("y = checkpoint(norm, x, use_reentrant=True)",),
    "vmap": ("y = torch.vmap(norm)(torch.stack([x, x]))[1]",),
    "vmap_last": ("y = torch.vmap(norm, in_dims=-1, out_dims=-1)(torch.stack([x, x], -1))[..., 1]",),
    "vjp": ("y, pull = torch.func.vjp(norm, x)", "found['dx'] = pull(dy)[0]"),
    "grad": ("found['dx'] = torch.func.grad(lambda x: (norm(x) * dy).sum())(x)",),
    "vmap_grad": ("found['dx'] = torch.vmap(torch.func.grad(lambda x: (norm(x) * dy).sum()))(torch.stack([x, x]))[1]",),
    "jacrev": ("found['dx'] = contracted(dy, torch.func.jacrev(norm)(x))",),
    "jacfwd": ("found['dx'] = contracted(dy, torch.func.jacfwd(norm)(x))",),
    "grad_grad": (
        "inner = torch.func.grad(lambda x: (norm(x) * dy).sum())",
        "found['ddx'] = torch.func.grad(lambda x: (inner(x) * dy).sum())(x)",
    ),
    "jvp": ("y, found['jvp'] = torch.func.jvp(norm, (x,), (dy,))",),
    "dual": (
        "with forward_ad.dual_level():",
        "    y, found['jvp'] = forward_ad.unpack_dual(norm(forward_ad.make_dual(x, dy)))",
    ),
    "functionalize": ("y = torch.func.functionalize(norm)(x)",),
    "make_fx": ("y = make_fx(norm)(x)(x)",),
    "fake": ("with FakeTensorMode(allow_non_fake_inputs=True):", "    y = norm(x)"),
    "threads": ("y = in_threads(norm, x)",),
    "thread": ("y = in_thread(lambda: norm(x))",),
}
# Those whose lines leave an output that a backward can start from.
KEEPS_GRAPH = frozenset(
    ["", "checkpoint", "checkpoint_reentrant", "vmap", "vmap_last", "functionalize", "fake", "threads", "thread"]
)

PLANS: dict[str, tuple[str, ...]] = {
    "none": (),
    "backward": ("y.backward(dy)", "found |= collect()"),
    "sum": ("y.sum().backward()", "found |= collect()"),
    "grad": ("found |= named(torch.autograd.grad(y, leaves, dy, allow_unused=True))",),
    "retain": (
        "torch.autograd.grad(y, leaves, dy, retain_graph=True, allow_unused=True)",
        "found |= named(torch.autograd.grad(y, leaves, dy, allow_unused=True))",
    ),
    "twice": ("y.backward(dy)", "y.backward(dy)", "found |= collect()"),
    "batched": (
        "both = torch.autograd.grad(y, leaves, torch.stack([dy * 2, dy]), is_grads_batched=True, allow_unused=True)",
        "found |= named([None if d is None else d[1] for d in both])",
    ),
    "thread": ("in_thread(lambda: y.backward(dy))", "found |= collect()"),
    "accumulate": (
        "x.grad = torch.zeros_like(x, memory_format=torch.contiguous_format)", "y.backward(dy)", "found |= collect()",
    ),
    "create_graph": ("found |= named(torch.autograd.grad(y, leaves, dy, create_graph=True, allow_unused=True))",),
    "double": (
        "dy.requires_grad_()",
        "(dx,) = torch.autograd.grad(y, x, dy, create_graph=True)",
        "found['ddx'], found['ddy'] = torch.autograd.grad(dx, (x, dy), torch.ones_like(dx), allow_unused=True)",
    ),
    "one_leaf": ("found |= named(torch.autograd.grad(y, leaves[-1:], dy, allow_unused=True), -1)",),
    "under_inference": ("with torch.inference_mode():", "    y.backward(dy)", "found |= collect()"),
}  # fmt: skip

AFTERS = {
    "square": "y = y * y",
    "mul_": "y.mul_(2)",
    "view_mul_": "y.view_as(y).mul_(2)",
    "relu_": "torch.relu_(y)",
    "join": "y = y + total",
    "reuse": "y = y + x.to(y.dtype)",
    "detached": "y = y * y.detach()",
}

EDITS = {
    "x": "x.add_(1)",
    "x_again": "x.mul_(1)",
    "x_data": "x.data = x.data.clone()",
    "weight": "weight.mul_(2)",
    "bias": "bias.add_(1)",
    "residual": "residual.add_(1)",
    "scale": "scale.mul_(2)",
    "shift": "shift.add_(1)",
    "running_mean": "running_mean.add_(1)",
    "running_var": "running_var.mul_(2)",
    "mask": "mask.logical_not_()",
    "free_x": "freed(x)",
    "free_weight": "freed(weight)",
    "free_residual": "freed(residual)",
    "free_y": "freed(y)",
    "free_running_var": "freed(running_var)",
}

HOOKS = {
    "double": "lambda g: g.double()",
    "half": "lambda g: g.half()",
    "first": "lambda g: g[:1]",
    "meta": "lambda g: g.to('meta')",
    "wrapper": "lambda g: Wrapper(g)",
    "subclass": "lambda g: g.as_subclass(Plain)",
    "zerotensor": "lambda g: torch._efficientzerotensor(g.shape, dtype=g.dtype)",
    "negated": "lambda g: torch._neg_view(g.neg())",
    "sparse": "lambda g: g.to_sparse()",
    "mkldnn": "lambda g: g.to_mkldnn()",
    "freed": "lambda g: freed(g.clone())",
    "transposed": "lambda g: transposed(g)",
    "fake": "lambda g: FakeTensorMode().from_tensor(g)",
    "inference": "lambda g: inference(g)",
    "none": "lambda g: None",
}

ALIASES = {
    "residual_is_x": "residual = x",
    "residual_is_view": "residual = (residual * 1).view_as(residual)",
    "bias_is_weight": "bias = weight",
    "running_is_one": "running_var = running_mean",
    "running_overlaps": "running_var = running_mean.as_strided(running_mean.shape, (1,), 0)",
    "dy_is_x": "dy = x.detach()",
}

# {shape}: of the mask; {one}: the same with one sample.
_MASKS = {
    "random": "torch.rand({shape}, generator=g) < 0.6",
    "all": "torch.ones({shape}, dtype=torch.bool)",
    "nothing": "torch.zeros({shape}, dtype=torch.bool)",
    "one": "torch.arange({count}).reshape({shape}) == {count} // 2",
    "two": "torch.arange({count}).reshape({shape}) < 2",
    "first_sample": "(torch.arange({count}).reshape({shape}) >= 0) & (torch.arange({first}).reshape({side}) == 0)",
    "transposed": "transposed(torch.rand({shape}, generator=g) < 0.6)",
    "expanded": "(torch.rand({one}, generator=g) < 0.6).expand({shape})",
    "broadcast": "torch.rand({one}, generator=g) < 0.6",
    "full_rank": "(torch.rand({shape}, generator=g) < 0.6)",  # an axis of size 1 is put in below
    "poisoned": "torch.rand({shape}, generator=g) < 0.6",  # and what lies under it is NaN
    "float": "torch.rand({shape}, generator=g)",
    "wrong": "torch.ones({wrong}, dtype=torch.bool)",
}
MASKS = tuple(_MASKS)


def can_edit(edit: str, case: Case) -> bool:
    """Whether the case has what is edited."""
    target = edit.removeprefix("free_").removesuffix("_again").removesuffix("_data")
    return target in (*case.tensors, "y") or (target == "mask" and bool(case.mask))


def shape_of(name: str, case: Case) -> tuple[int, ...]:
    """The shape of one of the case's tensors."""
    array = case.tensors[name]
    if array.size is not None:
        return array.size
    if name in ("weight", "bias"):
        return parameter_shape(case)
    if name in ("scale", "shift"):
        return shape_of_form(case, array.form)
    return (channels(case),) if name.startswith("running") else case.shape


def render_make(case: Case) -> str:
    """The function that gives the tensors."""
    lines = ["def make():"]
    for seed, (name, array) in enumerate(case.tensors.items()):
        lines.append(f"    {name} = {_made(array, shape_of(name, case), seed)}")
    if case.mask:
        lines += _mask_lines(case)
    names = [*case.tensors, *(["mask"] if case.mask else [])]
    lines.append("    return {" + ", ".join(f"{n!r}: {n}" for n in names) + "}")
    return "\n".join(lines) + "\n"


def _made(array: Array, shape: tuple[int, ...], seed: int) -> str:
    kind = "zeros" if array.trick == "zerotensor" else array.values
    text = f"values({kind!r}, {shape}, torch.{array.dtype}, {seed})"
    return text if array.layout == "contiguous" or not shape else f"{array.layout}({text})"


def _mask_lines(case: Case) -> list[str]:
    shape = leading(case)
    count = 1
    for size in shape:
        count *= size
    one, first = (1, *shape[1:]) if shape else (), shape[0] if shape else 1
    side = (first, *[1] * max(0, len(shape) - 1)) if shape else ()
    wrong = tuple(s + 1 for s in shape)
    text = _MASKS[case.mask].format(shape=shape, count=count, one=one, first=first, side=side, wrong=wrong)
    lines = ["    g = torch.Generator().manual_seed(9)", f"    mask = {text}"]
    if NORMS[case.norm].channels:
        lay = f"mask.unsqueeze({0 if is_unbatched(case) else 1})"
    else:
        lay = f"mask.reshape(*mask.shape, *[1] * {case.part})"
    if case.mask == "full_rank":
        lines.append(f"    mask = {lay}")
    if case.mask == "poisoned":
        lines.append(f"    x = torch.where({lay}, x, torch.nan)")
    return lines


def render(case: Case, lib: str, as_view: bool = False) -> str | None:
    """The function that runs the case with "normkit" or "torch"; None where torch has no such norm.

    as_view: torch's output is a view, as one that was computed in another shape or order of axes is.
    """
    norm, ours = NORMS[case.norm], lib == "normkit"
    if not ours and (case.mask or not (norm.torch or norm.torch_layer)):
        return None
    names = [*case.tensors, *(["mask"] if case.mask else [])]
    absent = [n for n in ("weight", "bias", "running_mean", "running_var") if n not in case.tensors]
    body = [f"C, found = {channels(case)}, {{}}"]
    if absent:
        body.append(" = ".join(absent) + " = None")
    if case.threads != 1:
        body.append(f"torch.set_num_threads({case.threads})")
    as_layer = case.layer and bool(norm.layer if ours else norm.torch_layer)
    body += _prepare(case, as_layer)
    if as_layer:
        body += _layer_lines(case, ours)
    body += _norm_lines(case, ours, as_layer)
    body += _forward_lines(case, ours, as_view)
    body += _backward_lines(case, ours)
    if "running_mean" in case.tensors and "running_var" in case.tensors:
        of = "layer." if as_layer else ""  # which puts wider buffers in the place of narrow ones
        body.append(f"found |= {{'running_mean': {of}running_mean, 'running_var': {of}running_var}}")
        if as_layer and case.norm != "frozen_batch_norm":
            body.append("found['batches'] = layer.num_batches_tracked")
    body.append("return found")
    return f"def with_{lib}({', '.join(names)}):\n" + "\n".join("    " + line for line in body) + "\n"


def _prepare(case: Case, as_layer: bool) -> list[str]:
    lines = []
    for name, array in case.tensors.items():
        if array.trick:
            lines.append(f"{name} = {array.trick}({name})")
    lines += [f"{name}.requires_grad_()" for name in case.wanted if not (as_layer and _is_parameter(case, name))]
    if case.alias:
        lines.append(ALIASES[case.alias])
    return lines


def _is_parameter(case: Case, name: str) -> bool:
    return name in ("weight", "bias") and case.norm != "frozen_batch_norm"


def _layer_lines(case: Case, ours: bool) -> list[str]:
    norm = NORMS[case.norm]
    text = filled(norm.layer if ours else norm.torch_layer, case)
    if ours:
        text += f", activation={case.activation}" if case.activation else ""
        text += ")"
    else:
        text += ")"
    lines = [f"layer = {text}"]
    for name in ("weight", "bias"):
        if name not in case.tensors:
            continue
        if _is_parameter(case, name):
            lines.append(f"layer.{name} = {name} = nn.Parameter({name}, requires_grad={name in case.wanted})")
        else:
            lines.append(f"layer.{name} = {name}")
    for name in ("running_mean", "running_var"):
        if name in case.tensors:
            lines.append(f"layer.{name} = {name}")
    lines.append(f"layer.train({case.training})")
    return lines


def _norm_lines(case: Case, ours: bool, as_layer: bool) -> list[str]:
    norm, adds = NORMS[case.norm], case.norm.startswith("add_")
    extras = ""
    if "residual" in case.tensors and not adds:
        extras += ", residual=residual"
    if case.activation and not as_layer:
        extras += f", activation={case.activation}"
    if case.mask:
        extras += ", mask=mask"
    pair = ", ".join(n if n in case.tensors else "None" for n in ("scale", "shift"))
    if is_modulated(case):
        extras += f", modulate=({pair})"
    if ours:
        text = f"layer(x{extras})" if as_layer else filled(norm.function, case) + extras + ")"
    else:
        text = "layer(x)" if as_layer else filled(norm.torch, case)
        if is_modulated(case):
            text = f"modulated({text}, {pair}, {axes_of(case)})"
        if "residual" in case.tensors and not adds:
            text = f"add({text}, residual)"
        if case.activation:
            text = f"activate({text}, {case.activation})"
        text += ", x + residual" if adds else ""
    return ["def norm(x):", f"    return {text}"]


def _forward_lines(case: Case, ours: bool, as_view: bool) -> list[str]:
    if case.transform:
        lines = list(TRANSFORMS[case.transform])
    elif case.norm.startswith("add_"):
        lines = ["y, found['total'] = y, total = norm(x)"]
    else:
        lines = ["y = norm(x)"]
    if as_view:
        lines.append("y = y.view_as(y)")
    if case.after:
        lines.append(AFTERS[case.after])
    lines = _within(lines, _theirs(case.contexts, ours))
    if case.transform not in ("grad", "vmap_grad", "jacrev", "jacfwd", "grad_grad"):
        lines.append("found['y'] = y")
    return lines


def _backward_lines(case: Case, ours: bool) -> list[str]:
    lines = []
    if case.hook:
        lines.append(f"y.register_hook(where_given({HOOKS[case.hook]}))")
    if case.edit:
        edit = EDITS[case.edit]
        lines += [edit] if edit.startswith(("freed", "y", "x.data")) else ["with torch.no_grad():", "    " + edit]
    if case.transform not in KEEPS_GRAPH or case.plan == "none" or not case.wanted:
        return lines
    lines.append(f"names, leaves = {list(case.wanted)}, [{', '.join(case.wanted)}]")
    return lines + _within([_helpers(line) for line in PLANS[case.plan]], _theirs(case.around, ours))


def _helpers(line: str) -> str:
    collect = "{f'd{n}': leaf.grad for n, leaf in zip(names, leaves)}"
    line = line.replace("collect()", collect)
    if "named(" in line:
        last = line.endswith(", -1)")
        inner = line[line.index("named(") + 6 : line.rindex(", -1)" if last else ")")]
        names = "names[-1:]" if last else "names"
        line = f"found |= {{f'd{{n}}': d for n, d in zip({names}, {inner})}}"
    return line


def _theirs(contexts: tuple[str, ...], ours: bool) -> list[str]:
    return [c for c in contexts if ours or not c.startswith("nk.")]


def _within(lines: list[str], contexts: list[str]) -> list[str]:
    if not contexts:
        return lines
    return [f"with {', '.join(contexts)}:", *("    " + line for line in lines)]
