r"""Writes the backbone of any checkpoint for another library, reads it back, and compares the features.

    python launch/convert.py --checkpoint=WORKDIR --output=croc.pth
    python launch/convert.py --checkpoint=dinov2_vits14_pretrain.pth --output=FOLDER --format=hf
    python launch/convert.py --checkpoint=WORKDIR --output=croc.stablehlo --format=stablehlo

A checkpoint is all that evaluate.py takes. The formats are "official" (CrOC, DINO, DINOv2, DINOv3), "timm", and "hf",
a folder that Hugging Face's AutoModel.from_pretrained loads; "orbax", a workdir as a run of this package has it; and
"stablehlo", a program with the weights inside, for images of any size, that jax.export.deserialize reads (needs
flatbuffers). With --run, a workdir becomes a whole checkpoint of the official code: student and teacher, both heads,
and centers; as .safetensors, which the official code does not read, this package reads it without PyTorch.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli
import jax
import numpy as np
from absl import flags
from cli import UserError, define_colors, define_path, writable
from rich.console import Console

from croc_jax.checkpoints.description import format_setting
from croc_jax.checkpoints.export import FORMATS, export_backbone
from croc_jax.checkpoints.manager import save_backbone
from croc_jax.checkpoints.official import export_run, load_networks
from croc_jax.checkpoints.pretrained import load_pretrained
from croc_jax.checkpoints.stablehlo import export_program, program_difference
from croc_jax.evaluation.backbones import FrozenBackbone, load_backbone, recipe_of
from croc_jax.models import Backbone, make_backbone

CHECKPOINT = define_path(
    "checkpoint", None, "A workdir, a checkpoint, a file or a folder.", required=True, must_exist=True
)
OUTPUT = define_path(
    "output", None, "A .pth, .safetensors or .stablehlo file; a folder for hf and orbax.", required=True
)
FORMAT = flags.DEFINE_enum("format", "official", (*FORMATS, "orbax", "stablehlo"), "Whose names the weights get.")
WHICH = flags.DEFINE_enum("which", "teacher", ("teacher", "student"), "Which network of a run.")
read_colors = define_colors()
RUN = flags.DEFINE_bool("run", False, "Write both networks of a run, with heads and centers.")


def main() -> None:
    """Converts and compares."""
    checkpoint, output = CHECKPOINT.value, OUTPUT.value
    with writable(output, name="--output", is_file=FORMAT.value not in ("hf", "orbax")):
        if RUN.value:
            convert_run(checkpoint, output)
        else:
            colors: Any = read_colors()
            backbone = load_backbone(checkpoint, which=WHICH.value, **colors)
            if backbone.note:
                say(f"{checkpoint}: {backbone.note}")
            convert_backbone(backbone, output)


def convert_backbone(backbone: FrozenBackbone, output: Path) -> None:
    """Writes a backbone, and compares the features of what is read back."""
    params, config = backbone.params, backbone.recipe.backbone
    size = config.embedded_size(backbone.recipe.data.views.crop_size)
    pixels = backbone.module.pixels
    if FORMAT.value == "stablehlo":
        written = export_program(params, config, image_size=size, output=output, pixels=pixels)
        report(written, program_difference(params, config, image_size=size, file=written, pixels=pixels))
    elif FORMAT.value == "orbax":
        written = save_backbone(params, backbone.recipe, step=backbone.step, workdir=output)
        report(written, largest_difference(backbone, load_backbone(output, which=backbone.which)))
    else:
        written = export_backbone(params, config, image_size=size, output=output, form=FORMAT.value, pixels=pixels)
        compare_with_file(written, output if output.is_dir() else written, backbone)


def convert_run(checkpoint: Path, output: Path) -> None:
    """Writes a whole run, and compares all arrays of what is read back."""
    if FORMAT.value != "official":
        raise UserError(f"--format={FORMAT.value}: only the official code has a place for a whole run")
    written, before = export_run(checkpoint, output), load_networks(checkpoint)
    backbones = [load_backbone(checkpoint, which=which) for which in ("student", "teacher")]
    arrays = before.arrays()
    after = load_networks(written, num_heads=getattr(backbones[0].module, "num_heads", None)).arrays()
    if arrays.keys() != after.keys():
        raise ValueError(f"{written} lacks or adds {', '.join(sorted(arrays.keys() ^ after.keys()))}")
    difference = np.max([np.max(np.abs(array - after[name]), initial=0.0) for name, array in arrays.items()])
    say(f"{written}: read back, its {len(arrays)} arrays differ by {difference:.1e} at most")
    for backbone in backbones:
        compare_with_file(written, written, backbone, label=backbone.which)


def compare_with_file(written: Path, source: Path, backbone: FrozenBackbone, *, label: str | None = None) -> None:
    """Compares a backbone with a file of it, read with the settings that the file has no place for, and names these.

    Args:
        written: file to name.
        source: file or folder to read.
        backbone: the backbone that was written.
        label: name of what is compared, by default that of the file.
    """
    ours = backbone.module
    read = load_pretrained(source, which=backbone.which, default_heads=getattr(ours, "num_heads", None))
    lost: dict[str, Any] = {
        name: getattr(ours, name)
        for name, guess in read.guessed.items()
        if hasattr(ours, name) and getattr(ours, name) != guess
    }
    read = read._replace(config=dataclasses.replace(read.config, **lost))
    module = make_backbone(read.config, image_size=read.image_size)
    found = FrozenBackbone(module, read.params, recipe_of(read), read.epoch, backbone.which)
    report(label or written, largest_difference(backbone, found))
    lost |= {
        f"image_{name}": getattr(ours.pixels, name)
        for name in ("dtype", "range")
        if getattr(ours.pixels, name) != getattr(read.pixels, name)
    }
    for name, value in lost.items() if label != "student" else ():
        say(f"{written} has no place for {name}={format_setting(value)}: set it where you load the file")


def largest_difference(one: FrozenBackbone, other: FrozenBackbone) -> float:
    """Returns the largest difference of any feature, in float32, on noise."""
    # At this size no position is interpolated, which other libraries do in their own ways.
    size = one.recipe.backbone.embedded_size(one.recipe.data.views.crop_size)
    images = np.random.default_rng(0).standard_normal((2, size, size, one.module.pixels.channels)).astype(np.float32)
    features = []
    for backbone in (one, other):
        config = dataclasses.replace(backbone.recipe.backbone, dtype="float32")
        module = make_backbone(config, image_size=backbone.recipe.data.views.crop_size)
        found: Any = _apply_fn(module)({"params": backbone.params}, images)
        features.append((found.cls, found.patches))
    return float(np.max([np.max(np.abs(a - b)) for a, b in zip(*features, strict=True)]))


@functools.cache
def _apply_fn(module: Backbone) -> Callable[..., Any]:
    """Compiles equal modules once."""
    return jax.jit(module.apply)


def report(name: Path | str, difference: float) -> None:
    """Prints how well something was written."""
    say(f"{name}: read back, its features differ by {difference:.1e} at most")


def say(text: str) -> None:
    """Prints a line, however long."""
    Console().print(text, soft_wrap=True, markup=False)


if __name__ == "__main__":
    cli.run(main)
