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
from html import escape, unescape

from ..studies import STUDIES
from . import verdicts

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


def texts(text: str, name: str) -> list[str]:
    """The texts of the first macro `name` in a section's text."""
    found = re.search(rf"\{{\{{{name}\b.*?\n(.*?)\}}\}}", text, re.DOTALL)
    return [] if found is None else [line.strip() for line in found[1].split("\n") if line.strip()]


def markdown(text: str, language: str) -> str:
    """One language of a text without macros, its formulas as TeX and its entities as characters."""
    spoken = _BOTH.sub(lambda found: found[1 if language == "en" else 2].strip(), text)
    return unescape(re.sub(r"\\sym\{[^{}]*\}\{([^{}]*)\}", r"\1", spoken))


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


def _free(section: str, given: list[str], texts: list[str]) -> str:
    """A line for the reader's own numbers; the page's script reads it."""
    key = f"{section}-{given[0]}"
    return (
        f'<div class="control free" data-for="{given[0]}"><label for="{key}">{texts[0]}</label>'
        f'<input type="text" id="{key}" data-free="{given[0]}" inputmode="text" autocomplete="off" spellcheck="false" '
        f'aria-describedby="{key}-error"><p class="bad small" id="{key}-error" role="status"></p></div>'
    )


def _upload(section: str, given: list[str], texts: list[str]) -> str:
    """A choice of a .npz, where `--serve` answers."""
    key = f"{section}-own"
    return (
        f'<div class="control served" data-for="own"><label for="{key}">{texts[0]}</label>'
        f'<input type="file" id="{key}" accept=".npz" data-upload="{given[0]}" aria-describedby="{key}-error">'
        f'<p class="bad small" id="{key}-error" role="status"></p></div>'
    )


def _library(_section: str, _given: list[str], texts: list[str]) -> str:
    """What the library answers, where it does."""
    return f'<p class="served library"><b>normkit</b> {texts[0]} <span class="value" data-out="library"></span></p>'


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
    """`exact` or `contested`, which the text itself answers for, and studies, whose words come from their results."""
    rows = [f"<p>{_badge(name)}</p>" for name in given if name in verdicts.WORDS]
    for study in (name for name in given if name not in verdicts.WORDS):
        run = f" <code>normkit study {study}</code>" if study in STUDIES else f" <code>{study}</code>"
        rows.append(f'<p class="small study">{_badge(verdicts.word(study))}{run}</p>')
    return (
        f'<div class="fact"><p class="eyebrow">[[What the evidence says || 证据怎么说]]</p>'
        f"{''.join(rows)}<p>{texts[0]}</p></div>"
    )


def _badge(word: str) -> str:
    mark, english, chinese = verdicts.WORDS[word]
    kind = word.replace(" ", "-")
    return f'<span class="badge {kind}"><span aria-hidden="true">{mark}</span> [[{english} || {chinese}]]</span>'


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
    "free": _free,
    "upload": _upload,
    "library": _library,
    "guess": _guess,
    "figure": _figure,
    "reference": _reference,
    "verdict": _verdict,
    "exercise": _exercise,
}
