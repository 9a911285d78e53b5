"""A name that a module does not have gets an error that names what is meant."""

import types

import pytest

import normkit as nk


@pytest.mark.parametrize(
    ("module", "name", "meant"),
    [
        (nk, "GhostBatchNorm", "; it has GhostBatchNorm1d, GhostBatchNorm2d and GhostBatchNorm3d"),
        (nk.nn, "InstanceNorm", "; it has InstanceNorm1d, InstanceNorm2d and InstanceNorm3d"),
        (nk, "layernorm", "; it has LayerNorm"),
        (nk, "recalibrat", "; it has recalibrate"),
        (nk.functional, "groupnorm", "; it has group_norm"),
        (nk, "quite_another_thing", ""),
        (nk.functional, "__wrapped__", ""),
    ],
)
def test_an_unknown_name_is_told_what_comes_near(module: types.ModuleType, name: str, meant: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(module, name)
    assert str(caught.value) == f"module {module.__name__!r} has no attribute {name!r}{meant}"
    assert caught.value.name == name
