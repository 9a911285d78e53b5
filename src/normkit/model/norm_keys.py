"""Which entries of a model's state_dict belong to its normalization layers: `nk.norm_keys`."""

from __future__ import annotations

from torch import nn

from .families import family, is_like_norm

_COMPUTED = "parametrizations."


def norm_keys(model: nn.Module) -> list[str]:
    """The state_dict keys of all normalization layers of `model`: their parameters and buffers.

    FedBN leaves them out of what clients share (Li et al., "FedBN: Federated Learning on Non-IID Features via Local
    Batch Normalization", 2021). The layers are those of torch.nn and normkit, subclasses, frozen ones, and classes of
    other libraries that look like a norm: with running statistics, or "Norm" in their name and one value a channel.
    What other modules inside of them hold (the weight of an activation) is not theirs.

    Returns: the keys in the state_dict's order, each once; a layer with several names under each of them.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model (a torch.nn.Module), got {model!r}")
    norms = {
        f"{name}." if name else ""
        for name, module in model.named_modules(remove_duplicate=False)
        if family(module) is not None or is_like_norm(module)
    }
    return [key for key in model.state_dict() if _owner(key) in norms]


def _owner(key: str) -> str:
    """ "layer1.bn." of "layer1.bn.weight" and of "layer1.bn.parametrizations.weight.original"."""
    before, computed, _ = key.rpartition(_COMPUTED)
    return before if computed and (not before or before.endswith(".")) else key[: key.rfind(".") + 1]
