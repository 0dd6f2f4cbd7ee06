"""Fills the pages of the site with what the sources say: fields, config files, conventions, modules."""

import ast
import html
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reading import (
    ROOT,
    DocumentationError,
    parse,
    public_modules,
    read_assignments,
    read_fields,
    read_protocol,
    read_protocols,
    read_variants,
    recipe_groups,
    show,
    source_file,
    summary,
)

PACKAGE = "croc_jax"
# What belongs to no dataclass of the package, of the configs in configs/eval.
COMMON = {
    "dataset.root": "where the data lie; see the description above",
    "dataset.num_classes": "classes of a folder of images and labels; without, those that its training labels show",
    "dataset.train_split": "split to learn from",
    "dataset.train_fraction": "share of the training images, drawn with a fixed seed",
    "dataset.val_split": "split that is scored",
    "dataset.split": "split that is scored",
    "dataset.year": "of VOC",
    "dataset.hard": "whether truncated and difficult objects count",
    "which": 'weights of a workdir: "teacher" or "student"',
    "recipe": "architecture of `--checkpoint=random`: a config file or a workdir",
}


def on_pre_build(**_: Any) -> None:
    """Forgets the sources as they were before, for `mkdocs serve`; MkDocs calls this."""
    parse.cache_clear()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces each line `<!-- fill: NAME ARGUMENT -->` of a page; MkDocs calls this.

    Raises:
        DocumentationError: for an unknown name, or sources that lack what it asks for.
    """

    def fill(match: re.Match) -> str:
        name, *arguments = match[1].split()
        if name not in FILLERS:
            raise DocumentationError(f"fill: {name}: choose one of {', '.join(FILLERS)}")
        return FILLERS[name](*arguments)

    return re.sub(r"^<!-- fill: (.+) -->$", fill, markdown, flags=re.MULTILINE)


def on_post_page(output: str, **_: Any) -> str:
    """Lets no page out that loads anything from the network; MkDocs calls this.

    Raises:
        DocumentationError: for such a page.
    """
    outside = re.search(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'\s>]+""", output)
    if outside:
        raise DocumentationError(f"the site must work offline, but a page has {outside[0]}")
    return output


def fill_modules(room: str) -> str:
    """Lists what a room exports, then documents each of its modules."""
    pages = []
    for name in public_modules(room):
        package = source_file(name).name == "__init__.py"
        options = "\n    options:\n      members: []" if package else ""
        exports = _exports(name) if package else ""
        pages.append(f"::: {name}{options}\n\n{exports}")
    return "\n".join(pages)


def _exports(package: str) -> str:
    """Returns a table of the names that a package offers, linked to where they are defined."""
    tree, rows = parse(package), []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.module.startswith(PACKAGE):
            for alias in statement.names:
                meaning = summary(statement.module, alias.name)
                link = f"[`{alias.name}`][{statement.module}.{alias.name}]" if meaning else f"`{alias.name}`"
                rows.append(f"| {link} | {escape(meaning)} |")
    if not rows:
        return ""
    return "\n".join([f"Import these from `{package}`:", "", "| name | what it is |", "|---|---|", *rows, ""])


def fill_recipe() -> str:
    """Documents all fields of a recipe, a table for each group."""
    parts = []
    for prefix, (lead, fields) in recipe_groups().items():
        title = f"`{prefix.rstrip('.')}`" if prefix else "The run as a whole"
        parts += [f"### {title}", "", escape(lead), "", "| field | default | meaning |", "|---|---|---|"]
        parts += [f"| {code(prefix + f.name)} | {code(f.default)} | {escape(f.meaning)} |" for f in fields]
        parts.append("")
    return "\n".join(parts)


