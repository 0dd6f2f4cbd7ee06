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

from compiling import TOO_LARGE, Figures, read_recipe
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from targets import missing_library

from croc_jax.training.config import recipe_to_dict

_HERE = Path(__file__).resolve().parent
_LIBRARIES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt")
# What decides figures, beside the recipe and the compilers.
_SOURCES = (
    *("croc_jax/clustering/*.py", "croc_jax/data/*.py", "croc_jax/models/*.py", "croc_jax/losses.py"),
    *("croc_jax/training/*.py", "benchmarks/compiling.py", "benchmarks/flops.py", "benchmarks/instructions.py"),
    *("benchmarks/products.py", "benchmarks/program.py", "benchmarks/targets.py", "benchmarks/*.txtpb"),
)
# How readers know the variants of configs/croc_vit.py.
_NAMES = {"vit_small": "ViT-S/16", "vit_large": "ViT-L/16", "vit_giant": "ViT-g/14"}


class Row(NamedTuple):
    """A step and the devices that it is compiled for.

    Attributes:
        name: of the row, for --only.
        title: for readers.
        config: file of the recipe in configs, and perhaps its variant.
        topology: of the devices.
        fields: of the recipe that are others than in the file.
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


class RowError(RuntimeError):
    """A row could not be compiled for a reason that has nothing to do with it; the message tells."""


def find_figures(rows: Sequence[Row], *, folder: Path, dump: Path | None) -> list[Figures | str]:
    """Returns the figures of each row, or why there are none; compiles those that the folder does not have.

    Args:
        rows: in the order of the result.
        folder: made if it is not there.
        dump: folder for the text of each program that is compiled; none if not given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if dump is not None:
        dump.mkdir(parents=True, exist_ok=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    found: list[Figures | str] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for number, row in enumerate(rows, start=1):
            task = progress.add_task(f"row {number} of {len(rows)}: {row.title}")
            found.append(find_row(row, folder=folder, dump=dump))
            progress.remove_task(task)
            progress.console.print(f"{row.title}: {_outcome(found[-1])}", markup=False, highlight=False, soft_wrap=True)
    return found


def _outcome(told: Figures | str) -> str:
    return told if isinstance(told, str) else f"compiled in {told.compile_seconds:.0f} s"


def find_row(row: Row, *, folder: Path, dump: Path | None) -> Figures | str:
    """Returns a row's figures from the folder, or compiles it and keeps them there; a text says why there are none.

    Args:
        row: of the table.
        folder: which is there.
        dump: folder for the program's text, alike; none if not given.
    """
    if library := missing_library(row.topology):
        target = "tpu" if library == "libtpu" else "cuda"
        return f"not compiled: {library} is not installed (make chips TARGET={target})"
    file = folder / f"{row.name}-{fingerprint(row)}.json"
    if not file.exists():
        try:
            told = compile_row(row, dump=dump)
        except RowError as error:
            return f"not compiled: {error}"
        # Another try may end otherwise, but for lack of memory.
        if "failure" in told and not told["failure"].startswith(TOO_LARGE):
            return told["failure"]
        # A file that is there is whole.
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
    told = json.loads(file.read_text(encoding="utf-8"))
    return told["failure"] if "failure" in told else Figures(**told)


def fingerprint(row: Row) -> str:
    """Returns a short text that changes with all that decides a row's figures."""
    recipe = recipe_to_dict(read_recipe(row.config, row.fields))
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    text = json.dumps([recipe, row.topology, versions], sort_keys=True)
    hashed = hashlib.sha256(text.encode())
    for file in sorted(file for pattern in _SOURCES for file in _HERE.parent.glob(pattern)):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()[:12]


def compile_row(row: Row, *, dump: Path | None) -> dict[str, Any]:
    """Compiles a row in a process of its own, which has the compiler's settings and memory for itself.

    Raises:
        RowError: if that process ends without an answer.
    """
    target = str((dump / f"{row.name}.txt").resolve()) if dump is not None else ""
    job = {"config": row.config, "topology": row.topology, "fields": dict(row.fields), "dump": target}
    # A cache from outside would hide how long it takes. An error's last line is to be its message.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_TRACEBACK_FILTERING": "off"}
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, str(_HERE / "compiling.py")]
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            told, errors = process.communicate(json.dumps(job))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise RowError(f"the compiler's process ended with status {process.returncode}: {last[:300]}")
    return json.loads(told.splitlines()[-1])
