"""One HTML file with everything in it: headings, sentences, tables and PNGs. No script, nothing from elsewhere."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d6470; --paper: #fff; --line: #d9dce1; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a2a9b4; --paper: #16181b; --line: #363a41; --card: #1f2226; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p { margin: .4rem 0 .8rem; max-width: 44rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0; }
a { color: inherit; }
figure { margin: 1rem 0; padding: .6rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
figure > div { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; border-radius: 2px; }
figcaption, .note { color: var(--soft); font-size: .92rem; }
figcaption { margin-top: .5rem; }
.note { border-left: 3px solid var(--line); padding-left: .7rem; }
.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .2rem 0; }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
"""


class Picture(NamedTuple):
    """name: of its file, without an ending. array: uint8 (h, w, 1, 3 or 4). alt: what it is, for who cannot see it."""

    name: str
    array: np.ndarray
    caption: str
    alt: str


class Table(NamedTuple):
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Section(NamedTuple):
    """note: why something is left out, or what to keep in mind."""

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    note: str = ""


def png(array: np.ndarray) -> bytes:
    """uint8 (h, w, 1, 3 or 4) as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def page(title: str, text: str, sections: Sequence[Section]) -> str:
    """The document. All text is escaped."""
    links = "".join(f'<a href="#s{i}">{_text(section.title)}</a>' for i, section in enumerate(sections))
    body = "\n".join(_section(i, section) for i, section in enumerate(sections))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{_text(title)}</h1>\n<p>{_text(text)}</p>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _section(i: int, section: Section) -> str:
    note = f'<p class="note">{_text(section.note)}</p>' if section.note else ""
    parts = [f'<section id="s{i}">', f"<h2>{_text(section.title)}</h2>", f"<p>{_text(section.text)}</p>", note]
    parts += map(_figure, section.pictures)
    parts += map(_table, section.tables)
    return "\n".join([*filter(None, parts), "</section>"])


def _figure(picture: Picture) -> str:
    h, w = picture.array.shape[:2]
    data = base64.b64encode(png(picture.array)).decode()
    image = f'<img src="data:image/png;base64,{data}" width="{w}" height="{h}" alt="{_text(picture.alt)}">'
    return f"<figure><div>{image}</div><figcaption>{_text(picture.caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(x)}</th>' for x in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{_text(_value(x))}</td>" for x in row) + "</tr>" for row in table.rows)
    caption = f"<caption>{_text(table.caption)}</caption>"
    return f'<div class="table"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _value(value: Any) -> str:
    if isinstance(value, float | np.floating):
        value = float(value)
        # From 999.5 on, three digits would be written 1e+03.
        return "–" if not np.isfinite(value) else f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    return str(value)


def _text(value: str) -> str:
    return html.escape(value)
