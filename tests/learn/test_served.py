"""The served page in a real browser: each section asks the library, which agrees; own files, good and bad."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from normkit.learn import page as pages
from normkit.learn import server
from normkit.learn.answers import ANSWERS
from tests.learn.test_browser import opened  # noqa: F401  # a fixture
from tests.studies import browser

pytestmark = pytest.mark.browser


@pytest.fixture
def served(opened: browser.Page, collected: dict[str, Any]) -> Iterator[browser.Page]:  # noqa: F811
    with server.make(pages.render(collected, "en", served=True), 0) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        opened.visit(f"http://127.0.0.1:{made.server_port}/")
        yield opened
        opened.visit("about:blank")
        made.shutdown()
        thread.join()


def waited(ask: Callable[[], Any]) -> Any:
    """What `ask` says as soon as it says something."""
    end = time.monotonic() + 30
    while not (said := ask()):
        assert time.monotonic() < end, "the page waits for an answer"
        time.sleep(0.05)
    return said


def library(served: browser.Page, section: str) -> list[str]:
    """The words and the classes of what the library answered; [] before it did."""
    return served.evaluate(
        f"const e = document.querySelector('#{section} [data-out=library]');"
        "return /\\d/.test(e.textContent) && (e.classList.contains('good') || e.classList.contains('bad'))"
        "  ? [e.textContent, e.className] : []"
    )


@pytest.mark.parametrize("section", ANSWERS)
def test_the_library_agrees_with_the_page_at_every_end(served: browser.Page, section: str) -> None:
    for end in ("min", "max"):
        served.evaluate(
            f"const place = document.getElementById('{section}');"
            "place.querySelector('[data-out=library]').textContent = '';"
            "for (const e of place.querySelectorAll('input[type=range][data-name]')) {"
            f"  e.value = e.{end}; e.dispatchEvent(new Event('input', {{bubbles: true}})) }}"
        )
        words, classes = waited(lambda: library(served, section))
        assert "good" in classes, (end, words)


def upload(served: browser.Page, section: str, content: bytes) -> str:
    """Choose a file for `section`; what the line below says."""
    coded = json.dumps(base64.b64encode(content).decode())
    served.evaluate(
        f"const bytes = Uint8Array.from(atob({coded}), c => c.charCodeAt(0)), held = new DataTransfer();"
        "held.items.add(new File([bytes], 'own.npz'));"
        f"const e = document.getElementById('{section}-own'); e.removeAttribute('aria-invalid'); e.files = held.files;"
        "e.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    waited(lambda: served.evaluate(f"return document.getElementById('{section}-own').getAttribute('aria-invalid')"))
    return str(served.evaluate(f"return document.getElementById('{section}-own-error').textContent"))


def archive(**arrays: Any) -> bytes:
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def test_own_images_and_values_are_shown_and_recomputed(served: browser.Page) -> None:
    before = served.evaluate("return document.querySelector('#shared-mean [data-plot=maps]').innerHTML")
    generator = np.random.default_rng(0)
    assert upload(served, "shared-mean", archive(images=generator.random((6, 28, 28)))) == ""
    assert served.evaluate("return document.querySelector('#shared-mean [data-plot=maps]').innerHTML") != before
    assert upload(served, "test-time", archive(values=generator.normal(5, 2, 1000))) == ""
    assert served.evaluate("return document.querySelector('[data-own]').hidden") is False
    for section in ("shared-mean", "test-time"):
        words, classes = waited(lambda section=section: library(served, section))
        assert "good" in classes, words


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"no archive", "cannot use the file"),
        (archive(x=np.ones(20)), "expected an array called images or values"),
        (archive(values=np.arange(20.0)), "there is no array called images"),
        (archive(images=np.ones((6, 20, 20))), "not all the same"),
    ],
)
def test_a_file_that_does_not_fit_is_answered_by_a_line(served: browser.Page, content: bytes, complaint: str) -> None:
    assert complaint in upload(served, "shared-mean", content)
