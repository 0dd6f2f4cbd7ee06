r"""Writes the backbone of any checkpoint for another library, reads it back, and compares the features.

    python launch/convert.py --checkpoint=WORKDIR --output=croc.pth
    python launch/convert.py --checkpoint=dinov2_vits14_pretrain.pth --output=FOLDER --format=hf
    python launch/convert.py --checkpoint=WORKDIR --output=croc.stablehlo --format=stablehlo

A checkpoint is all that evaluate.py takes. The formats are "official" (CrOC, DINO, DINOv2), "timm", and "hf", a folder
that Hugging Face's AutoModel.from_pretrained loads; "orbax", a folder as runs of ours have it; and "stablehlo", a
program with the weights inside, for images of any size, that jax.export.deserialize reads (needs flatbuffers). With
--run, a workdir gets back into the official code as a whole: student and teacher, both heads, and centers.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from absl import flags
from command_line import UserError, run
from rich.console import Console

from croc_jax.checkpoints.export import FORMATS, export_backbone
from croc_jax.checkpoints.official_run import export_run
from croc_jax.checkpoints.orbax import save_backbone
from croc_jax.checkpoints.stablehlo import export_program, program_difference
from croc_jax.evaluation.backbones import FrozenBackbone, trained_backbone
from croc_jax.models import make_backbone

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
        if FORMAT.value != "official":
            raise UserError(f"--format={FORMAT.value}: only the official code has a place for a whole run")
        written = export_run(checkpoint, output)
        report(written, compare(load(checkpoint), load(written)))
        return
    backbone = load(checkpoint)
    config, size = backbone.recipe.backbone, backbone.recipe.data.views.crop_size
    if FORMAT.value == "stablehlo":
        written = export_program(backbone.params, config, image_size=size, output=output)
        report(written, program_difference(backbone.params, config, image_size=size, file=written))
        return
    if FORMAT.value == "orbax":
        written = save_backbone(backbone.params, backbone.recipe, step=backbone.step, workdir=output)
    else:
        written = export_backbone(backbone.params, config, image_size=size, output=output, form=FORMAT.value)
    report(written, compare(backbone, load(output if output.is_dir() else written)))


def load(checkpoint: Path) -> FrozenBackbone:
    """Returns the weights of one of the networks."""
    return trained_backbone(checkpoint, which=WHICH.value)


def report(written: Path, difference: float) -> None:
    """Says what was written, and how well."""
    Console().print(f"{written}: read back, its features differ by {difference:.1e} at most", soft_wrap=True)


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
    return max(float(np.max(np.abs(a - b))) for a, b in zip(*features, strict=True))


if __name__ == "__main__":
    run(main)
