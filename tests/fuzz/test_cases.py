"""Cases are the same for ever, whole, and made of everything that the tables hold."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache

import pytest
from tools.fuzz import pools
from tools.fuzz.case import SIMPLEST, Case, features
from tools.fuzz.finding import Finding
from tools.fuzz.findings import key
from tools.fuzz.fit import fit
from tools.fuzz.generate import draw
from tools.fuzz.program import render, render_make

MANY = 4000


@cache
def cases() -> tuple[Case, ...]:
    return tuple(draw(1, number) for number in range(MANY))


def test_a_number_is_always_the_same_case() -> None:
    assert [draw(1, n) for n in range(50)] == list(cases()[:50])
    assert draw(2, 0) != draw(1, 0)


def test_a_case_that_fits_stays_as_it_is() -> None:
    for case in cases()[:1000]:
        assert fit(case) == case


def test_the_simplest_case_fits_and_has_nothing_unusual() -> None:
    assert fit(SIMPLEST) == SIMPLEST
    assert features(SIMPLEST) == frozenset()


def test_every_program_is_sound_text_for_both_libraries() -> None:
    both = 0
    for case in cases():
        ast.parse(render_make(case))
        ours, theirs = render(case, "normkit"), render(case, "torch")
        assert ours is not None
        ast.parse(ours)
        if theirs is not None:
            ast.parse(theirs)
            assert "nk." not in theirs
            both += 1
    assert both > MANY // 2  # torch is the authority wherever it has the norm


@pytest.mark.parametrize(
    ("what", "table"),
    [
        ("norm", pools.NORMS), ("transform", pools.TRANSFORMS), ("after", pools.AFTERS), ("hook", pools.HOOKS),
        ("plan", pools.PLANS), ("edit", pools.EDITS), ("alias", pools.ALIASES), ("mask", pools.MASKS),
        ("activation", (*pools.ACTIVATIONS, *pools.WRONG_ACTIVATIONS)), ("eps", (*pools.EPS, *pools.WRONG_EPS)),
        ("momentum", (*pools.MOMENTA, *pools.WRONG_MOMENTA)),
    ],
)  # fmt: skip
def test_everything_in_a_table_is_drawn(what: str, table: tuple[str, ...]) -> None:
    drawn = Counter(getattr(case, what) for case in cases())
    assert set(table) <= set(drawn), set(table) - set(drawn)


def test_every_trick_layout_context_and_hook_is_drawn() -> None:
    arrays = [array for case in cases() for array in case.tensors.values()]
    assert set(pools.TRICKS) <= {a.trick for a in arrays}
    assert set(pools.LAYOUTS) | set(pools.VECTOR_LAYOUTS) <= {a.layout for a in arrays}
    assert set(pools.VALUES) <= {a.values for a in arrays}
    for name in ("scale", "shift"):
        assert set(pools.FORMS) <= {case.tensors[name].form for case in cases() if name in case.tensors}
    contexts = {text for case in cases() for text in case.contexts}
    assert {*pools.CONTEXTS, *(f"saved({kind!r})" for kind in pools.SAVED)} <= contexts
    assert set(pools.AROUND) <= {text for case in cases() for text in case.around}


def test_shapes_hold_zeros_tails_large_ones_and_all_ranks() -> None:
    shapes = [case.shape for case in cases()]
    assert {1, 2, 3, 4, 5} <= {len(s) for s in shapes}
    assert any(0 in s for s in shapes)
    assert any(s[-2:] == (7, 7) for s in shapes)
    assert any(s[-2:] == (1, 1) for s in shapes)
    elements = []
    for shape in shapes:
        elements.append(1)
        for size in shape:
            elements[-1] *= size
    assert max(elements) > 50_000  # several threads


def test_a_key_has_no_numbers() -> None:
    one = Finding("accepted", "RuntimeError: expected scalar type Float but found Half at [2, 3]", "", 1)
    two = Finding("accepted", "RuntimeError: expected scalar type Double but found Long at [7]", "", 1)
    assert key(one) == key(two)
    assert key(one) != key(Finding("refused", one.what, "", 1))
