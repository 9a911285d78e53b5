"""The tutorial in two languages: the same anchors, the same formulas and code, the same names of things to call."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

import normkit as nk
from normkit import reference
from normkit.learn import page
from normkit.studies import STUDIES
from tests.docs.pages import PAGES

ENGLISH, CHINESE = (
    PAGES[f"docs/tutorials/batch_norm{ending}"].read_text(encoding="utf-8") for ending in (".md", ".zh.md")
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> list[str]:
    return re.findall(r'^<a id="([\w-]+)"></a>$', text, re.MULTILINE)


def fences(text: str) -> list[str]:
    return FENCE.findall(text)


def inline(text: str) -> list[str]:
    return sorted(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))


def numbers(text: str) -> list[str]:
    return re.findall(r"^## (\d+)\.", text, re.MULTILINE)


@pytest.mark.parametrize("parts", [anchors, fences, inline, numbers])
def test_both_languages_have_the_same(parts: Callable[[str], list[str]]) -> None:
    assert parts(ENGLISH) == parts(CHINESE)
    assert len(parts(ENGLISH)) > 15


def test_every_section_has_an_anchor() -> None:
    assert len(anchors(ENGLISH)) == len(numbers(ENGLISH)) == len(set(anchors(ENGLISH)))


def test_sections_of_the_page_that_are_named_exist() -> None:
    named = set(re.findall(r"`#([\w-]+)`", ENGLISH))
    assert named
    assert named <= {anchor for _, anchor in page.SECTIONS}


def test_what_is_named_exists() -> None:
    for name in re.findall(r"\bnk\.(\w+)", ENGLISH):
        assert hasattr(nk, name), name
    for name in re.findall(r"`reference\.(\w+)`", ENGLISH):
        assert hasattr(reference, name), name
    studies = re.findall(r"(?:[Ss]tudy|studies)\s+`(\w+)`", ENGLISH)
    assert set(studies) <= set(STUDIES)
    assert len(set(studies)) >= 5


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_every_study_is_followed_by_the_word_of_its_results(text: str) -> None:
    named = re.findall(r"(?:[Ss]tudy|研究)\s+`(\w+)`[:：]\s+<!-- word (\w+) -->", text.replace("：<!--", "： <!--"))
    assert (
        len(named) == len(re.findall(r"<!-- word ", text)) == len(re.findall(r"(?:[Ss]tudy|研究)\s+`(?!normkit)", text))
    )
    for study, worded in named:
        assert study == worded


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_no_verdict_is_written_by_hand(text: str) -> None:
    _, _, body = text.partition('<a id="')
    by_hand = re.sub(r"<!-- word .*?<!-- end -->", "", body, flags=re.DOTALL)
    assert re.findall(r"\*(?:not )?(?:supported|undecided|支持|不支持|未定)\*", by_hand) == []


@pytest.mark.parametrize(("language", "text"), [("en", ENGLISH), ("zh", CHINESE)])
def test_pictures_are_of_its_language_and_say_what_they_show(language: str, text: str) -> None:
    pictures = re.findall(r"^!\[(.*)\]\(\.\./images/learn/\w+\.(\w+)\.svg\)$", text, re.MULTILINE)
    assert len(pictures) >= 9
    for words, spoken in pictures:
        assert spoken == language
        assert len(words) > 20
