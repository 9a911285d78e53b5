"""The docs as a site: built without a warning, every link leads somewhere, nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tools.site import api, links, pages

import normkit as nk
from tests.docs.pages import ROOT
from tests.studies import browser

pytest.importorskip("material", reason="the site's packages are not installed: pip install '.[site]'")
WIDTHS = (1400, 390)


def build(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.site", "--out", str(out)], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(out, NORMKIT_REPOSITORY="")
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.site
def test_every_page_of_the_docs_is_there_in_both_languages(site: Path) -> None:
    written = [path.relative_to(ROOT / "docs") for path in sorted((ROOT / "docs").rglob("*.md"))]
    for path in written:
        name = path.as_posix().replace("README", "index").replace(".zh.md", ".md").replace(".md", ".html")
        for language in ("", "zh"):
            assert (site / language / name).exists(), (language, name)
    has_chinese = {path.as_posix().replace(".zh.md", ".md") for path in written if path.name.endswith(".zh.md")}
    assert "本页还没有中文版" in read(site / "zh" / "problems.html")
    assert {"README.md", "tutorials/batch_norm.md"} <= has_chinese
    for name in has_chinese:
        page = read(site / "zh" / name.replace("README", "index").replace(".md", ".html"))
        assert "本页还没有中文版" not in page, name
        assert '<html lang="zh"' in page, name


@pytest.mark.site
def test_every_public_name_has_its_signature_its_shapes_and_its_formula(site: Path) -> None:
    shown = "".join(read(site / "api" / f"{page}.html") for page in api.public())
    ids = set(re.findall(r'id="([\w.]+)"', shown))
    names = [name for names in api.public().values() for name in names]
    assert {name.path for name in names} <= ids
    assert {f"normkit.{name}" for name in nk.nn.__all__} <= {name.shown for name in names}
    layer = read(site / "api" / "nn" / "group_norm.html")
    assert "num_groups" in layer
    assert "(N, C, *)" in layer
    assert "<math" in layer
    assert not re.search(r"\.\. math::|:(class|func):`", re.sub(r"<[^>]+>", "", shown))


@pytest.mark.site
def test_the_search_knows_words_of_both_languages(site: Path) -> None:
    index = read(site / "search" / "search_index.json")
    assert '"lang":["en","zh"]' in index.replace(" ", "")
    assert "\\u200b" in index or "\u200b" in index  # Chinese words are cut
    assert "recalibrate" in index


@pytest.fixture
def opened(site: Path, tmp_path: Path) -> Iterator[tuple[browser.Page, str]]:
    if reason := browser.missing():
        (pytest.fail if browser.required() else pytest.skip)(reason)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with browser.page(tmp_path) as page:
                yield page, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


UNREADABLE = (
    browser.CONTRAST
    + """
