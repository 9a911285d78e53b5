"""`nk.load_norm_state`: norms that were trained in another framework, into a model's layers.

Rules: everything is read, matched and converted before anything is written; the model is changed wholly or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..model.select import Site, select, why_no_family
from ..model.transaction import Transaction
from . import caffe, flax, haiku, keras, mxnet, onnx, paddle
from .facts import FACTS
from .foreign_norm import ForeignNorm
from .match import Names, matched, second_names
from .report import LoadedState
from .written import Given, Planned, plan, verify_shared


def load_norm_state(
    model: nn.Module,
    state: Any,
    source: str,
    names: Mapping[str, str | Sequence[str]] | str | None = None,
    *,
    eps: float | Mapping[str, float] | None = None,
    momentum: float | Mapping[str, float] | None = None,
    values: int | Mapping[str, int] | None = None,
    fix_gamma: bool | None = None,
) -> LoadedState:
    r"""Put the norms of another framework's state into a model: batch, layer, group, instance and RMS norm.

    gamma and beta become weight and bias, the moving statistics running_mean and running_var; eps and momentum are
    set on the layer, :math:`\mathrm{momentum} = 1 - \text{what the framework keeps of the old value}`. Caffe's
    statistics are divided by their factor, Haiku's are its averages, MXNet's fixed gamma is 1; what has no gamma or
    beta there gets 1 or 0, and takes no gradient. Gamma over several axes ends in the channels in Keras, TensorFlow,
    Flax and Haiku; they come first here. The evaluation output stays that of the source. docs/frameworks.md has the
    facts.

    Args:
        model: with norms of torch.nn or normkit; its layers, parameters and buffers stay the same objects.
        state: ``"keras"``, ``"tensorflow"``: a Keras model (it says eps and momentum), or variables by name.
            ``"flax"``: the variables, or an nnx state. ``"haiku"``: ``(params, state)``. ``"caffe"``: the path of a
            .caffemodel, or layers' blobs by name. ``"onnx"``: a ModelProto or the path of its file. ``"paddle"``,
            ``"mxnet"``: what their load functions give. Arrays of any library.
        source: the framework.
        names: the model's layer -> the state's norm (for Caffe also a pair with its Scale). Others, and None, go by
            equal names, slashes being dots. ``"order"``: the first to the first, and so on.
        eps: added to the variance there, where the state does not say and it is not the framework's default; one
            number, or by the model's layer.
        momentum: as the framework says it (0.99 keeps 0.99 of the old value).
        values: how many values of a channel a training batch had (N * H * W), one number or by the model's layer:
            a biased running variance is then multiplied by values / (values - 1), as PyTorch keeps it; evaluation then
            differs from the source's by that much. None: as it was.
        fix_gamma: of an MXNet symbol's BatchNorm, where its gamma is not 1.

    Returns:
        A :class:`LoadedState`: where each norm came from, what was converted, what is left on either side; printable,
        and JSON. Modes, gradients and num_batches_tracked stay (Haiku's counter is taken).

    Raises:
        ValueError: an unknown source, no norm on a side, names that do not fit, shapes that differ, a gamma for a layer
            without weight, statistics on one side only, NaN, an eps that nobody says, other values for a shared tensor;
            an unreadable file.
        TypeError: a state of another kind.
        OSError: a file that is not there.

    On any exception the model is as before.
    """
    if source not in FACTS:
        raise ValueError(f"source must be one of {', '.join(FACTS)}, but got {source!r}")
    facts = FACTS[source]
    if values is not None and facts.variance == "unbiased":
        raise ValueError(f"{facts.title}'s running variance is unbiased already: leave values= out")
    if fix_gamma is not None and source != "mxnet":
        raise ValueError(f"fix_gamma= is for MXNet, and the source is {source!r}")
    every = select(model, None, None)
    sites = [site for site in every if why_no_family(site.module) is None]
    norms = _read(state, source, names, fix_gamma)
    if not norms:
        raise ValueError(f"the state of {facts.title} has no norm that is known; see docs/frameworks.md for its names")
    pairs = matched(sites, norms, names)
    given = Given(eps, momentum, values)
    given.verify(pairs)
    plans = [plan(site, norm, facts, given) for site, norm in pairs.items()]
    verify_shared(plans)
    _write(model, plans)
    used = set(map(id, pairs.values()))
    return LoadedState(
        source,
        tuple(planned.report for planned in plans),
        tuple((site.name, _reason(site)) for site in every if site not in pairs),
        tuple(norm.name for norm in norms if id(norm) not in used),
    )


def _read(state: Any, source: str, names: Names, fix_gamma: bool | None) -> list[ForeignNorm]:
    scales = second_names(names)
    if source == "caffe":
        return caffe.read(state, scales)
    if scales:
        raise ValueError(f"names: a pair (norm, its scale) is for Caffe, and the source is {source!r}")
    if source == "mxnet":
        return mxnet.read(state, fix_gamma)
    readers = {"keras": keras, "tensorflow": keras, "flax": flax, "haiku": haiku, "paddle": paddle, "onnx": onnx}
    return readers[source].read(state)


def _reason(site: Site) -> str:
    return why_no_family(site.module) or "no norm of the state is for it"


def _write(model: nn.Module, plans: Sequence[Planned]) -> None:
    def write() -> None:
        for planned in plans:
            planned.write()

    with Transaction(model) as change, change:
        for planned in plans:
            change.keep_values(*planned.targets.values())
        change.commit(write)
