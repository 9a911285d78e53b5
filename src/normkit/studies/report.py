"""The report: one self-contained HTML file, rendered from results and pictures by a pure function.

Rules: everything is escaped (jinja2 autoescape; only our own SVG and the escaped JSON are marked safe); no address is
loaded, which the page's content security policy also forbids; the numbers shown are those of the embedded results.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .study import Plot

ORDER = ("supported", "not supported", "undecided")


def render(results: Mapping[str, Any], plots: Mapping[str, Sequence[Plot]]) -> str:
    """`results`: the `report` section of results.json (about, right, fast, studies); `plots`: by study, or "fast"."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("normkit.studies", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "value": value, "thread": thread, "issue": issue, "arxiv": arxiv}
    template = environment.get_template("report.html.j2")
    return template.render(**results, plots=plots, cards=cards(results), json=embedded(results), **_titles(results))


def embedded(results: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in, nor open a comment there."""
    text = json.dumps(results, allow_nan=False, sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def cards(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """One card an act: the figure to remember and what it means."""
    made = []
    if rows := results["right"]:
        right = sum(row["normkit_right"] for row in rows)
        theirs = sum(row["torch_right"] for row in rows)
        text = f"of normkit’s answers match float64. Of torch’s, {theirs} do."
        made.append(_card("right", "Act 1 · Is it right?", f"{right}", f"of {len(rows)}", text))
    if rows := results["fast"]:
        worst = min(rows, key=lambda row: row["ratio"])
        least = f"{number(worst['ratio'], 3)}×, {name(worst)}"
        text = f"over {len(rows)} shapes and layouts (geometric mean). The least: {least}."
        mean = number(geometric_mean([row["ratio"] for row in rows]), 3)
        made.append(_card("fast", "Act 2 · Is it fast?", f"{mean}×", "torch’s speed", text))
    if studies := results["studies"]:
        words = [study["verdict"]["word"] for study in studies]
        text = (
            "claims supported" + "".join(f", {words.count(word)} {word}" for word in ORDER[1:] if word in words) + "."
        )
        eyebrow = "Act 3 · Why normalize?" if made else "Why normalize?"
        made.append(_card("why", eyebrow, str(words.count("supported")), f"of {len(words)}", text))
    return made


def name(row: Mapping[str, Any]) -> str:
    """A shape as (32, 64, 56, 56) NCHW."""
    return f"({', '.join(str(size) for size in row['shape'])}) {row['layout']}"


def geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, a real minus sign, powers of ten where they are shorter; a missing value is a dash."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    if 1e3 <= abs(float(text)) < 1e6:
        text = f"{float(text):,.0f}"
    mantissa, power, exponent = text.partition("e")
    times = f"×10{str(int(exponent)).translate(_SUPERSCRIPT)}" if power else ""
    return mantissa.replace("-", "−") + times


def value(answer: float | str | None, digits: int = 3) -> str:
    """A number, or what came instead of one (nan, inf, an error's name)."""
    return answer if isinstance(answer, str) else number(answer, digits)


def thread(text: str) -> str:
    """pytorch#1206 for a bare number, the text itself for another project's thread."""
    return f"pytorch#{text}" if text.isdigit() else text


def arxiv(source: str) -> str | None:
    """The address of a source that ends in "arXiv:1502.03167", or goes on behind it with a comma."""
    paper = source.partition("arXiv:")[2].partition(",")[0]
    return f"https://arxiv.org/abs/{paper}" if re.fullmatch(r"\d{4}\.\d{4,5}", paper) else None


def issue(text: str) -> str | None:
    """The address of a pytorch/pytorch issue; other projects' threads are named without one."""
    return f"https://github.com/pytorch/pytorch/issues/{text}" if text.isdigit() else None


def _card(anchor: str, eyebrow: str, figure: str, unit: str, text: str) -> dict[str, str]:
    return {"anchor": anchor, "eyebrow": eyebrow, "figure": figure, "unit": unit, "text": text}


def _titles(results: Mapping[str, Any]) -> dict[str, str]:
    whole = results["right"] and results["fast"] and results["studies"]
    return {
        "headline": "Is it right, is it fast, and why normalize?" if whole else "Why normalize?",
        "lead": "Everything below was computed by the command that wrote this page, on this machine: "
        f"{results['about']['machine']}.",
    }
