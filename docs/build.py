"""Builds the site: fills pages from the package (fields of a recipe, config files, conventions), and renders them.

    python docs/build.py

Filled pages lie in build/pages, where mkdocs.yml expects them; the site, in site/, needs no server and no network.
"""

import dataclasses
import html
import inspect
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from croc_jax.evaluation import find_protocols
from croc_jax.evaluation.features import MemoryBudget
from croc_jax.report.experiment import read_content, render_markdown
from croc_jax.report.published import PUBLISHED
from croc_jax.training.config import Recipe, flatten
from croc_jax.training.presets import PRESETS, SOURCES

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
# Fields of configs/eval that belong to no dataclass.
COMMON = {
    "dataset.root": "where the data is; see the description above",
    "dataset.num_classes": "classes of a folder of images and labels; by default those of its training labels",
    "dataset.train_split": "split to train on",
    "dataset.train_fraction": "share of the training images, drawn with a fixed seed",
    "dataset.val_split": "split that is scored",
    "dataset.val_part": 'what of it is scored: "all", or its half "tuning" or "reporting" in the order of names',
    "dataset.split": "split that is scored",
    "dataset.year": "year of VOC",
    "dataset.hard": "whether truncated and difficult objects count",
    "which": 'weights of a workdir: "teacher" or "student"',
    "recipe": "architecture of `--checkpoint=random`: a config file or a workdir",
}


def main() -> None:
    """Writes site/ anew; a broken link is an error."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for file in PAGES.rglob("*.md"):
        file.write_text(fill_page(file.read_text(encoding="utf-8")), encoding="utf-8")
    zensical = Path(sys.executable).with_name("zensical")
    status = subprocess.run([zensical, "build", "--strict", "--clean"], cwd=ROOT, check=False).returncode
    if status:
        raise SystemExit(status)
    for file in (ROOT / "site").rglob("*.html"):
        check_offline(file.read_text(encoding="utf-8"), file.name)


def fill_page(markdown: str) -> str:
    """Replaces each line `<!-- fill: NAME -->`, perhaps with an argument, of a page; KeyError for an unknown name."""

    def fill(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        return "\n".join(FILLERS[name](*arguments))

    return re.sub(r"^<!-- fill: ([\w ]+) -->$", fill, markdown, flags=re.MULTILINE)


def check_offline(page: str, name: str) -> None:
    """Raises ValueError for a page that loads anything from the network."""
    outside = re.search(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'\s>]+""", page)
    if outside:
        raise ValueError(f"the site must work offline, but {name} has {outside[0]}")


def protocols() -> dict[str, tuple[Any, Mapping[str, Any]]]:
    """Returns {name: (config class, conventions)} of all protocols."""
    return {name: (one.config, one.conventions) for name, one in find_protocols().items()}


