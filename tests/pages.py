"""Pages that are one file: what is in them, and that nothing else is needed."""

import base64
import html.parser
import io

from PIL import Image


class Reader(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.links, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "src":
                self.images.append(value)
            if name in ("href", "action", "data", "poster", "srcset", "style"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def self_contained(text):
    """Pictures of a page that is whole, and needs nothing from elsewhere."""
    found = Reader(text)
    assert not found.open and not {"script", "link", "iframe", "object"} & set(found.tags)
    assert all(link.startswith("#") for link in found.links)
    assert "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    prefix = "data:image/png;base64,"
    assert all(source.startswith(prefix) for source in found.images)
    return [Image.open(io.BytesIO(base64.b64decode(source[len(prefix) :]))) for source in found.images]
