"""Parameter groups for an optimizer: weight decay on weights, none on norms and biases."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..model.families import family


def parameter_groups(model: nn.Module, weight_decay: float = 1e-4) -> list[dict[str, Any]]:
    r"""Two groups for any `torch.optim` optimizer: [weights with `weight_decay`, norms and biases with 0].

    Decay of a weight in front of a norm changes the effective learning rate only; decay of a norm's own gamma and beta
    pulls the function itself towards zero (gamma towards a dead channel).

    - No decay: every parameter of a normalization layer (any class with "Norm" in its name whose parameters have at
      most one dimension counts, so RMS norms of model libraries do) and every parameter called "bias" or "..._bias".
    - Each parameter appears once, shared ones too; one that a norm and another layer share gets no decay. Parameters
      with requires_grad=False are left out.
    - Order: as `model.named_parameters()`. Both groups are always there; one may be empty.

    Raises ValueError for a negative `weight_decay`.
    Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019; Zhang et al., "Three Mechanisms of Weight Decay
    Regularization", 2019.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be at least 0, but got {weight_decay}")
    exempt = {
        id(p) for module in model.modules() for n, p in module.named_parameters(recurse=False) if _free(module, n, p)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in exempt], "weight_decay": 0.0},
    ]


def _free(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    if name == "bias" or name.endswith("_bias") or family(module) is not None:
        return True
    return "Norm" in type(module).__name__ and parameter.dim() <= 1
