"""What a browser would do with a page."""

import html.parser
import re


def fetched(page: str) -> list[str]:
    """Returns everything in a page that a browser would fetch or run."""
    tags = _Tags()
    tags.feed(page)
    return [
        *tags.fetched,
        *({"script", "link", "img", "iframe"} & set(tags.opened)),
        *re.findall(r"@import|url\((?!#)", page),
    ]


class _Tags(html.parser.HTMLParser):
    """Collects tags, and what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")
