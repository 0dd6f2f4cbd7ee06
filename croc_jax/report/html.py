"""Parts of one self-contained page, as HTML: sections, tables, figures as embedded pictures; no network."""

import base64
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from croc_jax.atomic_write import atomic_write
from croc_jax.data.labeled.label_files import read_image
from croc_jax.report.style import GRID, INK, MUTED

# Narrower figures share a row where there is room.
_SMALL_INCHES = 5.0
_PHOTO_DPI, _FRAME_MILLISECONDS = 170, 700
_PAGE_COLORS = {INK: "var(--ink)", MUTED: "var(--soft)", GRID: "var(--line)"}


def write_page(
    file: Path,
    *,
    title: str,
    lead: str,
    facts: Iterable[tuple[str, str]],
    sections: Iterable[str],
    settings: Mapping[str, object],
) -> None:
    """Writes the page, whole or not at all.

    Args:
        file: path of the page.
        title: title of the page.
        lead: paragraph below the title.
        facts: numbers to show in large type, and what they are.
        sections: HTML of `section`.
        settings: names and values for the table at the end.
    """
    page = Template(resources.files("croc_jax.report").joinpath("page.html").read_text(encoding="utf-8"))
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in settings.items())
    body = page.substitute(
        title=escape(title),
        lead=escape(lead),
        facts="".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts),
        sections="".join(sections),
        settings="".join(rows),
    )
    # Names of files may hold what no encoding has.
    atomic_write(file, body.encode(errors="backslashreplace"))


def section(title: str, text: str, blocks: Iterable[str]) -> str:
    """Returns a heading, a paragraph, and figures and tables."""
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{_stack(blocks)}</section>"


def details(summary: str, blocks: Iterable[str]) -> str:
    """Returns blocks that stay folded until someone opens them."""
    return f"<details><summary>{escape(summary)}</summary>{_stack(blocks)}</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, own: Collection[int] = (), caption: str = "") -> str:
    """Returns rows of text below a header; the first column names the rows, the others are set like numbers.

    Rows with an index in `own` stand out.
    """
    lines = []
    for index, (name, *values) in enumerate(rows):
        kind = ' class="own"' if index in own else ""
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f"<tr{kind}><th>{escape(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    content = f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return _figure("wide", content, caption)


def picture(figure: Figure, caption: str = "", *, description: str = "") -> str:
    """Returns a figure: as WebP if it has photos, else as SVG in the page's own colors.

    Args:
        figure: figure drawn with `figure_style`.
        caption: line about it.
        description: text for those who cannot see it; the caption by default.
    """
    buffer, name = io.BytesIO(), escape(description or caption)
    kind = "small" if figure.get_figwidth() < _SMALL_INCHES else "wide"
    if any(axes.images for axes in figure.axes):
        figure.savefig(buffer, format="webp", dpi=_PHOTO_DPI, transparent=True, pil_kwargs={"quality": 90})
        return _figure(kind, _embed(buffer, name), caption)
    # A salt makes the same figure the same text.
    with matplotlib.rc_context({"svg.hashsalt": "croc_jax"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue().decode()
    drawing = drawing[drawing.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
    for color, variable in _PAGE_COLORS.items():
        drawing = drawing.replace(color, variable)
    return _figure(kind, drawing, caption)


def photos(frames: Sequence[Image.Image], caption: str) -> str:
    """Returns a picture, or several that follow each other without an end, the last one for longest."""
    buffer, durations = io.BytesIO(), [_FRAME_MILLISECONDS] * (len(frames) - 1) + [4 * _FRAME_MILLISECONDS]
    settings: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    frames[0].save(buffer, "webp", quality=70, **settings)
    return _figure("wide", _embed(buffer, escape(caption)), caption)


def photo(file: Path, caption: str) -> str:
    """Returns the picture in a file; ValueError, naming it, if it cannot be read."""
    buffer = io.BytesIO()
    Image.fromarray(read_image(file)).save(buffer, format="webp", quality=85)
    return _figure("wide", _embed(buffer, escape(caption)), caption)


def _embed(buffer: io.BytesIO, name: str) -> str:
    return f'<img alt="{name}" src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _stack(blocks: Iterable[str]) -> str:
    return f'<div class="pictures">{"".join(blocks)}</div>'


def _figure(kind: str, content: str, caption: str) -> str:
    caption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}"><div>{content}</div>{caption}</figure>'
