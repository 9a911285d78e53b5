"""The page is one file of escaped texts whose only script is our own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import torch

import normkit as nk
from normkit.cli import main
from normkit.doctor.figures import DRAWN, figures
from normkit.doctor.html import Html, tag
from normkit.doctor.page import render
from normkit.doctor.page_words import number
from tests.doctor import pages
from tests.doctor.nets import Residual, images, recalibrated
from tests.doctor.pages import HOSTILE, layers


class Seen(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_texts_and_attributes_are_escaped():
    assert tag("p", "<b>&\"'", title='"><i>') == '<p title="&quot;&gt;&lt;i&gt;">&lt;b&gt;&amp;&quot;&#x27;</p>'
    assert tag("p", [tag("b", "x"), None, ["y", Html("<br>")]], open=True, hidden=False) == "<p open><b>x</b>y<br></p>"
    assert tag("a", "x", class_="y", data_layer=3, aria_label="z") == '<a class="y" data-layer="3" aria-label="z">x</a>'
    assert tag("br") == "<br>"


def test_half_a_surrogate_pair_can_be_written():
    assert tag("p", "a\ud800b").encode("utf-8") == b"<p>a?b</p>"


def test_the_one_script_is_the_one_that_the_policy_names():
    page = pages.page()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;;" in page
    assert page.count("<script") == 2  # and the data


def test_no_attribute_runs_code_and_nothing_is_loaded():
    for name, attributes in Seen(pages.page()).tags:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "action", "formaction"):
            assert (attributes.get(key) or "#").startswith(("#", "data:,")), name


def test_hostile_names_are_text():
    page = pages.page(HOSTILE)
    seen = Seen(page)
    assert not any(name in ("img", "iframe", "b-roken") for name, _ in seen.tags)
    assert "".join(seen.texts).count(HOSTILE) >= 5
    assert [name for name, _ in seen.tags].count("script") == 2


def test_the_embedded_data_are_the_figures():
    page = pages.page(HOSTILE)
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert json.loads(embedded[1])["layers"] == layers(HOSTILE)
    assert page.isascii() or "\u2028" not in embedded[1]


def test_every_finding_and_layer_is_there_without_scripts():
    text = " ".join(Seen(pages.page()).texts)
    for finding in pages.findings():
        assert finding.cause in text
        assert finding.fix in text or finding.code == "NK104"  # which follows, and needs no fix of its own
    assert all(layer["name"] in text for layer in layers())
    assert "0.83" in text
    assert "momentum 0.001 after 200 steps" in text


def test_without_gap_layers_or_findings():
    page = render("Tiny", {}, [], [], None)
    assert "healthy" in page
    assert "Nothing is wrong" in page
    assert "The gap between" not in page


def test_a_layer_of_many_channels_draws_some_with_the_farthest_among_them():
    distance = torch.zeros(4000)
    distance[1234] = 3.0
    pair = torch.zeros(4000), torch.ones(4000)
    found = figures("wide", "BatchNorm2d", running=pair, data=pair, distance=distance, eps=1e-5)
    assert len(found["indices"]) <= DRAWN
    assert found["far"][found["indices"].index(1234)]
    assert found["channels"] == 4000


def test_figures_are_json_whatever_the_numbers():
    mean = torch.tensor([0.0, float("nan"), float("inf")])
    found = figures("odd", "BatchNorm2d", running=(mean, mean), data=(mean, mean), gamma=mean, distance=mean, eps=None)
    json.dumps(found, allow_nan=False)
    assert found["running_mean"] == [0.0, None, None]
    assert found["far"] == [False, True, True]
    render("Tiny", {}, pages.findings(), [found], None)


def test_figures_of_a_norm_over_several_axes_draw_nothing():
    found = figures("layer", "LayerNorm", gamma=torch.ones(4, 5), beta=torch.ones(3), eps=1e-5)
    assert found["gamma"] is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "not finite"), (0.12345, "0.123"), (-4600.0, "−4,600"), (1e-5, "1e−05"), (0.0, "0")],
)
def test_numbers(value, text):
    assert number(value) == text


def test_a_diagnosis_writes_its_page(tmp_path):
    model = recalibrated(Residual)
    model.block1.norm1.running_var.mul_(14)
    diagnosis = nk.diagnose(model, images())
    diagnosis.to_html(tmp_path / "page.html", "package:factory")
    text = " ".join(Seen((tmp_path / "page.html").read_text("utf-8")).texts)
    assert "package:factory" in text
    assert "of the gap is block1.norm1" in str(diagnosis)
    assert "running_var is 14 times the data's" in text
    assert "6 norms, in the order in which the data reach them" in text


def test_a_state_dict_has_a_page_too(tmp_path):
    diagnosis = nk.diagnose(recalibrated(Residual).state_dict())
    diagnosis.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "6 norms, in the model" in text
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    assert len(data["layers"][0]["running_mean"]) == 8
    assert data["layers"][0]["data_mean"] is None


def test_the_command_writes_it(tmp_path, monkeypatch):
    torch.save(recalibrated(Residual).state_dict(), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    main(["doctor", "net.pt", "--html", "page.html"])
    assert "net.pt" in (tmp_path / "page.html").read_text("utf-8")


def test_what_follows_from_a_finding_stands_under_it_and_is_not_counted():
    page = pages.page()
    assert page.count(' class="finding ') == 3
    texts = [text for text in Seen(page).texts if text.strip()]
    assert texts[texts.index("follows from it") + 1 :][1] == "NK104"
    assert "1 error" in texts
