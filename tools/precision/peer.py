"""What torch-audit says of a model: its static rules, then one training step of a copy, as its own page shows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

# of its rules those about normalization: a bias before a norm, decay of norms or biases, a norm called twice
ABOUT_NORMS = ("TA400", "TA402", "TA501")
ALARMS = ("WARN", "ERROR", "FATAL")


@dataclass(frozen=True)
class Said:
    """rule; alarm: whether it is above its INFO; text: where and what."""

    rule: str
    alarm: bool
    text: str


def audit(model: Any, batches: Any, options: Mapping[str, Any]) -> list[Said]:
    """Each finding once; empty where it takes nothing of the kind (a bare state dict)."""
    from torch_audit import Auditor

    if not isinstance(model, nn.Module):
        return []
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    twin = copy.deepcopy(inner)
    if not isinstance(twin, fx.GraphModule):  # an exported one takes no mode
        twin.train()
    optimizer = options.get("optimizer")
    groups = [] if optimizer is None else optimizer.param_groups
    decay = max((group.get("weight_decay", 0.0) for group in groups), default=0.0)
    given = torch.optim.SGD(twin.parameters(), 0.1, weight_decay=decay) if groups else None
    auditor = Auditor(twin, optimizer=given, every_n_steps=1)
    with auditor:
        auditor.audit_static()
        auditor.audit_init()
        if batches:
            try:
                output = auditor.forward(batches[0].clone())
                auditor.backward(_loss(output))
            except Exception as error:  # what the model raises is all that its user sees
                return [*_said(auditor.findings), Said("raises", True, f"{type(error).__name__}: {error}")]
    return _said(auditor.findings)


def names(found: list[Said], healthy: list[Said], *where: str) -> list[str]:
    """The rules that say more than of the healthy net, and name one of these layers; of "" anything new does."""
    known = {(said.rule, said.text) for said in healthy}
    new = [said for said in found if (said.rule, said.text) not in known]
    layers = [layer for layer in where if layer]
    return sorted({said.rule for said in new if not layers or any(layer in said.text for layer in layers)})


def _said(findings: Any) -> list[Said]:
    return [
        Said(found.rule_id, found.severity.value in ALARMS, f"{found.module_path} {found.entity} {found.message}")
        for found in findings
    ]


def _loss(output: Any) -> Tensor:
    values = output if isinstance(output, (list, tuple)) else output.values() if isinstance(output, dict) else [output]
    tensors = [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]
    return torch.stack([tensor.float().square().mean() for tensor in tensors]).sum()
