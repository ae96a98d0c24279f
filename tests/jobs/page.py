"""A report's page, as the tests of reports read it."""

from html.parser import HTMLParser
from pathlib import Path

from jobs import stored

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would see of it: tags and attributes, and the text by the tag it is in."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    @property
    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def said(self, tag: str | None = None) -> list[str]:
        return [text for where, text in self.texts if tag in (None, where)]


def read(folder: Path) -> stored.Stored:
    return stored.read(stored.store_of(str(folder)))
