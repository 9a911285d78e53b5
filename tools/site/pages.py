"""What MkDocs reads: docs/ with its links rewritten, the notebooks as pages, and the page of `normkit learn`."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
NOTEBOOK = re.compile(r"\]\(([\w.]+)\.ipynb\)")
CARRIED = "repository"  # the folder of files that the site brings along
NOTEBOOKS = {
    "": "# Notebooks\n\nOne for each section of [New to batch norm?](../batch_norm.md), to run, plot and check.\n",
    ".zh": "# 笔记本\n\n[初识批归一化](../batch_norm.md)的每一节各有一个：运行、画图、检验练习。\n",
}
DOWNLOAD = {"": "[Download this notebook]({})", ".zh": "[下载这个笔记本]({})"}


def write(out: Path, repository: str) -> None:
    """All pages, written below `out`."""
    from normkit.learn import page
    from normkit.learn.numbers import collect
    from normkit.learn.own import Own

    shutil.copytree(DOCS, out)
    _notebooks(out / "tutorials" / "notebooks")
    for path in sorted(out.rglob("*.md")):
        path.write_text(rewritten(path.read_text(encoding="utf-8"), path, out, repository), encoding="utf-8")
    numbers = collect(Own())
    for language, name in (
        ("en", "learn.html"),
        ("zh", "learn.zh.html"),
    ):  # one page in two languages, opened in either
        (out / name).write_text(page.render(numbers, language), encoding="utf-8")


def expanded(nav: Any, pages: Path) -> Any:
    """A nav in which `folder/*` stands for the pages of that folder that nothing else of the nav names."""
    named = set(re.findall(r"'([^']+\.md)'", repr(nav)))

    def of(entry: Any) -> list[Any]:
        if isinstance(entry, dict):
            return [
                {title: value if isinstance(value, str) else [e for v in value for e in of(v)]}
                for title, value in entry.items()
            ]
        if not entry.endswith("/*"):
            return [entry]
        found = sorted(pages.glob(f"{entry[:-1]}*.md"), key=lambda path: (path.stem != "README", path.stem))
        names = [path.relative_to(pages).as_posix() for path in found if not path.stem.endswith(".zh")]
        return [name for name in names if name not in named]

    return [found for entry in nav for found in of(entry)]


def _notebooks(folder: Path) -> None:
    """A page beside each notebook, and a page that lists them, in both languages."""
    for source in folder.glob("*.py"):
        source.unlink()  # what the notebooks are made of
    for ending, listing in NOTEBOOKS.items():
        lines = [listing]
        for path in sorted(folder.glob(f"[0-9]*{ending}.ipynb")):
            if path.stem.endswith(".zh") != bool(ending):
                continue
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            parts = [_cell(cell["cell_type"], "".join(cell["source"])) for cell in cells]
            text = NOTEBOOK.sub(r"](\1.md)", "\n\n".join(parts))
            text = text.replace("\n\n", f"\n\n{DOWNLOAD[ending].format(path.name)}\n\n", 1)
            path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
            title = re.match(r"# (?:\d+\. )?(.*)", parts[0])
            assert title is not None, path
            lines.append(f"1. [{title[1]}]({path.stem.removesuffix('.zh')}.md)")
        (folder / f"README{ending}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(kind: str, source: str) -> str:
    return f"```python\n{source}\n```" if kind == "code" else source


def rewritten(text: str, page: Path, pages: Path, repository: str) -> str:
    """The text of a page with links that lead somewhere on the site, and Markdown inside of <details>."""

    def link(found: re.Match[str]) -> str:
        path, hash_, anchor = found[2].partition("#")
        linked = Path(os.path.normpath(page.parent / path))
        same = linked != page and _plain(linked, pages) == _plain(page, pages)
        if same or (".zh.md" in linked.name and ".zh.md" not in page.name):
            return f'<a href="{_other_language(linked, page, pages)}">{found[1]}</a>'
        if pages in linked.parents and (linked / "README.md").exists():
            linked /= "README.md"
        if pages not in linked.parents or not linked.is_file():
            source = ROOT / "docs" / os.path.relpath(linked, pages)
            target = _of_repository(Path(os.path.normpath(source)), page, pages, repository)
        else:
            target = os.path.relpath(linked, page.parent).replace(".zh.md", ".md")
        return f"[{found[1]}]({target}{hash_}{anchor})"

    parts = FENCED.split(text)
    parts[::2] = [LINK.sub(link, part).replace("<details>", "<details markdown>") for part in parts[::2]]
    return "".join(parts)


def _plain(page: Path, pages: Path) -> str:
    """A page's name whatever its language."""
    return os.path.relpath(page, pages).replace(".zh.", ".")


def _other_language(linked: Path, page: Path, pages: Path) -> str:
    """The address of a page in another language, which MkDocs builds by itself and cannot check."""
    here, there = (
        Path("zh" if ".zh." in path.name else ".", _plain(path, pages).replace("README.md", "index.md")).with_suffix(
            ".html"
        )
        for path in (page, linked)
    )
    return os.path.relpath(there, here.parent)


def _of_repository(source: Path, page: Path, pages: Path, repository: str) -> str:
    """A file or folder of the repository: where that is published, else a copy, or a list of the folder's files."""
    name = source.relative_to(ROOT)
    if repository:
        return f"{repository.rstrip('/')}/{'tree' if source.is_dir() else 'blob'}/main/{name.as_posix()}"
    copy = (pages / CARRIED / name).with_suffix(".txt" if source.suffix in ("", ".md") else source.suffix)
    copy.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        found = [f"{path.relative_to(ROOT)}\n" for path in sorted(source.iterdir()) if path.is_file()]
        copy.write_text("".join(found), encoding="utf-8")
    else:
        shutil.copyfile(source, copy)
    return os.path.relpath(copy, page.parent)
