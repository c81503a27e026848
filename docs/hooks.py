"""What mkdocs does beside its plugins when it builds the site."""  # noqa: INP001 - a script beside the pages

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

LOG = logging.getLogger("mkdocs.hooks.loads")
ELSEWHERE = re.compile(r"\s*(https?:)?//")
IN_STYLES = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Unescape pipes in code: within a table GitHub wants them escaped, and the site shows the backslash."""
    return re.sub(r"`[^`\n]+`", lambda code: code[0].replace("\\|", "|"), markdown)


def on_post_build(config: Any, **_: Any) -> None:
    """Warn of what pages load from other hosts; a strict build fails then. Links are for people and may lead anywhere."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".css", ".html"):
            for one in loaded(path.read_text()):
                LOG.warning("%s loads %s", path.relative_to(config.site_dir), one)


def loaded(text: str) -> Iterator[str]:
    """Return what a browser loads from other hosts to show a page or to use a style sheet."""
    yield from IN_STYLES.findall(text)
    parser = _Loads()
    parser.feed(text)
    yield from parser.found


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "href", "data", "poster") and tag != "a" and ELSEWHERE.match(value or ""):
                self.found.append(f"<{tag} {name}={value}>")
            elif name == "class" and "mermaid" in (value or "").split():
                self.found.append("a Mermaid drawing, for which the theme loads a script")
