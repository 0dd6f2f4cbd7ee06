r"""Writes the backbone of any checkpoint for another library, reads it back, and compares the features.

    python launch/convert.py --checkpoint=WORKDIR --output=croc.pth
    python launch/convert.py --checkpoint=dinov2_vits14_pretrain.pth --output=FOLDER --format=hf
    python launch/convert.py --checkpoint=WORKDIR --output=croc.stablehlo --format=stablehlo

A checkpoint is all that evaluate.py takes. The formats are "official" (CrOC, DINO, DINOv2, DINOv3), "timm", and "hf",
a folder that Hugging Face's AutoModel.from_pretrained loads; "orbax", a folder as runs of ours have it; and
"stablehlo", a program with the weights inside, for images of any size, that jax.export.deserialize reads (needs
flatbuffers). With --run, a workdir gets back into the official code as a whole: student and teacher, both heads, and
centers; as .safetensors, which the official code does not read, this package continues from it without PyTorch.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from cli import UserError, run
from rich.console import Console

from croc_jax.checkpoints.differences import largest_difference
from croc_jax.checkpoints.export import FORMATS, export_backbone
from croc_jax.checkpoints.manager import save_backbone
from croc_jax.checkpoints.official import NetworksOfRun, export_run, load_networks, load_official_run
from croc_jax.checkpoints.pretrained import load_foreign_backbone
from croc_jax.checkpoints.stablehlo import export_program, program_difference
from croc_jax.checkpoints.weight_files import is_foreign
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.evaluation.backbones import FrozenBackbone, load_backbone
from croc_jax.models import make_backbone
from croc_jax.training.config import Recipe

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A workdir, a checkpoint, a file or a folder.", required=True)
OUTPUT = flags.DEFINE_string(
    "output", None, "A .pth, .safetensors or .stablehlo file; a folder for hf and orbax.", required=True
)
FORMAT = flags.DEFINE_enum("format", "official", (*FORMATS, "orbax", "stablehlo"), "Whose names the weights get.")
WHICH = flags.DEFINE_enum("which", "teacher", ("teacher", "student"), "Of a run.")
RUN = flags.DEFINE_bool("run", False, "Write both networks of a run, with heads and centers.")


def main() -> None:
    """Converts and compares."""
    checkpoint, output = Path(CHECKPOINT.value), Path(OUTPUT.value)
    if RUN.value:
        convert_run(checkpoint, output)
        return
    backbone = load(checkpoint, WHICH.value)
    config, size = backbone.recipe.backbone, backbone.recipe.data.views.crop_size
    if FORMAT.value == "stablehlo":
        written = export_program(backbone.params, config, image_size=size, output=output)
        say(f"{written}: {differ(program_difference(backbone.params, config, image_size=size, file=written))}")
        return
    if FORMAT.value == "orbax":
        written = save_backbone(backbone.params, backbone.recipe, step=backbone.step, workdir=output)
    else:
        written = export_backbone(backbone.params, config, image_size=size, output=output, form=FORMAT.value)
    found, lost = read_back(output if output.is_dir() else written, backbone)
    say(f"{written}: {differ(compare(backbone, found))}")
    say_lost(written, lost)


def convert_run(checkpoint: Path, output: Path) -> None:
    """Writes a whole run, and compares all arrays of what is read back."""
    if FORMAT.value != "official":
        raise UserError(f"--format={FORMAT.value}: only the official code has a place for a whole run")
    written, lost = export_run(checkpoint, output), {}
    student, teacher = (load(checkpoint, which) for which in ("student", "teacher"))
    again = load_official_run(written, num_heads=getattr(teacher.module, "num_heads", None))
    count, difference = largest_difference(arrays_of(load_networks(checkpoint)), arrays_of(again))
    say(f"{written}: read back, its {count} arrays differ by {difference:.1e} at most")
    for backbone in (student, teacher):
        found, lost = read_back(written, backbone)
        say(f"{backbone.which}: {differ(compare(backbone, found))}")
    say_lost(written, lost)


def read_back(written: Path, ours: FrozenBackbone) -> tuple[FrozenBackbone, dict[str, Any]]:
    """Reads what was written, with the settings that it does not tell; returns those that a reader would guess wrong.

    Args:
        written: file or folder.
        ours: that was written.
    """
    if not is_foreign(written):
        return load(written, ours.which), {}
    known = ours.module
    read = load_foreign_backbone(written, which=ours.which, default_heads=getattr(known, "num_heads", None))
    settings = {name: getattr(known, name) for name in read.guessed if hasattr(known, name)}
    lost = {name: value for name, value in settings.items() if value != read.guessed[name]}
    config, size = dataclasses.replace(read.config, **lost), read.image_size
    recipe = Recipe(backbone=config, data=DataConfig(views=ViewsConfig(crop_size=size)))
    return FrozenBackbone(make_backbone(config, image_size=size), read.params, recipe, read.epoch, ours.which), lost


def say_lost(written: Path, lost: dict[str, Any]) -> None:
    """Says what must be set where a file is loaded."""
    for name, value in lost.items():
        say(f"{written} has no place for {name}={value:g}: set it where you load the file")


def arrays_of(networks: NetworksOfRun) -> dict[str, Any]:
    """Returns both networks and the centers."""
    cls, dense = networks.centers
    return {"student": networks.student, "teacher": networks.teacher, "center": cls, "center_dense": dense}


def load(checkpoint: Path, which: str) -> FrozenBackbone:
    """Returns the weights of one of the networks."""
    return load_backbone(checkpoint, which=which)


def say(text: str) -> None:
    """Prints a line, however long."""
    Console().print(text, soft_wrap=True, markup=False)


def differ(difference: float) -> str:
    """Says how well something was written."""
    return f"read back, its features differ by {difference:.1e} at most"


def compare(one: FrozenBackbone, other: FrozenBackbone) -> float:
    """Returns the largest difference of any feature, in float32, on noise."""
    size = one.recipe.data.views.crop_size
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    features = []
    for backbone in (one, other):
        config = dataclasses.replace(backbone.recipe.backbone, dtype="float32")
        module = make_backbone(config, image_size=backbone.recipe.data.views.crop_size)
        found = jax.jit(module.apply)({"params": backbone.params}, images)
        features.append((found.cls, found.patches))  # pyright: ignore[reportAttributeAccessIssue]
    return float(np.max([np.max(np.abs(a - b)) for a, b in zip(*features, strict=True)]))


if __name__ == "__main__":
    run(main)
