"""Build the site strictly, then follow every link of it: `python -m tools.site [--out build/site]`.

OUT/pages is what MkDocs reads (pages.py), OUT/html what it makes. Exit 1 where MkDocs warns or a link leads nowhere.
$NORMKIT_REPOSITORY is the address that links to source files get; without it the site brings the files along.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path

from . import api, links, pages

HERE = Path(__file__).resolve().parent


def build(out: Path, repository: str) -> Path:
    """The folder of a site that MkDocs built without a warning."""
    import jieba
    from mkdocs.commands.build import build as make
    from mkdocs.config import load_config

    jieba.setLogLevel(logging.WARNING)
    sources, html = out / "pages", out / "html"
    shutil.rmtree(sources, ignore_errors=True)
    pages.write(sources, repository)
    api.write(sources / "api")
    config = load_config(str(HERE / "mkdocs.yml"), docs_dir=str(sources), site_dir=str(html), strict=True)
    config.nav = pages.expanded(config.nav, sources)
    config.repo_url = repository or None
    config.plugins.on_startup(command="build", dirty=False)
    try:
        make(config)
    finally:
        config.plugins.on_shutdown()
    return html


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/site"))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    html = build(parser.parse_args().out.resolve(), os.environ.get("NORMKIT_REPOSITORY", ""))
    dead = links.dead(html)
    print("\n".join(dead) if dead else f"{html / 'index.html'}: every link leads somewhere")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