const seen = e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
const faint = [];
for (const e of document.querySelectorAll(
    'article h1, article h2, article p, article li, article td, article th, article a, article code, nav.md-path a')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !seen(e)) continue;
  const ratio = contrast(getComputedStyle(e).color, behind(e));
  const size = parseFloat(getComputedStyle(e).fontSize);
  if (ratio < (size >= 24 ? 3 : 4.5)) faint.push([e.tagName, e.textContent.trim().slice(0, 40), ratio.toFixed(2)]);
}
return faint.slice(0, 10);
"""
)

FOUND = """
const field = document.querySelector('[data-md-component=search-query]');
document.querySelector('#__search').click();
field.value = arguments_; field.dispatchEvent(new Event('keyup')); field.dispatchEvent(new Event('input'));
return new Promise(done => {
  const began = performance.now();
  const look = () => {
    const found = [...document.querySelectorAll('.md-search-result__link')].map(a => a.getAttribute('href'));
    if (found.length || performance.now() - began > 60000) done(found); else setTimeout(look, 50);
  };
  look();
});
"""


@pytest.mark.site
@pytest.mark.browser
def test_pages_fit_their_window_and_the_search_finds_in_both_languages(opened: tuple[browser.Page, str]) -> None:
    page, address = opened
    for width in WIDTHS:
        page.resize(width)
        for name in ("index", "api/nn/batch_norm", "zh/layers", "doctor", "recognition", "zh/tutorials/batch_norm"):
            page.visit(f"{address}/{name}.html")
            assert page.evaluate("return document.documentElement.scrollWidth") <= width, name
    for language, words, expected in (("", "recalibrate", "statistics.html"), ("zh/", "批归一化", "batch_norm.html")):
        page.visit(f"{address}/{language}index.html")
        found = page.evaluate(FOUND.replace("arguments_", repr(words)))
        assert any(expected in target for target in found), (words, found)
    asked = page.evaluate("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert asked
    assert all(name.startswith(address) for name in asked), asked


@pytest.mark.site
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_is_readable_in_both_schemes(scheme: str, opened: tuple[browser.Page, str]) -> None:
    """At 390 px: text has the contrast of WCAG 2 (4.5, large text 3), and nothing reaches out of the page."""
    page, address = opened
    page.resize(390)
    page.colour_scheme(scheme)
    for name in ("index", "layers", "api/nn/batch_norm", "benchmarks", "studies/depth", "zh/tutorials/batch_norm"):
        page.visit(f"{address}/{name}.html")
        shade = page.evaluate(browser.CONTRAST + "return luminance(getComputedStyle(document.body).backgroundColor)")
        assert (shade < 0.1) == (scheme == "dark"), (name, shade)
        assert page.evaluate("return document.documentElement.scrollWidth") <= 390, name
        assert page.evaluate(UNREADABLE) == [], name


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('<a href="gone.html">x</a>', "gone.html leads to no file"),
        ('<a href="../outside.html">x</a>', "../outside.html leads to no file"),
        ('<a href="other.html#gone">x</a>', "other.html#gone leads to no such place of that page"),
        ('<img src="https://elsewhere.example/x.png">', "https://elsewhere.example/x.png is fetched from another host"),
        (
            '<link rel="stylesheet" href="//elsewhere.example/x.css">',
            "//elsewhere.example/x.css is fetched from another",
        ),
        ('<a href="https://elsewhere.example/">x</a><a href="other.html#here">x</a><a href="#up">x</a>', ""),
    ],
)
def test_a_dead_link_is_seen(body: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(f'<p id="up">{body}</p>', encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="here"></p>', encoding="utf-8")
    found = links.dead(tmp_path)
    assert len(found) == bool(complaint)
    assert all(complaint in line for line in found)


@pytest.mark.parametrize(
    ("link", "here", "published"),
    [
        ("[a](layers.md#extras)", "[a](layers.md#extras)", None),
        ("[a](../CONTRIBUTING.md)", "[a](repository/CONTRIBUTING.txt)", "[a](https://x.example/r/blob/main/CONTRIBUTING.md)"),
        ("[a](../examples/ddp_train.py)", "[a](repository/examples/ddp_train.py)", "[a](https://x.example/r/blob/main/examples/ddp_train.py)"),
        ("[a](../src/normkit/reference)", "[a](repository/src/normkit/reference.txt)", "[a](https://x.example/r/tree/main/src/normkit/reference)"),
        ("[中文](README.zh.md)", '<a href="zh/index.html">中文</a>', None),
        ("[a](https://x.example/y.md)", "[a](https://x.example/y.md)", None),
        ("```\n[a](../gone.py)\n```", "```\n[a](../gone.py)\n```", None),
    ],
)  # fmt: skip
def test_links_to_the_repository_work_on_the_site(link: str, here: str, published: str | None, tmp_path: Path) -> None:
    for name in ("README.md", "README.zh.md", "layers.md", "page.md"):
        (tmp_path / name).write_text("", encoding="utf-8")
    page = tmp_path / ("README.md" if "zh" in link else "page.md")
    for repository, expected in (("", here), ("https://x.example/r", published or here)):
        assert pages.rewritten(link, page, tmp_path, repository) == expected
    if "repository" in here:
        assert (tmp_path / here.partition("(")[2][:-1]).stat().st_size


@pytest.mark.site
def test_a_dead_link_in_a_page_fails_the_build(tmp_path: Path) -> None:
    """MkDocs's own word, on a page of two: what `make site` says of a link between pages."""
    from mkdocs.commands.build import build as make
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "README.md").write_text("# x\n\n[gone](gone.md) [there](#nowhere)\n", encoding="utf-8")
    config = load_config(
        str(ROOT / "tools" / "site" / "mkdocs.yml"), docs_dir=str(tmp_path / "pages"), site_dir=str(tmp_path / "html"),
        strict=True, nav=["README.md"], plugins=[], theme="mkdocs",
    )  # fmt: skip
    with pytest.raises(Abort, match="2 warnings"):
        make(config)
