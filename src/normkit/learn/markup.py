r"""The text of a section to HTML.

    [[one || 一]]                          both languages; the page shows one
    $\frac{a}{\sqrt{b}} x_{i} \sym{eps}{ε}$  a formula; a symbol is named after the control that moves it
    {{range eps -12 1 0.5 -5 log           a macro and its arguments, then one text per line
    [[epsilon || ε]]}}

Rules: the text is ours, so it may hold HTML; code is escaped. A macro of an unknown name, or a brace left over, is a
ValueError: nothing of a slip reaches the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape

_MACRO = re.compile(r"\{\{(\w+)(.*?)\}\}", re.DOTALL)
_BOTH = re.compile(r"\[\[(.*?)\s*\|\|\s*(.*?)\]\]", re.DOTALL)
_FORMULA = re.compile(r"\$(.+?)\$", re.DOTALL)
_TEX = (  # innermost first: what is made holds no braces
    (re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}"), r'<span class="frac"><span>\1</span><span>\2</span></span>'),
    (re.compile(r"\\sqrt\{([^{}]*)\}"), r'√<span class="root">\1</span>'),
    (re.compile(r"\\sym\{([^{}]*)\}\{([^{}]*)\}"), r'<b class="sym" data-sym="\1">\2</b>'),
    (re.compile(r"_\{([^{}]*)\}"), r"<sub>\1</sub>"),
    (re.compile(r"\^\{([^{}]*)\}"), r"<sup>\1</sup>"),
)
BADGES = {
    "exact": ("✓", "[[exact || 精确成立]]"),
    "supported": ("✓", "[[supported || 支持]]"),
    "not-supported": ("✗", "[[not supported || 不支持]]"),
    "undecided": ("?", "[[undecided || 未定]]"),
    "contested": ("≈", "[[contested || 有争议]]"),
}


def expand(text: str, section: str) -> str:
    """The HTML of a section's text; `section` is its anchor, which keeps the ids of its controls apart."""

    def macro(found: re.Match[str]) -> str:
        head, *texts = found[2].split("\n")
        if found[1] not in MACROS:
            raise ValueError(f"{section}: no macro is called {found[1]}: there are {', '.join(MACROS)}")
        return MACROS[found[1]](section, head.split(), [text.strip() for text in texts if text.strip()])

    made = _FORMULA.sub(lambda found: formula(found[1]), _MACRO.sub(macro, text))
    made = _BOTH.sub(r'<span lang="en">\1</span><span lang="zh">\2</span>', made)
    if left := re.search(r"\{\{|\}\}|\[\[|\]\]|\\frac|\\sqrt|\\sym", made):
        raise ValueError(
            f"{section}: {left[0]} is left over near {made[max(0, left.start() - 40) : left.end() + 40]!r}"
        )
    return made


def formula(text: str) -> str:
    r"""`\frac`, `\sqrt`, `\sym`, `_{}` and `^{}` as spans."""
    before = ""
    while before != text:
        before = text
        for pattern, made in _TEX:
            text = pattern.sub(made, text)
    return f'<span class="math">{text}</span>'


def _range(section: str, given: list[str], texts: list[str]) -> str:
    name, low, high, step, value, *flags = given
    shown = " data-log" if "log" in flags else ""
    unit = f' data-unit="{flags[-1]}"' if flags and flags[-1] != "log" else ""
    key = f"{section}-{name}"
    return (
        f'<div class="control" data-for="{name}"><label for="{key}">{texts[0]}</label>'
        f'<output for="{key}"></output><input type="range" id="{key}" data-name="{name}" min="{low}" max="{high}" '
        f'step="{step}" value="{value}"{shown}{unit}></div>'
    )


def _choice(section: str, given: list[str], texts: list[str]) -> str:
    name, *values = given
    made = [f'<fieldset class="control choice" data-for="{name}"><legend>{texts[0]}</legend>']
    for index, (value, text) in enumerate(zip(values, texts[1:], strict=True)):
        key = f"{section}-{name}-{value}"
        checked = " checked" if index == 0 else ""
        made.append(
            f'<label for="{key}"><input type="radio" id="{key}" name="{section}-{name}" data-name="{name}" '
            f'value="{value}"{checked}><span>{text}</span></label>'
        )
    return "".join(made) + "</fieldset>"


def _button(_section: str, given: list[str], texts: list[str]) -> str:
    return f'<button type="button" data-do="{given[0]}">{texts[0]}</button>'


def _guess(section: str, given: list[str], texts: list[str]) -> str:
    low, high, step, value, *flags = given
    log = " data-log" if "log" in flags else ""
    question, why = texts
    return (
        f'<div class="guess"><p class="eyebrow">[[Guess first || 先猜一猜]]</p>'
        f'<label for="{section}-guess">{question}</label><div class="line"><input type="range" id="{section}-guess" '
        f'data-guess min="{low}" max="{high}" step="{step}" value="{value}"{log}>'
        f'<output for="{section}-guess"></output></div>'
        f'<button type="button" data-check>[[Compare || 对答案]]</button>'
        f'<div class="truth" role="status" hidden><div class="scale"></div><p>{why}</p></div></div>'
    )


def _figure(section: str, given: list[str], texts: list[str]) -> str:
    key = f"{section}-{given[0]}-alt"
    return (
        f'<figure><div class="plot" data-plot="{given[0]}" role="img" aria-labelledby="{key}"></div>'
        f'<figcaption id="{key}">{texts[0]}</figcaption></figure>'
    )


def _reference(_section: str, given: list[str], texts: list[str]) -> str:
    lines = "\n".join(escape(text) for text in texts)
    return (
        f'<div class="fact"><p class="eyebrow">[[In the code || 对应代码]] · reference/{given[0]}</p>'
        f'<pre class="reference" data-file="{given[0]}" tabindex="0">{lines}</pre></div>'
    )


def _verdict(_section: str, given: list[str], texts: list[str]) -> str:
    word, *studies = given
    mark, text = BADGES[word]
    run = "".join(f" <code>normkit study {study}</code>" for study in studies)
    return (
        f'<div class="fact"><p class="eyebrow">[[What the evidence says || 证据怎么说]]</p>'
        f'<p><span class="badge {word}"><span aria-hidden="true">{mark}</span> {text}</span> {texts[0]}</p>'
        f'<p class="small">{run}</p></div>'
    )


def _exercise(_section: str, _given: list[str], texts: list[str]) -> str:
    question, answer = texts
    return (
        f'<div class="fact"><p class="eyebrow">[[Exercise || 练习]]</p><p>{question}</p>'
        f"<details><summary>[[Answer || 答案]]</summary><p>{answer}</p></details></div>"
    )


MACROS: dict[str, Callable[[str, list[str], list[str]], str]] = {
    "range": _range,
    "choice": _choice,
    "button": _button,
    "guess": _guess,
    "figure": _figure,
    "reference": _reference,
    "verdict": _verdict,
    "exercise": _exercise,
}
