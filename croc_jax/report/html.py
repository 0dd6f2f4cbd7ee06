"""One self-contained page: text, figures as embedded pictures, no network."""

import base64
import html
import io
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from croc_jax.report.style import GRID, INK, MUTED

# Narrower figures share a row where there is room.
_SMALL_INCHES = 5.0
_PHOTO_DPI = 170
_PAGE_COLORS = {INK: "var(--ink)", MUTED: "var(--soft)", GRID: "var(--line)"}


class Picture(NamedTuple):
    """A figure and a line about it, which may be empty."""

    figure: Figure
    caption: str = ""


class Photo(NamedTuple):
    """A picture in a file, and a line about it."""

    file: Path
    caption: str = ""


class Table(NamedTuple):
    """Rows of text below a header; those of `own` stand out.

    Attributes:
        header: of each column; the first column names the rows, the others are set like numbers.
        rows: as wide as the header.
        own: indices of rows.
        caption: a line about the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    own: Collection[int] = ()
    caption: str = ""


class Details(NamedTuple):
    """What stays folded until someone asks for it."""

    summary: str
    blocks: "Sequence[Block]"


Block = Picture | Photo | Table | Details


class Section(NamedTuple):
    """A heading, what a newcomer should see in the pictures, and the pictures and tables."""

    title: str
    text: str
    blocks: Sequence[Block]


class Fact(NamedTuple):
    """A number worth reading first, and what it is."""

    value: str
    name: str


def write_page(
    file: Path,
    *,
    title: str,
    lead: str,
    facts: Sequence[Fact],
    sections: Sequence[Section],
    settings: Mapping[str, object],
) -> None:
    """Writes the page, whole or not at all.

    Args:
        file: where.
        title: of the page.
        lead: a paragraph below it.
        facts: numbers in large type.
        sections: in order.
        settings: names and values for the table at the end.
    """
    page = Template(resources.files("croc_jax.report").joinpath("page.html").read_text(encoding="utf-8"))
    body = page.substitute(
        title=html.escape(title),
        lead=html.escape(lead),
        facts="".join(f"<div><b>{html.escape(f.value)}</b><span>{html.escape(f.name)}</span></div>" for f in facts),
        sections="".join(_render_section(section) for section in sections),
        settings="".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in settings.items()
        ),
    )
    partial = file.with_suffix(".partial")
    partial.write_text(body, encoding="utf-8")
    partial.replace(file)


def render(figure: Figure, *, description: str) -> str:
    """Returns a figure as HTML: photos as WebP, all else as SVG in the page's own colors.

    Args:
        figure: drawn with `figure_style`.
        description: for those who can't see it.
    """
    buffer, name = io.BytesIO(), html.escape(description)
    if any(axes.images for axes in figure.axes):
        figure.savefig(buffer, format="webp", dpi=_PHOTO_DPI, transparent=True, pil_kwargs={"quality": 90})
        data = base64.b64encode(buffer.getvalue()).decode()
        return f'<img alt="{name}" src="data:image/webp;base64,{data}">'
    # A salt makes the same figure the same text.
    with matplotlib.rc_context({"svg.hashsalt": "croc_jax"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue().decode()
    drawing = drawing[drawing.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
    for color, variable in _PAGE_COLORS.items():
        drawing = drawing.replace(color, variable)
    return drawing


def _render_section(section: Section) -> str:
    title, text = html.escape(section.title), html.escape(section.text)
    blocks = _render_blocks(section.blocks, section.title)
    return f"<section><h2>{title}</h2><p>{text}</p>{blocks}</section>"


def _render_blocks(blocks: Sequence[Block], title: str) -> str:
    return f'<div class="pictures">{"".join(_render_block(block, title) for block in blocks)}</div>'


def _render_block(block: Block, title: str) -> str:
    match block:
        case Picture():
            return _render_picture(block, title)
        case Photo():
            return _figure("wide", embed_photo(block.file, description=block.caption or title), block.caption)
        case Table():
            return _figure("wide", _render_table(block), block.caption)
        case Details():
            inside = _render_blocks(block.blocks, block.summary)
            return f"<details><summary>{html.escape(block.summary)}</summary>{inside}</details>"


def embed_photo(file: Path, *, description: str) -> str:
    """Returns the picture in a file as HTML.

    Args:
        file: in any format that Pillow reads.
        description: for those who can't see it.
    """
    buffer = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").save(buffer, format="webp", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(description)}" src="data:image/webp;base64,{data}">'


def _render_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    rows = []
    for index, row in enumerate(table.rows):
        kind = ' class="own"' if index in table.own else ""
        name, *values = map(html.escape, row)
        rows.append(f"<tr{kind}><th>{name}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>")
    return f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _render_picture(picture: Picture, title: str) -> str:
    kind = "small" if picture.figure.get_figwidth() < _SMALL_INCHES else "wide"
    return _figure(kind, render(picture.figure, description=picture.caption or title), picture.caption)


def _figure(kind: str, content: str, caption: str) -> str:
    caption = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><div>{content}</div>{caption}</figure>'
