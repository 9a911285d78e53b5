"""A jvp of a jvp of torch's training batch norm is silently wrong."""

from collections.abc import Callable

import torch
from torch import Tensor

import normkit as nk

TITLE = "jvp of jvp"
MEASURES = "second derivative of sum(c · BN(x)²) along v = (1, −2, 0.5, 1), c = (1, 2, 3, 4), float64, forward mode"
THREADS = ("196699", "198017")
TOLERANCE = 1e-8  # float64 through two derivatives that cancel to a tenth of their terms


def second(norm: Callable[[Tensor], Tensor]) -> float:
    x = torch.tensor([[0.3], [0.6], [-0.1], [0.2]], dtype=torch.float64)
    v = torch.tensor([[1.0], [-2.0], [0.5], [1.0]], dtype=torch.float64)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)[:, None]

    def first(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: (weights * norm(x) ** 2).sum(), (x,), (v,))[1]

    return torch.func.jvp(first, (x,), (v,))[1].item()


def truth() -> float:
    """The formula itself: plain torch operations, every one of which has right derivatives."""
    return second(lambda x: (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())


def with_torch() -> float:
    return second(lambda x: torch.nn.functional.batch_norm(x, None, None, training=True))


def with_normkit() -> float:
    return second(lambda x: nk.functional.batch_norm(x, None, None, training=True))


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
