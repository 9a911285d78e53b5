"""A table's renderings show every cell literally."""

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from normkit.model.table import Table, Tabular

HOSTILE = "[red]a[/red] <script>alert('x')</script> & | \\ end"
TABLE = Table(("layer", "what"), (("0", "done"), (HOSTILE, "left")), (True, False), ("1 <of> 2",))


class Shown(Tabular):
    def table(self):
        return TABLE


def cells(html):
    """The text of each cell, as a browser sees it; AssertionError for any other element than a table's."""

    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            assert tag in ("table", "thead", "tbody", "tr", "th", "td", "p")
            if tag in ("th", "td", "p"):
                found.append("")

        def handle_data(self, data):
            found[-1] += data

    Parser().feed(html)
    return found


def test_text_is_aligned_without_trailing_spaces():
    assert Table(("layer", "what"), (("0", "a"), ("1.long", "b")), (True, True), ("note",)).text() == (
        "layer   what\n0       a\n1.long  b\nnote"
    )


def test_html_holds_the_cells_and_nothing_that_they_say():
    assert cells(TABLE.html()) == ["layer", "what", "0", "done", HOSTILE, "left", "1 <of> 2"]


def test_markdown_has_as_many_cells_in_each_row():
    rows = TABLE.markdown().split("\n\n")[0].splitlines()
    assert len(rows) == 4
    assert {row.replace("\\|", "").count("|") for row in rows} == {3}


def test_rich_shows_markup_literally():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(Shown())
    assert HOSTILE in console.export_text()


def test_what_has_a_table_is_shown_by_it():
    assert str(Shown()) == TABLE.text()
    assert Shown()._repr_html_() == TABLE.html()
    assert (str(TABLE), TABLE._repr_html_()) == (TABLE.text(), TABLE.html())


def test_a_row_too_long_is_refused():
    with pytest.raises(ValueError, match="zip"):
        Table(("a",), (("1", "2"),), (True,)).text()
