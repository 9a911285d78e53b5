"""The words of the page: numbers, names, badges."""

from __future__ import annotations

from .finding import WHOLE
from .html import Html, tag

LEVELS = ("error", "warning", "note")
SIGNS = {"error": "✗", "warning": "!", "note": "i", "ok": "✓"}


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, thousands apart, a real minus sign; "not finite" for None."""
    if value is None:
        return "not finite"
    text = f"{value:.{digits}g}"
    return (f"{float(text):,.0f}" if 1e3 <= abs(float(text)) < 1e6 else text).replace("-", "−")


def share(value: float) -> str:
    """A part of the gap."""
    return f"{value:.2f}".replace("-", "−")


def name(where: str) -> Html:
    """A layer's qualified name, whatever it holds."""
    return tag("span", where or WHOLE, class_="name")


def badge(level: str, text: str) -> Html:
    return tag("span", tag("span", SIGNS[level], aria_hidden="true"), text, class_=f"badge {level}")


def linked(text: str, anchor: str | None) -> Html | str:
    return text if anchor is None else tag("a", text, href=f"#{anchor}")
