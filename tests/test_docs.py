"""Tables of the site say what the package does; `make docs` builds the site itself."""

import contextlib
import importlib.util
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import yaml

import croc_jax
from croc_jax.training.config import Recipe, flatten, recipe_to_dict
from tests.launch.test_configs import FILES, read

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ROW = re.compile(r"^\| <code>(.+?)</code> \| <code>(.*?)</code> \| (.*) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build", DOCS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(text):
    for shown, meant in (("<wbr>", ""), ("&#124;", "|"), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        text = text.replace(shown, meant)
    return text


def rows(page):
    """{field: (second column, other columns)} of all tables of a page."""
    return {plain(name): (plain(second), others) for name, second, others in ROW.findall(page)}


def section(page, title):
    return re.search(rf"^### `{re.escape(title)}`\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL)[1]


def nav_files(entries):
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from nav_files(target) if isinstance(target, list) else [target]


def test_every_page_is_in_the_navigation_and_every_room_on_a_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(nav_files(site["nav"])) == sorted(str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md"))
    documented = {line for file in (DOCS / "api").glob("*.md") for line in file.read_text().splitlines()}
    packages = [module.name for module in pkgutil.iter_modules(croc_jax.__path__) if not module.name.startswith("_")]
    assert {f"::: croc_jax.{package}" for package in packages} <= documented


def test_the_table_of_the_recipe_has_every_field_with_its_default_and_a_meaning(build):
    found = rows("\n".join(build.fill_recipe()))
    defaults = flatten(recipe_to_dict(Recipe()))
    assert {name: default for name, (default, _) in found.items()} == {
        name: build.show(value) for name, value in defaults.items()
    }
    assert all(meaning.strip() for _, meaning in found.values())


def test_tables_of_config_files_have_what_they_change_and_their_variants(build):
    page, defaults = "\n".join(build.fill_configs()), flatten(recipe_to_dict(Recipe()))
    for file in FILES:
        settings = flatten(recipe_to_dict(read(file.stem)))
        changed = {name: build.show(value) for name, value in settings.items() if value != defaults[name]}
        assert {name: value for name, (value, _) in rows(section(page, file.name)).items()} == changed, file.name
    part = plain(section(page, "croc_vit.py"))
    for name, fields in runpy.run_path(str(ROOT / "configs" / "croc_vit.py"))["VARIANTS"].items():
        listed = re.search(rf"^\| <code>:{name}</code> \| (.*) \|$", part, re.MULTILINE)[1]
        expected = {f"{field}={build.show(value)}" for field, value in fields.items()}
        assert set(re.findall(r"<code>(.*?)</code>", listed)) == expected


def test_tables_of_protocols_have_all_fields_in_all_variants(build):
    page = "\n".join(build.fill_protocols())
    for file in (ROOT / "configs" / "eval").glob("*.py"):
        part = section(page, f"eval/{file.name}")
        fields = flatten(runpy.run_path(str(file))["get_config"]().to_dict())
        listed = re.findall(r"^\| <code>(\S+?)</code>", part.replace("<wbr>", ""), re.MULTILINE)
        assert set(listed) == set(fields) - {"protocol"}
    heads = re.search(r"^\| field .*$", section(page, "eval/linear.py"), re.MULTILINE)[0]
    assert heads == "| field | default | `:paper` | `:demo` | meaning |"
    start = "| <code>linear.lr</code> | <code>0.05</code> | <code>0.01</code> | <code>0.05</code> | "
    assert start in section(page, "eval/linear.py").replace("<wbr>", "")


def test_fillers_replace_their_line_and_an_unknown_one_is_an_error(build):
    page = build.fill_page("# Page\n\n<!-- fill: conventions -->\n")
    assert "### `linear`" in page and "fill:" not in page
    with pytest.raises(KeyError, match="nothing"):
        build.fill_page("<!-- fill: nothing -->\n")


@pytest.mark.parametrize(
    ("tag", "outside"),
    [
        ('<script src="https://example.org/a.js"></script>', True),
        ("<link rel=stylesheet href=//example.org/a.css>", True),
        ('<script src="../javascripts/a.js"></script>', False),
        ('<a href="https://example.org">elsewhere</a>', False),
    ],
)
def test_pages_load_nothing_from_the_network(build, tag, outside):
    with pytest.raises(ValueError, match="page.html has .*example.org") if outside else contextlib.nullcontext():
        build.check_offline(tag, "page.html")
