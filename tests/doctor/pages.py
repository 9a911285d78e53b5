"""What the tests of the page render: a small network with a planted fault, and a name that no page may run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from normkit.doctor.figures import figures
from normkit.doctor.finding import Finding, Severity
from normkit.doctor.gap_report import Gap, LayerShare, Test
from normkit.doctor.page import render
from tests.cases import generator

PLAIN = "block1.norm1"
HOSTILE = '</script><img src=x onerror="window.broken=1">\'\\<b-roken>{{7*7}}\u2028\u202e<!--'


def finding(code: str, where: str, severity: Severity, **fields: Any) -> Finding:
    plain = Finding(
        code, where, severity, 0.733, 0.1, "sqrt(var + eps)", f"a cause of {code}", f"nk.recalibrate(model)  # {code}",
        f"docs/doctor/{code}.md",
    )  # fmt: skip
    return replace(plain, **fields)


def findings(name: str = PLAIN) -> list[Finding]:
    return [
        finding("NK201", "block0.norm1", "note", measured=None, limit=None),
        finding("NK103", name, "error", follows=(f"NK104 {name}",), cause=f"NK103 of {name}"),
        finding("NK104", name, "error"),
        finding("NK301", "", "note", measured=1234.5, limit=None, fix=name),
    ]


def page(name: str = PLAIN) -> str:
    about = {"normkit": "0.1.0", "images": "128", **({} if name == PLAIN else {name: name})}
    title = "package.module:factory" if name == PLAIN else name
    return render(title, about, findings(name), layers(name), gap(name))


def layers(name: str = PLAIN) -> list[dict[str, Any]]:
    g = generator(3)
    found = []
    for i, one in enumerate(("block0.norm1", name, "block1.norm2")):
        data = torch.randn(12, generator=g), torch.rand(12, generator=g) + 0.1
        running = data[0] + 0.02, data[1] * (14 if i == 1 else 1)
        distance = torch.full((12,), 0.73 if i == 1 else 0.02)
        share = 0.83 if i == 1 else None
        gamma = torch.randn(12, generator=g)
        found.append(
            figures(one, "BatchNorm2d" if i else name, running=running, data=data, gamma=gamma, beta=gamma,
                    distance=distance, eps=1e-5, momentum=0.1, counter=200.0, saturated=0.02, share=share)
        )  # fmt: skip
    return found


def gap(name: str = PLAIN) -> Gap:
    shares = (
        LayerShare(name, 0.83, 0.8, 0.86, 0.73, "running_var is 14 times the data's; momentum 0.001 after 200 steps"),
        LayerShare("block0.norm1", -0.02, -0.03, 0.0, 0.12, "running_mean is 0.12 standard deviations from the data's"),
    )
    return Gap(
        unit="loss", running=2.4, exact=0.5, batch=0.48, training=None, training_refused=f"ValueError: {name}",
        test=Test(8, 1.9, 0.1, 0.05, 0.3), reason="", shares=shares, others=4, others_share=0.19, layers=6, orders=4,
        batches=8, passes=20,
    )  # fmt: skip
