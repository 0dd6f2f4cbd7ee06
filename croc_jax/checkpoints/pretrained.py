"""Backbones of other programs: CrOC, DINO, DINOv2, DINOv3, ResNet, ConvNeXt, from their owners, timm, Hugging Face."""

from pathlib import Path
from typing import Any, NamedTuple

from croc_jax.checkpoints.infer_architecture import read_backbone
from croc_jax.checkpoints.vit_mapping import Params
from croc_jax.checkpoints.weight_files import (
    ForeignWeightsError,
    choose_weights,
    read_contents,
    read_description,
    read_epoch,
)
from croc_jax.models import BackboneConfig


class ForeignBackbone(NamedTuple):
    """Weights and what they are for.

    Attributes:
        config: of the backbone.
        image_size: side of the square images that the position embedding was learned for.
        params: under our names.
        epoch: that the file states, or 0.
        guessed: see `croc_jax.checkpoints.infer_architecture.ReadBackbone`.
    """

    config: BackboneConfig
    image_size: int
    params: Params
    epoch: int
    guessed: dict[str, Any]


def load_foreign_backbone(
    file: Path, *, which: str = "teacher", num_heads: int | None = None, default_heads: int | None = None
) -> ForeignBackbone:
    """Reads a backbone in float32.

    Args:
        file: a .pth, .bin or .safetensors file, a whole checkpoint of CrOC or DINO or a backbone
            alone, also inside "model", "state_dict" and the like; with the names of any of these
            libraries. Or a folder of Hugging Face, in one file or several, with config.json. A
            convolutional network gets one token for 32 x 32 pixels.
        which: of a whole checkpoint, "teacher" or "student"; where weights lie beside their moving
            average, "teacher" is the average. A backbone alone is what it is.
        num_heads: of a transformer whose file does not tell; by default heads of 64 features, or
            what is known of the size.
        default_heads: in place of heads of 64 features, if they divide the width.

    Raises:
        FileNotFoundError: if there is no such file.
        ForeignWeightsError: for another architecture, with all names that have no place or are
            missing, and all arrays of another shape.
        TorchFileError: see `croc_jax.checkpoints.torch_file.read_torch_file`.
    """
    contents = read_contents(file)
    weights = choose_weights(contents, file, which=which)
    found = read_backbone(weights, description=read_description(file), num_heads=num_heads, default_heads=default_heads)
    if found.wrong:
        raise ForeignWeightsError(f"{file} is no {found.kind} that we know: {'; '.join(found.wrong)}")
    return ForeignBackbone(*found.architecture, found.params, read_epoch(contents), found.guessed)
