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

from croc_jax.report.html import details, photo, picture, section, table, write_page
from croc_jax.report.style import GRID, INK, MUTED, figure_style

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


def collage():
    with figure_style():
        figure = Figure(figsize=(6, 2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8))
        right.plot([0, 1])
    return figure


def webp(text):
    data = re.search('src="data:image/webp;base64,(.*?)"', text)[1]
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_figures_with_photos_become_webp():
    text = picture(collage(), NASTY)
    assert text.startswith(f'<figure class="wide"><div><img alt="{ESCAPED}" src="data:') and "<svg" not in text
    with webp(text) as image:
        assert image.format == "WEBP" and image.size == (6 * 170, 2 * 170)
        assert np.asarray(image.convert("RGBA"))[0, 0, 3] == 0


def test_charts_become_svg_in_the_colors_of_the_page_the_same_every_time():
    text = picture(chart(), description=NASTY)
    assert text == picture(chart(), description=NASTY)
    assert text.startswith(f'<figure class="small"><div><svg role="img" aria-label="{ESCAPED}"')
    for color, variable in {INK: "var(--ink)", MUTED: "var(--soft)", GRID: "var(--line)"}.items():
        assert variable in text and color not in text
    # A variable means something in a style, but not in an attribute such as fill.
    for element in ElementTree.fromstring(re.search("<svg.*</svg>", text, re.DOTALL)[0]).iter():
        assert not [name for name, value in element.attrib.items() if "var(--" in value and name != "style"]


def test_photos_tables_and_details(tmp_path):
    Image.fromarray(np.full((6, 8, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    text = photo(tmp_path / "photo.png", "A photo")
    with webp(text) as image:
        assert image.format == "WEBP" and image.size == (8, 6)
    rows = [["they", "1.0"], [f"we {NASTY}", "2.0"]]
    text = details(f"More {NASTY}", [table(["who", f"score {NASTY}"], rows, own=[1], caption="A table"), text])
    assert f"<summary>More {ESCAPED}</summary>" in text and "<figcaption>A photo</figcaption>" in text
    assert f"<th>who</th><th>score {ESCAPED}</th>" in text
    assert "<tr><th>they</th><td>1.0</td></tr>" in text
    assert f'<tr class="own"><th>we {ESCAPED}</th><td>2.0</td></tr>' in text


class Elements(HTMLParser):
    """Collects a page's elements with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text("an older one")
    write_page(
        file,
        title=f"Title {NASTY}",
        lead=f"Lead {NASTY}",
        facts=[("12", "apples"), (f"Value {NASTY}", f"Name {NASTY}")],
        sections=[
            section("First", "Two pictures.", [picture(collage(), f"Caption {NASTY}"), picture(chart(width=5.5))]),
            section(
                f"Second {NASTY}", f"Text {NASTY}", [picture(chart(), "a small one"), picture(chart(), "\udce9.png")]
            ),
        ],
        settings={"schedule.epochs": 3, "data.folders": ("<i>",), f"Setting {NASTY}": None},
    )
    assert [file.name for file in file.parent.iterdir()] == ["page.html"]
    return file.read_text(encoding="utf-8")


def test_a_page_loads_nothing_from_outside(page):
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    elements = Elements(page).found
    names = ("src", "srcset", "href", "xlink:href", "data", "poster", "action")
    loads = [value for _, attributes in elements for name, value in attributes.items() if name in names]
    assert loads and all(value.startswith(("data:", "#")) for value in loads)
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", page)) and "@import" not in page
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in elements}


def test_a_page_has_colors_for_light_and_dark(page):
    light, dark = page.split("@media (prefers-color-scheme: dark)")
    for name in ("--ink", "--soft", "--paper", "--card", "--line", "--accent"):
        colors = [re.findall(rf"{name}: (#\w+)", part) for part in (light, dark)]
        assert [len(found) for found in colors] == [1, 1] and colors[0] != colors[1], name


def test_a_page_is_escaped_and_in_order(page):
    for part in ("Title", "Lead", "Value", "Name", "Caption", "Second", "Text", "Setting"):
        assert f"{part} {ESCAPED}" in page, part
    assert "<b> " not in page and "<i>" not in page
    marks = [
        "<b>12</b><span>apples</span>",
        "<h2>First</h2><p>Two pictures.</p>",
        '<figure class="wide"><div><img ',
        f"<figcaption>Caption {ESCAPED}</figcaption>",
        "<h2>Second",
        '<figure class="small"><div><svg role="img" aria-label="a small one"',
        "<figcaption>a small one</figcaption>",
        r"<figcaption>\udce9.png</figcaption>",
        "<tr><th>schedule.epochs</th><td>3</td></tr>",
        "<td>(&#x27;&lt;i&gt;&#x27;,)</td>",
    ]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