def fill_configs() -> str:
    """Documents each config file of pre-training: what it is for, its command, what it changes."""
    defaults = {f"{prefix}{f.name}": f.default for prefix, (_, fields) in recipe_groups().items() for f in fields}
    parts = []
    for file in sorted((ROOT / "configs").glob("*.py")):
        assigned, variants = read_assignments(file), read_variants(file)
        unknown = assigned.keys() - defaults.keys()
        unknown |= {name for fields in variants.values() for name in fields.keys() - defaults.keys()}
        if unknown:
            raise DocumentationError(f"{file.name} sets unknown fields: {', '.join(sorted(unknown))}")
        changed = {name: value for name, value in assigned.items() if value != defaults[name]}
        parts += [f"### `{file.name}`", "", _describe(file), "", "| field | value | default |", "|---|---|---|"]
        parts += [f"| {code(n)} | {code(v)} | {code(defaults[n])} |" for n, v in sorted(changed.items())]
        parts += ["", "All other fields keep their defaults.", ""]
        if variants:
            parts += ["| variant | what it sets besides |", "|---|---|"]
            parts += [f"| {code(f':{name}')} | {_list(fields)} |" for name, fields in variants.items()]
            parts.append("")
    return "\n".join(parts)


def _list(fields: Mapping[str, str]) -> str:
    return ", ".join(code(f"{name}={value}") for name, value in fields.items())


def _describe(file: Path) -> str:
    """Returns a file's docstring as Markdown; its indented command becomes a block of code."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    blocks = re.split(r"((?:^ {4}.*\n?)+)", docstring, flags=re.MULTILINE)
    blocks[::2] = map(escape, blocks[::2])
    blocks[1::2] = (f"```bash\n{textwrap.dedent(block).rstrip()}\n```\n" for block in blocks[1::2])
    return "".join(blocks)


def protocol_meanings(protocol: str) -> dict[str, str]:
    """Returns the meaning of each field of a protocol's config."""
    budget = {f"budget.{f.name}": f.meaning for f in read_fields("croc_jax.evaluation.features", "MemoryBudget")}
    entry = read_protocols()[protocol]
    own = {f"{protocol}.{field.name}": field.meaning for field in read_fields(entry.module, entry.config)}
    return COMMON | budget | own


def fill_protocols() -> str:
    """Documents each config file of evaluation, with a column for each variant."""
    parts = []
    for file in sorted((ROOT / "configs" / "eval").glob("*.py")):
        variants = read_protocol(file)
        first = next(iter(variants.values()))
        meanings = protocol_meanings(first["protocol"])
        heads = [f"`:{name}`" if index else "default" for index, name in enumerate(variants)]
        parts += [f"### `eval/{file.name}`", "", _describe(file), ""]
        parts += [f"| field | {' | '.join(heads)} | meaning |", "|---" * (len(heads) + 2) + "|"]
        for name in first:
            if name != "protocol":
                if name not in meanings:
                    raise DocumentationError(f"{file.name}: nothing says what {name} means")
                values = " | ".join(code(show(fields[name])) for fields in variants.values())
                parts.append(f"| {code(name)} | {values} | {escape(meanings[name])} |")
        parts.append("")
    return "\n".join(parts)


def fill_conventions() -> str:
    """Lists the conventions of each protocol."""
    parts = []
    for protocol, (_, _, conventions) in read_protocols().items():
        parts += [f"### `{protocol}`", "", "| what | how |", "|---|---|"]
        parts += [f"| {name} | {escape(value)} |" for name, value in conventions.items()]
        parts.append("")
    return "\n".join(parts)


def escape(text: Any) -> str:
    """Returns text that neither Markdown nor a table takes for markup; `code` stays code."""
    parts = re.split(r"(`[^`]*`)", str(text))
    plain = (re.sub(r"([\\*_\[\]|])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2])
    return "".join(piece for pair in zip(plain, [*parts[1::2], ""], strict=True) for piece in pair)


def code(text: str) -> str:
    """Returns text as code whose names break between words, to fit a phone; nothing for no text."""
    shown = html.escape(text, quote=False).replace("|", "&#124;")
    breakable = re.sub(r"(?<=[a-z])([._/])(?=[a-z])", r"\1<wbr>", shown)
    return f"<code>{breakable}</code>" if text else ""


FILLERS: dict[str, Callable[..., str]] = {
    "modules": fill_modules,
    "recipe": fill_recipe,
    "configs": fill_configs,
    "protocols": fill_protocols,
    "conventions": fill_conventions,
}
