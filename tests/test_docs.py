"""Tables of the site say what the package does; `make docs` builds the site itself."""

import contextlib
import importlib.util
import json
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import yaml

import croc_jax
from croc_jax.data.labeled.registry import KINDS
from croc_jax.evaluation import find_protocols
from croc_jax.report.published import PUBLISHED
from croc_jax.training.config import Recipe, flatten, recipe_to_dict
from croc_jax.training.presets import PRESETS, SOURCES
from tests.launch.test_configs import FILES, load
from tests.report.tiny_results import experiment_content

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
        settings = flatten(load(file.stem).get_config().to_dict())
        changed = {name: build.show(value) for name, value in settings.items() if value != defaults[name]}
        assert {name: value for name, (value, _) in rows(section(page, file.name)).items()} == changed, file.name
    part = plain(section(page, "croc_vit.py"))
    for name, fields in runpy.run_path(str(ROOT / "configs" / "croc_vit.py"))["VARIANTS"].items():
        listed = re.search(rf"^\| <code>:{name}</code> \| (.*) \|$", part, re.MULTILINE)[1]
        expected = {f"{field}={build.show(value)}" for field, value in fields.items()}
        assert set(re.findall(r"<code>(.*?)</code>", listed)) == expected


def test_tables_of_presets_have_each_setting_and_link_what_their_reasons_cite(build):
    page = "\n".join(build.fill_presets())
    for name, preset in PRESETS.items():
        found = rows(section(page, f":{name}"))
        assert {field: value for field, (value, _) in found.items()} == {
            field: build.show(value) for field, value in preset.values.items()
        }
        for field, (_, others) in found.items():
            why = re.sub(r"\(\[(.+?)\]\(\S+?\)\)", r"[\1]", others.rpartition(" | ")[2])
            assert why == re.sub(r"\\([\[\]])", r"\1", build.escape(preset.choices[field].reason)), field
    assert set(re.findall(r"\(\[(.+?)\]\((\S+?)\)\)", page)) == set(SOURCES.items())


def test_tables_of_protocols_have_all_fields_in_all_variants(build):
    page = "\n".join(build.fill_protocols())
    for file in (ROOT / "configs" / "eval").glob("*.py"):
        part, get_config = section(page, f"eval/{file.name}"), runpy.run_path(str(file))["get_config"]
        variants = re.findall(r"`:(\w+)`", "".join(re.findall(r"^\| field .*$", part, re.MULTILINE)))
        fields = set(flatten(get_config().to_dict())).union(*(flatten(get_config(of).to_dict()) for of in variants))
        listed = re.findall(r"^\| <code>(\S+?)</code>", part.replace("<wbr>", ""), re.MULTILINE)
        assert set(listed) == fields - {"protocol"}
    heads = re.findall(r"^\| field .*$", section(page, "eval/linear.py"), re.MULTILINE)
    assert heads == [f"| field | {of} | meaning |" for of in ("default | `:paper` | `:demo`", "`:dinov2` | `:dinov3`")]
    start = "| <code>linear.lr</code> | <code>0.05</code> | <code>0.01</code> | <code>0.05</code> | "
    assert start in section(page, "eval/linear.py").replace("<wbr>", "")


def test_published_scores_are_of_configs_and_all_listed(build):
    page = "\n".join(build.fill_published()).replace("<wbr>", "")
    for row in PUBLISHED:
        file, *variant = row.config.split(":")
        get_config = runpy.run_path(str(ROOT / "configs" / "eval" / file))["get_config"]
        assert get_config(*variant).to_dict()["protocol"] in find_protocols()
        assert row.scores.keys() <= set(KINDS) and all(0 < score < 100 for score in row.scores.values()), row
        line = re.search(rf"^\| <code>{row.config}</code> \| {re.escape(row.network)} \|.*$", page, re.MULTILINE)[0]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert sorted(filter(None, cells[2:-1])) == sorted(f"{score:.1f}" for score in row.scores.values())
    text = (DOCS / "evaluation.md").read_text()
    assert all(f"| `{config}`" in text for config in {row.config for row in PUBLISHED})


def test_fillers_replace_their_line_and_an_unknown_one_is_an_error(build):
    page = build.fill_page("# Page\n\n<!-- fill: conventions -->\n")
    assert "### `linear`" in page and "fill:" not in page
    with pytest.raises(KeyError, match="nothing"):
        build.fill_page("<!-- fill: nothing -->\n")


def test_a_page_has_the_tables_of_an_experiment_once_they_are_published(build, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert "No results of `small`" in build.fill_page("<!-- fill: learning small -->\n")
    (tmp_path / "docs" / "learning").mkdir(parents=True)
    (tmp_path / "docs" / "learning" / "small.json").write_text(json.dumps(experiment_content()))
    page = build.fill_page("# Page\n\n<!-- fill: learning small -->\n")
    assert "| CrOC | 31.5 ± 1.5 | 50.0 | 3 |" in page and "fill:" not in page


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