def meanings(config: Any, prefix: str = "") -> dict[str, str]:
    """Returns {field: meaning} of a dataclass, from its docstring; ValueError for a field without one."""
    found = {}
    # A base documents its own fields.
    for kind in reversed(config.__mro__[:-1]):
        section = re.search(r"^Attributes:\n((?: .*\n?|\n)+)", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
        found |= {name: " ".join(text.split()) for name, text in entries}
    names = [field.name for field in dataclasses.fields(config) if not dataclasses.is_dataclass(field.default)]
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{config.__qualname__}: the docstring lacks {', '.join(missing)}")
    return {f"{prefix}{name}": found[name] for name in names}


def groups(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (prefix of its fields, instance) of a config and of all dataclasses in it."""
    yield prefix, config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from groups(value, f"{prefix}{field.name}.")


def fill_recipe() -> Iterator[str]:
    """Documents all fields of a recipe, a table for each group."""
    for prefix, group in groups(Recipe()):
        title = f"`{prefix.rstrip('.')}`" if prefix else "The run as a whole"
        yield from (f"### {title}", "", escape((inspect.getdoc(group) or "").partition("\n")[0]), "")
        fields = meanings(type(group)).items()
        rows = ((code(prefix + name), code(show(getattr(group, name))), escape(meaning)) for name, meaning in fields)
        yield from table("field", "default", "meaning", rows=rows)


def fill_configs() -> Iterator[str]:
    """Documents each config file of pre-training: what it is for, its command, and what it changes."""
    defaults = flatten(dataclasses.asdict(Recipe()))
    for file in sorted((ROOT / "configs").glob("*.py")):
        names = runpy.run_path(str(file))
        yield from (f"### `{file.name}`", "", describe(names["__doc__"]), "")
        settings = sorted(flatten(names["get_config"]().to_dict()).items())
        changed = ((name, show(value), show(defaults[name])) for name, value in settings if value != defaults[name])
        yield from table("field", "value", "default", rows=(map(code, row) for row in changed))
        yield from ("All other fields have their defaults.", "")
        if variants := names.get("VARIANTS"):
            texts = {name: [f"{field}={show(value)}" for field, value in one.items()] for name, one in variants.items()}
            rows = ((code(f":{name}"), ", ".join(map(code, fields))) for name, fields in texts.items())
            yield from table("variant", "what it sets besides", rows=rows)


def fill_presets() -> Iterator[str]:
    """Documents the presets by number of images, with a reason for each setting, and links to what it cites."""
    defaults = flatten(dataclasses.asdict(Recipe()))
    for name, preset in PRESETS.items():
        least, most = preset.bounds
        yield from (f"### `:{name}`", "", f"For {least:,} to {most:,} images.", "")
        rows = (
            (code(field), code(show(value)), code(show(defaults[field])), cite(reason))
            for field, (value, reason) in preset.choices.items()
        )
        yield from table("field", "value", "default", "why", rows=rows)


def fill_protocols() -> Iterator[str]:
    """Documents each config file of evaluation, with a column for each variant."""
    for file in sorted((ROOT / "configs" / "eval").glob("*.py")):
        names = runpy.run_path(str(file))
        yield from (f"### `eval/{file.name}`", "", describe(names["__doc__"]), "")
        get_config = names["get_config"]
        variants = re.findall(r'"(\w+)"', get_config.__doc__) if inspect.signature(get_config).parameters else []
        columns = {f"`:{name}`": flatten(get_config(name).to_dict()) for name in variants[1:]}
        columns = {"default": flatten(get_config().to_dict())} | columns
        by_protocol: dict[str, dict[str, dict[str, Any]]] = {}
        for head, column in columns.items():
            by_protocol.setdefault(column.pop("protocol"), {})[head] = column
        for protocol, same in by_protocol.items():
            known = COMMON | meanings(MemoryBudget, "budget.") | meanings(protocols()[protocol][0], f"{protocol}.")
            names = next(iter(same.values()))
            rows = (
                (code(name), *(code(show(column[name])) for column in same.values()), escape(known[name]))
                for name in names
            )
            yield from table("field", *same, "meaning", rows=rows)


def fill_conventions() -> Iterator[str]:
    """Lists the conventions of each protocol."""
    for name, (_, conventions) in protocols().items():
        yield from (f"### `{name}`", "")
        yield from table("what", "how", rows=((what, escape(how)) for what, how in conventions.items()))


def fill_published() -> Iterator[str]:
    """Lists published scores, a column for each data set."""
    kinds = dict.fromkeys(kind for row in PUBLISHED for kind in row.scores)
    rows = (
        (
            code(of.config),
            escape(of.network),
            *(f"{of.scores[k]:.1f}" if k in of.scores else "" for k in kinds),
            escape(of.source),
        )
        for of in PUBLISHED
    )
    yield from table("config", "network", *(f"`{kind}`" for kind in kinds), "source", rows=rows)


def fill_learning(name: str) -> Iterator[str]:
    """Renders the tables of an experiment whose results lie in docs/learning."""
    file = ROOT / "docs" / "learning" / f"{name}.json"
    if not file.is_file():
        yield from (f"No results of `{name}` have been published yet.", "")
        return
    yield from render_markdown(read_content(file))


def table(*heads: str, rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yields the lines of a table in Markdown."""
    yield from (f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))
    yield ""


def describe(docstring: str) -> str:
    """Returns the docstring of a config file as Markdown; its indented command becomes a block of code."""
    blocks = re.split(r"((?:^ {4}.*\n?)+)", docstring, flags=re.MULTILINE)
    blocks[::2] = map(escape, blocks[::2])
    blocks[1::2] = (f"```bash\n{textwrap.dedent(block).rstrip()}\n```\n" for block in blocks[1::2])
    return "".join(blocks)


def show(value: Any) -> str:
    """Returns a value as one would write it on the command line or in a config."""
    if isinstance(value, float):
        return repr(value) if len(repr(value)) < 10 else f"{value:.6g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))}{',' if len(value) == 1 else ''})"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def escape(text: Any) -> str:
    """Returns text that neither Markdown nor a table takes for markup; `code` stays code."""
    parts = re.split(r"(`[^`]*`)", str(text))
    parts[::2] = (re.sub(r"([\\*_\[\]|])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2])
    return "".join(parts)


def cite(text: str) -> str:
    """Returns the reason for a setting as Markdown, with links; KeyError for a source that is not in `SOURCES`."""
    return re.sub(r"\\\[(.+?)\\\]", lambda match: f"([{match[1]}]({SOURCES[match[1]]}))", escape(text))


def code(text: str) -> str:
    """Returns text as code that a phone may break between words."""
    shown = html.escape(text, quote=False).replace("|", "&#124;")
    return "<code>" + re.sub(r"(?<=[a-z])([._/])(?=[a-z])", r"\1<wbr>", shown) + "</code>"


FILLERS = {
    "recipe": fill_recipe,
    "configs": fill_configs,
    "presets": fill_presets,
    "protocols": fill_protocols,
    "conventions": fill_conventions,
    "published": fill_published,
    "learning": fill_learning,
}


if __name__ == "__main__":
    main()
