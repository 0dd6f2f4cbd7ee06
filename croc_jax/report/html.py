"""One self-contained page: text, figures as embedded pictures, no network."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from croc_jax.report.style import GRID, INK, MUTED

# Narrower figures share a row where there is room.
_SMALL_INCHES = 5.0
_PHOTO_DPI = 170
_PAGE_COLORS = {INK: "var(--ink)", MUTED: "var(--soft)", GRID: "var(--line)"}


class Picture(NamedTuple):
    """A figure and a line about it, which may be empty."""

    figure: Figure
    caption: str = ""


class Section(NamedTuple):
    """A heading, what a newcomer should see in the pictures, and the pictures."""

    title: str
    text: str
    pictures: Sequence[Picture]


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
    pictures = "".join(_render_picture(picture, section.title) for picture in section.pictures)
    title, text = html.escape(section.title), html.escape(section.text)
    return f'<section><h2>{title}</h2><p>{text}</p><div class="pictures">{pictures}</div></section>'


def _render_picture(picture: Picture, title: str) -> str:
    kind = "small" if picture.figure.get_figwidth() < _SMALL_INCHES else "wide"
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    drawing = render(picture.figure, description=picture.caption or title)
    return f'<figure class="{kind}"><div>{drawing}</div>{caption}</figure>'
