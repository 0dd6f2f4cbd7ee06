"""The page: self-contained, escaped, in its own colors, the same every time."""

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from croc_jax.report.html import Details, Fact, Photo, Picture, Section, Table, render, write_page
from croc_jax.report.style import GRID, INK, MUTED, figure_style

WEBP = '<img alt="{}" src="data:image/webp;base64,'
NASTY = "<b> \"fat\" & $lead 'thin'"
ESCAPED = "&lt;b&gt; &quot;fat&quot; &amp; $lead &#x27;thin&#x27;"


def chart(width=4.0):
    with figure_style():
        figure = Figure(figsize=(width, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1, 2], [3, 1, 2], label="curve")
        axes.set(title="Title", xlabel="step")
        axes.legend()
    return figure


def photo():
    with figure_style():
        figure = Figure(figsize=(6, 2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
        right.plot([0, 1])
    return figure


def test_photos_become_webp():
    text = render(photo(), description="a view")
    start = WEBP.format("a view")
    assert text.startswith(start) and text.endswith('">') and "<svg" not in text
    with Image.open(io.BytesIO(base64.b64decode(text[len(start) : -2], validate=True))) as image:
        assert image.format == "WEBP" and image.size == (6 * 170, 2 * 170)
        assert np.asarray(image.convert("RGBA"))[0, 0, 3] == 0


def test_charts_become_drawings_in_the_colors_of_the_page():
    text = render(chart(), description="a curve")
    assert text.startswith('<svg role="img" aria-label="a curve"') and text.rstrip().endswith("</svg>")
    for color, variable in {INK: "var(--ink)", MUTED: "var(--soft)", GRID: "var(--line)"}.items():
        assert variable in text and color not in text
    # A variable means something in a style, but not in an attribute such as fill.
    for element in ElementTree.fromstring(text).iter():
        assert not [name for name, value in element.attrib.items() if "var(--" in value and name != "style"]


@pytest.mark.parametrize("draw", [chart, photo])
def test_the_same_figure_gives_the_same_text(draw):
    figure = draw()
    first = render(figure, description="twice")
    assert render(figure, description="twice") == first == render(draw(), description="twice")


def test_other_data_give_another_text():
    other = chart()
    other.axes[0].lines[0].set_ydata([3, 2, 1])
    assert render(other, description="x") != render(chart(), description="x")


@pytest.mark.parametrize(("draw", "start"), [(chart, '<svg role="img" aria-label="{}"'), (photo, WEBP)])
def test_descriptions_are_escaped(draw, start):
    assert render(draw(), description=NASTY).startswith(start.format(ESCAPED))


class Elements(HTMLParser):
    """Collects a page's elements with their attributes, and what stands in <style>."""

    def __init__(self, page):
        super().__init__()
        self.found, self.styles, self._style = [], "", False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        self.styles += data if self._style else ""


def assert_self_contained(page):
    """Nothing that a browser would load lies outside the page."""
    elements = Elements(page)
    loads = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "xlink:href", "data", "poster", "action")
    ]
    assert loads and all(value.startswith(("data:", "#")) for value in loads)
    styles = [elements.styles, *(attributes.get("style") or "" for _, attributes in elements.found)]
    assert all(target.startswith("#") for style in styles for target in re.findall(r"url\(['\"]?([^)]*)", style))
    assert "@import" not in "".join(styles)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in elements.found}


@pytest.fixture
def page(tmp_path):
    file = tmp_path / "page.html"
    file.write_text("an older one")
    write_page(
        file,
        title=f"Title {NASTY}",
        lead=f"Lead {NASTY}",
        facts=[Fact("12", "apples"), Fact(f"Value {NASTY}", f"Name {NASTY}")],
        sections=[
            Section("First", "Two pictures.", [Picture(photo(), f"Caption {NASTY}"), Picture(chart(width=5.5))]),
            Section(f"Second {NASTY}", f"Text {NASTY}", [Picture(chart(), "a small one")]),
        ],
        settings={"schedule.epochs": 3, "data.folders": ("<i>",), f"Setting {NASTY}": None},
    )
    return file


def test_a_page_is_whole_and_alone(page):
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert_self_contained(text)


def test_a_page_in_light_and_in_dark(page):
    text = page.read_text(encoding="utf-8")
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    assert "color-scheme: light dark" in light
    for name in ("--ink", "--soft", "--paper", "--card", "--line", "--accent"):
        colors = [re.findall(rf"{name}: (#\w+)", part) for part in (light, dark)]
        assert [len(found) for found in colors] == [1, 1] and colors[0] != colors[1], name


def test_all_text_of_a_page_is_escaped(page):
    text = page.read_text(encoding="utf-8")
    for part in ("Title", "Lead", "Value", "Name", "Caption", "Second", "Text", "Setting"):
        assert f"{part} {ESCAPED}" in text, part
    assert "<b> " not in text and "<i>" not in text
    assert text.count(f"Title {ESCAPED}") == 2


def test_facts_sections_and_settings_come_in_order(page):
    text = page.read_text(encoding="utf-8")
    marks = [
        "<b>12</b><span>apples</span>",
        "<h2>First</h2><p>Two pictures.</p>",
        '<figure class="wide"><div><img ',
        f"<figcaption>Caption {ESCAPED}</figcaption>",
        # Without a caption, the title of the section describes the picture.
        '<figure class="wide"><div><svg role="img" aria-label="First"',
        "<h2>Second",
        '<figure class="small"><div><svg role="img" aria-label="a small one"',
        "<figcaption>a small one</figcaption>",
        "<tr><th>schedule.epochs</th><td>3</td></tr>",
        "<td>(&#x27;&lt;i&gt;&#x27;,)</td>",
    ]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)
    assert text.count("<figcaption>") == 2 and text.count("<figure ") == 3


def test_tables_photos_and_what_is_folded(tmp_path):
    Image.fromarray(np.full((6, 8, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    table = Table(["who", f"score {NASTY}"], [["they", "1.0"], [f"we {NASTY}", "2.0"]], own=[1], caption="A table")
    blocks = [table, Details(f"More {NASTY}", [Photo(tmp_path / "photo.png", "A photo")])]
    file = tmp_path / "page.html"
    write_page(file, title="", lead="", facts=[], sections=[Section("Scores", "", blocks)], settings={})
    text = file.read_text(encoding="utf-8")
    assert f"<th>who</th><th>score {ESCAPED}</th>" in text
    assert "<tr><th>they</th><td>1.0</td></tr>" in text
    assert f'<tr class="own"><th>we {ESCAPED}</th><td>2.0</td></tr>' in text
    folded = text[text.index("<details>") : text.index("</details>")]
    assert f"<summary>More {ESCAPED}</summary>" in folded and "<figcaption>A photo</figcaption>" in folded
    start = folded.index(WEBP.format("A photo")) + len(WEBP.format("A photo"))
    data = folded[start : folded.index('"', start)]
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert image.format == "WEBP" and image.size == (8, 6)
    assert_self_contained(text)


def test_a_page_that_cannot_be_drawn_leaves_the_older_one(page):
    before = page.read_text(encoding="utf-8")
    broken = Figure()
    broken.text(0, 0, "$\\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        write_page(page, title="", lead="", facts=[], sections=[Section("", "", [Picture(broken)])], settings={})
    assert page.read_text(encoding="utf-8") == before and len(list(page.parent.iterdir())) == 1
