"""The page's server: loopback only, its own page and its own answers, bounded requests."""

import io
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
import torch

from normkit.learn import server
from normkit.reference.batch_norm import batch_norm

GOOD = {"section": "four-numbers", "x": [1, 2, 4, 9], "gamma": 1.5, "beta": -0.5, "eps": 1e-3}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server.make("<p>the page</p>", 0) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made.server_port
        made.shutdown()
        thread.join()


def ask(port: int, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_page_is_served_and_nothing_else(port: int) -> None:
    assert ask(port, "GET", "/") == (200, "<p>the page</p>")
    for path in ("/etc/passwd", "/../../etc/passwd", "/learn.html", "/compute", "/own"):
        assert ask(port, "GET", path)[0] == 404
    assert ask(port, "POST", "/", "{}")[0] == 404
    assert ask(port, "DELETE", "/")[0] == 501


def test_it_listens_on_loopback_alone() -> None:
    with server.make("", 0) as made:
        assert made.server_address[0] == "127.0.0.1"


def test_the_library_answers(port: int) -> None:
    status, text = ask(port, "POST", "/compute", json.dumps(GOOD))
    assert status == 200
    x = torch.tensor(GOOD["x"], dtype=torch.float64)[:, None]
    y, _, _ = batch_norm(x, torch.tensor([1.5], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64), 1e-3)
    torch.testing.assert_close(
        torch.tensor(json.loads(text)["y"], dtype=torch.float64), y[:, 0], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}], ids=str
)
def test_another_site_gets_nothing(port: int, headers: dict[str, str]) -> None:
    assert ask(port, "POST", "/compute", json.dumps(GOOD), **headers)[0] == 403
    assert ask(port, "GET", "/", **headers)[0] == 403


BAD: dict[str, Any] = {
    "no json": "{",
    "a list": [],
    "no section": {**GOOD, "section": "nosuch"},
    "a list for a section": {**GOOD, "section": ["four-numbers"]},
    "no eps": {**GOOD, "eps": None},
    "one value": {**GOOD, "x": [1]},
    "too many": {**GOOD, "x": [1] * 513},
    "text": {**GOOD, "x": ["1", 2]},
    "a truth": {**GOOD, "gamma": True},
    "negative eps": {**GOOD, "eps": -1},
    "huge": {**GOOD, "x": [1e101, 2]},
    "0/0": {**GOOD, "x": [1, 1], "eps": 0},
    "infinite": '{"x": [1, Infinity], "gamma": 1, "beta": 0, "eps": 1}',
    "deep": "[" * 5000,
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_answered_by_a_line(port: int, case: str) -> None:
    body = BAD[case] if isinstance(BAD[case], str) else json.dumps(BAD[case])
    status, text = ask(port, "POST", "/compute", body)
    assert status == 400
    assert text
    assert "Traceback" not in text


def sent(port: int, content: bytes) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", "/own", content)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def zipped(**arrays: Any) -> bytes:
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def test_own_images_become_maps_and_own_values_numbers(port: int) -> None:
    images = np.arange(6 * 20 * 20).reshape(6, 20, 20)
    status, text = sent(port, zipped(images=images, values=np.arange(20.0).reshape(4, 5)))
    made = json.loads(text)
    assert status == 200
    assert len(made["maps"]["features"]) == 6
    assert made["values"] == list(range(20))
    status, text = sent(port, zipped(values=np.arange(20)))
    assert status == 200
    assert json.loads(text)["maps"] is None


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cannot use the file"),
    "text": (b"images", "cannot use the file"),
    "npy": (b"\x93NUMPY\x01\x00", "found a .npy"),
    "broken": (zipped(values=np.arange(20.0))[:-30], "cannot use the file"),
    "other": (zipped(x=np.arange(20.0)), "expected an array called images or values"),
    "few": (zipped(values=np.arange(3.0)), "expected at least 16 values"),
    "constant": (zipped(values=np.ones(20)), "not all the same"),
    "nan": (zipped(values=np.full(20, np.nan)), "finite"),
    "huge": (zipped(values=np.arange(20) * 1e300), "finite"),
    "text array": (zipped(values=np.array(["a"] * 20)), "numbers of at most 8 bytes"),
    "objects": (zipped(images=np.array([{}] * 6, dtype=object)), "got |O"),
    "small": (zipped(images=np.ones((6, 13, 13))), "14x14 or more"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_answered_by_a_line(port: int, case: str) -> None:
    content, complaint = HOSTILE[case]
    status, text = sent(port, content)
    assert status == 400
    assert complaint in text
    assert "\n" not in text
    assert "Traceback" not in text


def test_a_body_that_is_too_long_is_not_read(port: int) -> None:
    assert ask(port, "POST", "/compute", None, Content_Length=str(10**8))[0] == 400
    assert ask(port, "POST", "/compute", None, Content_Length="many")[0] == 400
    assert ask(port, "POST", "/own", None, Content_Length=str(2**25 + 1))[0] == 400


def test_it_says_its_address_and_ends_on_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: server.Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server.Server, "serve_forever", interrupted)
    said: list[str] = []
    server.serve("", 0, said.append)
    assert len(said) == 1
    assert said[0].startswith("http://127.0.0.1:")
