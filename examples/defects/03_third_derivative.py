"""torch's double backward of training batch norm is itself differentiated wrongly: third derivatives are off."""

from collections.abc import Callable

import torch
from torch import Tensor

import normkit as nk

TITLE = "Third derivative of training batch norm"
MEASURES = "d³/dx₁³ of sum(c · BN(x)²) at x = (0.3, 0.6, −0.1, 0.2), c = (1, 2, 3, 4), all in float64"
THREADS = ("186256", "186779")
TOLERANCE = 1e-8  # float64 through three derivatives that cancel to a tenth of their terms


def third(norm: Callable[[Tensor], Tensor]) -> float:
    x = torch.tensor([[0.3], [0.6], [-0.1], [0.2]], dtype=torch.float64, requires_grad=True)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)[:, None]
    value = (weights * norm(x) ** 2).sum()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        value = gradient[0, 0]
    return value.item()


def truth() -> float:
    """The formula itself: plain torch operations, every one of which has right derivatives."""
    return third(lambda x: (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())


def with_torch() -> float:
    return third(torch.nn.BatchNorm1d(1, dtype=torch.float64))


def with_normkit() -> float:
    return third(nk.BatchNorm1d(1, dtype=torch.float64))


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
