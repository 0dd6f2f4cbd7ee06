r"""Writes the backbone of any checkpoint for another library, reads it back, and compares the features.

    python launch/convert.py --checkpoint=WORKDIR --output=croc.pth
    python launch/convert.py --checkpoint=dinov2_vits14_pretrain.pth --output=FOLDER --format=hf

A checkpoint is all that evaluate.py takes. The formats are "official" (CrOC, DINO, DINOv2), "timm", and "hf", a folder
that Hugging Face's AutoModel.from_pretrained loads. With --run, a workdir gets back into the official code as a
whole: student and teacher, both heads, and centers.
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
from croc_jax.evaluation.backbones import FrozenBackbone, trained_backbone
from croc_jax.models import make_backbone

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A workdir, a checkpoint, a file or a folder.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "A .pth or .safetensors file, or a folder for hf.", required=True)
FORMAT = flags.DEFINE_enum("format", "official", FORMATS, "Whose names the weights get.")
WHICH = flags.DEFINE_enum("which", "teacher", ("teacher", "student"), "Of a run.")
RUN = flags.DEFINE_bool("run", False, "Write both networks of a run, with heads and centers.")


def main() -> None:
    """Converts and compares."""
    checkpoint, output, console = Path(CHECKPOINT.value), Path(OUTPUT.value), Console()
    if RUN.value:
        if FORMAT.value != "official":
            raise UserError(f"--format={FORMAT.value}: only the official code has a place for a whole run")
        written = export_run(checkpoint, output)
    else:
        backbone = trained_backbone(checkpoint, which=WHICH.value)
        size = backbone.recipe.data.views.crop_size
        written = export_backbone(
            backbone.params, backbone.recipe.backbone, image_size=size, output=output, form=FORMAT.value
        )
    again = trained_backbone(output if output.is_dir() else written, which=WHICH.value)
    difference = compare(trained_backbone(checkpoint, which=WHICH.value), again)
    console.print(f"{written}: read back, its features differ by {difference:.1e} at most", soft_wrap=True)


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
