"""Two parts of a model that are the same network twice, of which one takes no gradient: a student and its teacher.

Rule: blocks of one network are of one form too; a teacher's weights are those of its student, or an average of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..model.families import BATCH_FAMILIES, family

ALIKE = 0.5  # cosine between the weights; independent ones are at 0


def pairs(model: nn.Module) -> dict[str, str]:
    """Name of the teacher -> name of the student; the outermost parts only."""
    groups: dict[tuple[object, ...], list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if name and any(family(part) in BATCH_FAMILIES for part in module.modules()):
            state = module.state_dict(keep_vars=True)  # may hold what a module's get_extra_state gives
            held = {key: value for key, value in state.items() if isinstance(value, Tensor)}
            if any(is_lazy(tensor) for tensor in held.values()):
                continue
            own = tuple((key, tuple(tensor.shape)) for key, tensor in held.items())
            groups.setdefault(own, []).append((name, module))
    found: dict[str, str] = {}
    for group in groups.values():
        students = [one for one in group if any(p.requires_grad for p in one[1].parameters())]
        teachers = [one for one in group if not any(p.requires_grad for p in one[1].parameters())]
        for name, teacher in teachers if students else ():
            student = next((other for other, module in students if _alike(module, teacher)), None)
            if student is not None and not any(name.startswith(f"{outer}.") for outer in found):
                found[name] = student
    return found


@torch.no_grad()
def _alike(a: nn.Module, b: nn.Module) -> bool:
    """By the largest parameter of more than one dimension; a part without one is nobody's teacher."""
    both = [(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True) if p.dim() > 1 and not p.is_meta]
    if not both:
        return False
    p, q = max(both, key=lambda pair: pair[0].numel())
    return float(torch.cosine_similarity(p.flatten().float(), q.flatten().float(), dim=0)) > ALIKE
