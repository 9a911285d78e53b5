"""The command: write the page, or serve it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import _files
from ..errors import UsageError
from . import page, server
from .numbers import collect
from .own import Own, read

PORT = 8765


def learn(
    out: Path = Path("learn.html"),
    lang: str = "en",
    *,
    serve: bool = False,
    port: int = PORT,
    data: Path | None = None,
    show: Callable[[str], object] = print,
) -> None:
    """Write the page to `out`; with `serve` answer on 127.0.0.1:`port` instead, until interrupted.

    Args:
        lang: the language it opens in, "en" or "zh"; the page holds both.
        port: 0 takes a free one.
        data: a .npz whose `images` take the place of the digits, and `values` that of the drawn batches.
        show: is given the path, or the address.

    Raises:
        UsageError: an unknown language, a file that cannot be written or read, a port that is taken.
    """
    if lang not in page.LANGUAGES:
        raise UsageError(f"--lang must be one of {', '.join(page.LANGUAGES)}, got {lang!r}")
    if not 0 <= port < 65536:
        raise UsageError(f"--port must be from 0 to 65535, got {port}")
    numbers = collect(Own() if data is None else read(data))
    if serve:
        server.serve(page.render(numbers, lang, served=True), port, show)
        return
    try:
        _files.prepare(out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {_files.reason(error)}") from None
    _files.update(out, lambda: page.render(numbers, lang))
    show(str(out))
