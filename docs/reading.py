"""Reads fields, config files, conventions and modules from the sources.

Nothing of the package is imported, so that the site builds where JAX is not installed.
"""

import ast
import functools
import re
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class DocumentationError(ValueError):
    """A page cannot be made; the message names what the sources lack."""


class Field(NamedTuple):
    """A field of a dataclass.

    Attributes:
        name: of the field.
        kind: its annotation.
        default: as written, evaluated where it is plain.
        meaning: from the docstring.
    """

    name: str
    kind: str
    default: str
    meaning: str


def public_modules(room: str) -> list[str]:
    """Returns the dotted names of a room's modules and of those below it, packages first."""
    folder = ROOT / room.replace(".", "/")
    if not folder.is_dir():
        return [room]
    names = []
    for file in folder.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            names.append(".".join(parts))
    return sorted(names, key=lambda name: name.split("."))


def source_file(module: str) -> Path:
    """Returns the file of a module or package."""
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def parse(module: str) -> ast.Module:
    """Returns the syntax tree of a module."""
    return ast.parse(source_file(module).read_text(encoding="utf-8"))


def summary(module: str, name: str) -> str:
    """Returns the first line of the docstring of a class or function, wherever it is defined; "" without."""
    for node in parse(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n")[0]
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return summary(node.module, name)
    return ""


def read_fields(module: str, name: str) -> list[Field]:
    """Returns the fields of a dataclass, with their meaning.

    Raises:
        DocumentationError: for a class that is not there, or a field that its docstring leaves out.
    """
    found = [node for node in parse(module).body if isinstance(node, ast.ClassDef) and node.name == name]
    if not found:
        raise DocumentationError(f"{module} has no class {name}")
    meanings = read_attributes(ast.get_docstring(found[0]) or "")
    bases = [base.id for base in found[0].bases if isinstance(base, ast.Name) and base.id.endswith("Config")]
    fields = [field for base in bases for field in read_fields(_home(module, base), base)]
    for node in found[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field, default = node.target.id, node.value
            nested = isinstance(default, ast.Call)
            if field not in meanings and not nested:
                raise DocumentationError(f"{module}.{name}: the docstring says nothing about {field}")
            text = ast.unparse(default) if nested and default else show(_evaluate(default))
            fields.append(Field(field, ast.unparse(node.annotation), text, meanings.get(field, "")))
    return fields


def read_attributes(docstring: str) -> dict[str, str]:
    """Returns the meaning of each name in the section `Attributes:` of a Google-style docstring."""
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    meanings: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else ():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name, meanings[start[1]] = start[1], start[2]
        elif line.strip():
            meanings[name] += f" {line.strip()}"
    return meanings


def recipe_groups() -> dict[str, tuple[str, list[Field]]]:
    """Returns {prefix: (the class's first line, its fields)} of the recipe and all groups below it."""
    return dict(_walk("croc_jax.training.config", "Recipe", ""))


def _walk(module: str, name: str, prefix: str) -> Iterator[tuple[str, tuple[str, list[Field]]]]:
    fields = read_fields(module, name)
    plain = [field for field in fields if not field.default.endswith("Config()")]
    yield prefix, (summary(module, name), plain)
    for field in fields:
        if field not in plain:
            yield from _walk(_home(module, field.kind), field.kind, f"{prefix}{field.name}.")


def _home(module: str, name: str) -> str:
    """Returns the module that a module imports a class from, or its own name."""
    imports = [node for node in parse(module).body if isinstance(node, ast.ImportFrom) and node.module]
    return next((node.module or "" for node in imports if name in [alias.name for alias in node.names]), module)


def read_assignments(file: Path) -> dict[str, str]:
    """Returns {"optimizer.base_lr": "0.008", ...} for what a config file of pre-training sets."""
    assigned = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            plain = not any(isinstance(part, ast.Name | ast.Call) for part in ast.walk(node.value))
            value = show(_evaluate(node.value)) if plain else ast.unparse(node.value)
            assigned[ast.unparse(node.targets[0]).removeprefix("config.")] = value
    return assigned


def read_variants(file: Path) -> dict[str, dict[str, str]]:
    """Returns {variant: {"backbone.remat": "True", ...}} of a config file with a table `VARIANTS`; else nothing."""
    names: dict[str, Any] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names[ast.unparse(node.targets[0])] = _evaluate(node.value, names)
    variants = names.get("VARIANTS", {})
    return {variant: {name: show(value) for name, value in fields.items()} for variant, fields in variants.items()}


def read_protocol(file: Path) -> dict[str, dict[str, Any]]:
    """Returns {variant: {"linear.lr": 0.05, ...}} of a config in configs/eval; variant "" if it has none."""
    functions = [n for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)]
    main = next(node for node in functions if node.name == "get_config")
    variants = re.findall(r'"(\w+)"', ast.get_docstring(main) or "") if main.args.args else [""]
    get_config = runpy.run_path(str(file))["get_config"]
    return {name: flatten((get_config(name) if name else get_config()).to_dict()) for name in variants}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"linear.lr": 0.05, ...} for nested mappings."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return flat


class Protocol(NamedTuple):
    """The entry of a protocol in the registry.

    Attributes:
        module: module that defines it.
        config: name of its config's class.
        conventions: what the fingerprint spells out.
    """

    module: str
    config: str
    conventions: dict[str, Any]


def read_protocols() -> dict[str, Protocol]:
    """Returns the protocols by name: every module of croc_jax.evaluation that defines PROTOCOL."""
    found = {}
    for module in public_modules("croc_jax.evaluation"):
        for node in parse(module).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PROTOCOL":
                assert isinstance(node.value, ast.Call)
                given = {keyword.arg: keyword.value for keyword in node.value.keywords}
                conventions = _evaluate(given["conventions"], _constants(module, given["conventions"]))
                found[_evaluate(given["name"])] = Protocol(module, ast.unparse(given["config"]), conventions)
    return dict(sorted(found.items()))


def _constants(module: str, node: ast.expr) -> dict[str, Any]:
    """Returns the constants that an expression of a module names."""
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return {name: _constant(_home(module, name), name) for name in names}


def _constant(module: str, name: str) -> Any:
    for node in parse(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return _evaluate(node.value)
    raise DocumentationError(f"{module} has no constant {name}")


def _evaluate(node: ast.expr | None, names: Mapping[str, Any] | None = None) -> Any:
    """Computes an expression of literals and given names."""
    if node is None:
        return ...
    code = compile(ast.Expression(node), "<docs>", "eval")
    return eval(code, {"__builtins__": {}}, dict(names or {}))


def show(value: Any) -> str:
    """Returns a value as one would write it on the command line or in a config."""
    if value is ...:
        return ""
    if isinstance(value, float):
        return repr(value) if len(repr(value)) < 10 else f"{value:.6g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))}{',' if len(value) == 1 else ''})"
    return repr(value).replace("'", '"') if isinstance(value, str) else repr(value)
