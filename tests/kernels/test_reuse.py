"""Memory of large outputs is used again, and never while somebody holds it."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit.kernels import memory, native
from tests.kernels.native_isa import needs_native

pytestmark = needs_native

SHAPE = (4, 16, 96, 96)  # 2.25 MB: reused from 1 MB on


@pytest.fixture(autouse=True)
def _keep() -> Iterator[None]:
    """Start with nothing kept, allow 64 MB, and put the default back."""
    native.keep_memory(0)
    native.keep_memory(64 << 20)
    yield
    native.keep_memory(0)
    native.keep_memory(memory.to_keep())


def _norm(shape: tuple[int, ...]) -> Tensor:
    return nk.functional.group_norm(torch.randn(shape), 2)


def test_a_freed_output_is_the_next_one() -> None:
    y = _norm(SHAPE)
    address, size = y.data_ptr(), y.nbytes
    assert native.kept_memory() == 0
    del y
    assert native.kept_memory() == size
    again = _norm(SHAPE)
    assert again.data_ptr() == address
    assert native.kept_memory() == 0


def test_an_output_that_is_held_keeps_its_memory_and_values() -> None:
    held = [_norm(SHAPE) for _ in range(4)]
    before = [y.clone() for y in held]
    view = held.pop().view(-1)[5:]  # a view holds the memory as well
    for _ in range(8):
        _norm(SHAPE)
    assert len({y.data_ptr() for y in held} | {view.data_ptr() - 5 * 4}) == 4
    for y, value in zip(held, before[:3], strict=True):
        assert torch.equal(y, value)
    assert torch.equal(view, before[-1].view(-1)[5:])


def test_gradients_are_reused_like_outputs_and_survive_their_graph() -> None:
    bn = nk.BatchNorm2d(SHAPE[1])
    expected = torch.nn.BatchNorm2d(SHAPE[1])
    for _ in range(3):
        x = torch.randn(SHAPE)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        weight = torch.randn(SHAPE)
        (bn(a) * weight).sum().backward()
        (expected(b) * weight).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    del a  # its gradient took the memory that the output had left
    assert native.kept_memory() == x.nbytes


def test_strides_of_channels_last_and_of_sizes_of_one_are_kept() -> None:
    for shape in [(2, 16, 160, 160), (1, 64, 100, 100), (1, 1, 800, 800)]:
        x = torch.randn(shape).to(memory_format=torch.channels_last)
        assert nk.functional.group_norm(x, 1).stride() == x.stride()


def test_what_is_kept_stays_below_the_limit() -> None:
    native.keep_memory(5 << 20)  # two of 2.25 MB
    held = [_norm(SHAPE) for _ in range(5)]
    held.clear()
    assert 0 < native.kept_memory() <= 5 << 20
    native.keep_memory(0)
    assert native.kept_memory() == 0


def test_memory_of_a_size_that_nobody_asks_for_any_more_is_freed() -> None:
    y = _norm(SHAPE)
    del y
    other = (1, 2, 512, 257)
    for _ in range(1100):
        nk.functional.group_norm(torch.zeros(()).expand(other).contiguous(), 2)
    assert native.kept_memory() < 2 * 512 * 257 * 4 + 1


def test_threads_do_not_share_outputs() -> None:
    def work(seed: int) -> bool:
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        first = nk.functional.group_norm(x, 2)
        value = first.clone()
        return all(torch.equal(nk.functional.group_norm(x, 2), value) for _ in range(10)) and torch.equal(first, value)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_outputs_can_be_copied_saved_and_shared() -> None:
    y = _norm(SHAPE)
    assert torch.equal(copy.deepcopy(y), y)
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), y)
    value = y.clone()
    assert y.share_memory_().is_shared()
    assert torch.equal(y, value)
    assert torch.equal(torch.from_numpy(y.numpy()), value)


@pytest.mark.parametrize(("asked", "expected"), [("0", 0), ("12", 12 << 20), ("-3", 0)])
def test_the_environment_sets_the_limit(asked: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMKIT_KEEP_MB", asked)
    assert memory.to_keep() == expected


def test_a_limit_that_is_no_number_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMKIT_KEEP_MB", "lots")
    with pytest.warns(RuntimeWarning, match="NORMKIT_KEEP_MB must be a whole number of megabytes, got 'lots'"):
        assert memory.to_keep() > 0
