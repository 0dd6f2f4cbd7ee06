"""One self-contained page: text, figures as embedded pictures, no network."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

from matplotlib.figure import Figure


class Section(NamedTuple):
    """A heading, what a newcomer should see in the figures, and the figures."""

    title: str
    text: str
    figures: Sequence[Figure]


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
    """Writes the page.

    Args:
        file: where.
        title: of the page.
        lead: a paragraph below it.
        facts: numbers in large type.
        sections: in order.
        settings: names and values for the table at the end.
    """
    body = PAGE.substitute(
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


def _render_section(section: Section) -> str:
    figures = "".join(
        f'<figure><img alt="{html.escape(section.title)}" src="{embed(f)}"></figure>' for f in section.figures
    )
    return f"<section><h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>{figures}</section>"


def embed(figure: Figure) -> str:
    """Returns a figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  :root {
    color-scheme: light dark;
    --ink: #1f2933; --soft: #5b6875; --paper: #f4f6f9; --card: #fff; --line: #e1e6ec; --blue: #2f6fde;
  }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e6ebf1; --soft: #9aa7b5; --paper: #12161c; --card: #1b2129; --line: #2b333e; --blue: #7fb0ff; }
  }
  * { box-sizing: border-box; }
  body { margin: 0; background: var(--paper); color: var(--ink); }
  body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
  main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.1rem 4rem; }
  h1 { font-size: clamp(1.6rem, 5vw, 2.4rem); line-height: 1.15; margin: 0 0 .6rem; letter-spacing: -.02em; }
  h2 { font-size: 1.2rem; margin: 0 0 .3rem; letter-spacing: -.01em; }
  p { color: var(--soft); margin: 0 0 1rem; max-width: 68ch; }
  .facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: .8rem; margin: 1.6rem 0; }
  .facts div, section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; }
  .facts div { padding: .9rem 1.1rem; }
  .facts b { display: block; font-size: 1.55rem; line-height: 1.2; color: var(--blue); }
  .facts span { color: var(--soft); font-size: .84rem; }
  section { padding: 1.3rem 1.3rem .6rem; margin: 0 0 1.1rem; }
  figure { margin: 0 0 .9rem; padding: .5rem; background: #fff; border-radius: 10px; overflow-x: auto; }
  figure img { display: block; width: 100%; min-width: 520px; height: auto; margin: 0 auto; }
  table { border-collapse: collapse; width: 100%; font-size: .84rem; font-variant-numeric: tabular-nums; }
  th, td { text-align: left; padding: .22rem .6rem .22rem 0; font-weight: 400; vertical-align: top; }
  tr { border-bottom: 1px solid var(--line); }
  th { color: var(--soft); width: 45%; overflow-wrap: anywhere; }
  td { overflow-wrap: anywhere; }
  details { margin-bottom: .8rem; }
  summary { cursor: pointer; color: var(--blue); }
</style>
<main>
<h1>$title</h1>
<p>$lead</p>
<div class="facts">$facts</div>
$sections
<section><h2>Settings</h2>
<details><summary>All that decided these numbers</summary><table>$settings</table></details></section>
</main>
</html>
""")
