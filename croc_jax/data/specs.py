"""Reads KIND:VALUE, the form in which configs and command lines name data."""

import os
import re
from collections.abc import Mapping

from croc_jax.paths import is_remote, local_path

FOLDER = "folder"


def parse_spec(spec: str | os.PathLike, forms: Mapping[str, str], *, what: str) -> tuple[str, str]:
    """Returns kind and value of KIND:VALUE; what has no kind is the path of a folder.

    Args:
        spec: the text, such as "tar:data/*.tar" or "data/photos".
        forms: what the value of each kind looks like, by kind.
        what: what is named, for messages, such as "source of images".

    Raises:
        ValueError: for an unknown kind or an empty value, with the known ones, or a URL.
    """
    spec = os.fspath(spec)
    parts = re.fullmatch(r"([\w+-]+):(.*)", spec, re.DOTALL)
    kind, value = (parts[1], parts[2]) if parts else (FOLDER, spec)
    if kind not in forms:
        if is_remote(spec):
            local_path(spec, name=what)
        known = ", ".join(f"{name}:{form}" for name, form in forms.items())
        hint = f"; write {FOLDER}:{spec} for a folder of this name" if os.path.isdir(spec) else ""
        raise ValueError(f"unknown {what} {kind!r} in {spec}: choose one of {known}, or a folder{hint}")
    if not value:
        raise ValueError(f"the {what} {spec!r} has no value: write {kind}:{forms[kind]}")
    # Only to refuse URLs: names of images in messages begin as a person wrote them.
    local_path(value, name=kind)
    return kind, os.path.expanduser(value)
