"""The steps that are compiled for accelerators, and the figures of each, which are kept in a folder."""

import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from croc_jax.training.config import recipe_to_dict
from programs.compiling import ROOT, TOO_LARGE, Figures, read_recipe
from programs.targets import missing_library

_LIBRARIES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt")
# What decides figures, beside the recipe and the compilers.
_SOURCES = (
    *("croc_jax/clustering/*.py", "croc_jax/data/*.py", "croc_jax/models/*.py", "croc_jax/losses.py"),
    *("croc_jax/training/*.py", "benchmarks/flops.py", "benchmarks/programs/*"),
)
_PAGES = ("rows.py", "scaling_page.py")
# Names of the variants of configs/croc_vit.py.
_NAMES = {"vit_small": "ViT-S/16", "vit_large": "ViT-L/16", "vit_giant": "ViT-g/14"}


class Row(NamedTuple):
    """A step and the devices that it is compiled for.

    Attributes:
        name: name for --only.
        title: name for readers.
        config: file of the recipe in configs, and perhaps its variant.
        topology: devices.
        fields: fields of the recipe that differ from the file.
    """

    name: str
    title: str
    config: str
    topology: str
    fields: Mapping[str, Any]


def make_row(variant: str, topology: str, batch: int, fsdp: int = 1) -> Row:
    """Returns the row of a ViT of configs/croc_vit.py; its name has the chip and the number of devices."""
    chip, _, sides = topology.partition(":")
    devices = math.prod(map(int, sides.split("x")))
    title = f"{_NAMES[variant]}, batch {batch}, {devices} x {chip}"
    fields = {"schedule.batch_size": batch, "runtime.mesh.fsdp": fsdp}
    return Row(f"{variant}-{chip}-{devices}", title, f"croc_vit:{variant}", topology, fields)


ROWS = (
    make_row("vit_small", "v5e:2x2", 256),
    make_row("vit_small", "v5e:4x4", 1024),
    make_row("vit_large", "v5e:4x4", 256, fsdp=8),
    make_row("vit_small", "v6e:2x2", 256),
    make_row("vit_small", "v5p:2x2x1", 256),
    make_row("vit_small", "h100:1x1x1", 256),
    make_row("vit_small", "h100:1x1x8", 1024),
    make_row("vit_giant", "h100:1x1x8", 256, fsdp=8),
)


def find_figures(rows: Sequence[Row], *, folder: Path, dump: Path | None) -> list[Figures | str]:
    """Returns the figures of each row, or why there are none; compiles those that the folder does not have.

    Args:
        rows: steps, in the order of the result.
        folder: where figures are kept; created if missing.
        dump: folder for the text of each program that is compiled; none if not given.
    """
    for place in (folder, dump):
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    found: list[Figures | str] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for number, row in enumerate(rows, start=1):
            task = progress.add_task(f"row {number} of {len(rows)}: {row.title}")
            result = find_row(row, folder=folder, dump=dump)
            progress.remove_task(task)
            outcome = result if isinstance(result, str) else f"compiled in {result.compile_seconds:.0f} s"
            progress.console.print(f"{row.title}: {outcome}", markup=False, highlight=False, soft_wrap=True)
            found.append(result)
    return found


def find_row(row: Row, *, folder: Path, dump: Path | None) -> Figures | str:
    """Returns a row's figures from an existing folder, or compiles and keeps them; a text says why there are none."""
    if library := missing_library(row.topology):
        target = "tpu" if library == "libtpu" else "cuda"
        return f"not compiled: {library} is not installed (make chips TARGET={target})"
    file = folder / f"{row.name}-{fingerprint(row)}.json"
    if file.exists():
        answer = json.loads(file.read_text(encoding="utf-8"))
    else:
        answer = compile_row(row, dump=dump)
        # Another try may end otherwise, except for lack of memory.
        if answer.get("failure", TOO_LARGE).startswith(TOO_LARGE):
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
            partial.replace(file)
    return answer["failure"] if "failure" in answer else Figures(**answer)


def fingerprint(row: Row) -> str:
    """Returns a short text that changes with everything that decides a row's figures."""
    recipe = recipe_to_dict(read_recipe(row.config, row.fields))
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    hashed = hashlib.sha256(json.dumps([recipe, row.topology, versions], sort_keys=True).encode())
    for file in sorted(file for pattern in _SOURCES for file in ROOT.glob(pattern)):
        if file.is_file() and file.name not in _PAGES:
            hashed.update(file.read_bytes())
    return hashed.hexdigest()[:12]


def compile_row(row: Row, *, dump: Path | None) -> dict[str, Any]:
    """Compiles a row in a process of its own, and returns its figures, or {"failure": reason}."""
    target = str((dump / f"{row.name}.txt").resolve()) if dump is not None else ""
    job = {"config": row.config, "topology": row.topology, "fields": dict(row.fields), "dump": target}
    # A cache would hide how long it takes. The last line of an error is to be its message.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_TRACEBACK_FILTERING": "off", "PYTHONPATH": paths}
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-m", "programs.compiling"], env=environment, text=True, **pipes) as process:
        try:
            answer, errors = process.communicate(json.dumps(job))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        reason = f"the compiler's process ended with status {process.returncode}: {last[:300]}"
        return {"failure": f"not compiled: {reason}"}
    return json.loads(answer.splitlines()[-1])
