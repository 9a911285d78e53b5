"""Batches come in every form, from lists, loaders and generators."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import normkit as nk
from tests.statistics.nets import assert_unchanged, data, net, state

Pair = namedtuple("Pair", ["image", "label"])


class ByKeyword(nn.Module):
    """Takes its input by name, as models of sequences do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, *, image: Tensor) -> Tensor:
        return self.inner(image)


FORMS = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, 7),
    "list": lambda x: [x, None],
    "namedtuple": lambda x: Pair(x, "cat"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("make", [list, iter, tuple], ids=["list", "iterator", "tuple"])
def test_forms_of_a_batch(form, make):
    right, model = net(), net()
    nk.recalibrate(right, data())
    report = nk.recalibrate(model, make([form(x) for x in data()]))
    assert_unchanged(model, state(right))
    assert report.batches == 3


def test_a_dict_is_passed_by_keyword():
    right, model = net(), ByKeyword()
    nk.recalibrate(right, data())
    nk.recalibrate(model, ({"image": x} for x in data()))
    assert_unchanged(model.inner, state(right))


def test_forward_runs_what_nothing_else_can():
    right, model = net(), net()
    nk.recalibrate(right, data())
    nk.recalibrate(model, enumerate(data()), forward=lambda model, batch: model(batch[1]))
    assert_unchanged(model, state(right))


def test_a_data_loader():
    x = torch.cat(data())
    model = net()
    report = nk.recalibrate(model, DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=4, shuffle=True))
    torch.testing.assert_close(model[0].running_var, x.var((0, 2, 3)), rtol=1e-6, atol=0)
    assert report.batches == 4


def test_steps_takes_so_many_batches_and_not_one_more():
    taken = []

    def loader():
        for i, x in enumerate(data((4, 4, 4, 4))):
            taken.append(i)
            yield x

    right, model = net(), net()
    nk.recalibrate(right, data((4, 4)))
    report = nk.recalibrate(model, loader(), steps=2)
    assert_unchanged(model, state(right))
    assert (report.batches, taken) == (2, [0, 1])


def test_more_steps_than_batches_uses_what_there_is():
    model = net()
    assert nk.recalibrate(model, data(), steps=200).batches == 3
    assert model[0].momentum == 0.1


@pytest.mark.parametrize("batch", [3, "x", set(), object(), [], ()], ids=lambda batch: type(batch).__name__)
def test_an_unknown_form_is_an_error_that_names_forward(batch):
    model = net()
    before = state(model)
    with pytest.raises(TypeError, match="forward=lambda model, batch"):
        nk.recalibrate(model, [data()[0], batch])
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "batches", [torch.zeros(2, 3, 6, 6), {"x": 1}, "name", 3], ids=["tensor", "dict", "str", "int"]
)
def test_what_is_no_iterable_of_batches_is_refused(batches):
    with pytest.raises(TypeError, match="put a single batch into a list"):
        nk.recalibrate(net(), batches)


def test_no_batch_is_an_error():
    used = iter(data())
    list(used)
    with pytest.raises(ValueError, match="expected at least one batch, got none"):
        nk.recalibrate(net(), used)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_steps_must_be_a_positive_int(steps):
    with pytest.raises(ValueError, match="steps must be None"):
        nk.recalibrate(net(), data(), steps=steps)


def test_an_unknown_estimator_is_named():
    with pytest.raises(ValueError, match="'population' or 'batch_average', got 'exact'"):
        nk.recalibrate(net(), data(), estimator="exact")


def test_a_generator_cannot_be_gone_over_layer_by_layer():
    with pytest.raises(ValueError, match="can be gone over only once"):
        nk.recalibrate(net(), iter(data()), sequential=True)


def test_compiled_and_wrapped_models_are_run_through_their_own_module():
    right, inner = net(), net()
    nk.recalibrate(right, data())
    nk.recalibrate(torch.compile(inner, backend="eager"), data())
    assert_unchanged(inner, state(right))
    inner = net()
    nk.recalibrate(nn.DataParallel(inner), data())
    assert_unchanged(inner, state(right))


def test_a_module_compiled_in_place_is_seen_too():
    torch._dynamo.reset()
    right, model = net(), net()
    nk.recalibrate(right, data())
    model[0].compile(backend="eager")
    model.eval()(data()[0])
    nk.recalibrate(model, data())
    assert_unchanged(model, state(right))
