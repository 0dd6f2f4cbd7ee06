"""Settings by the number of images, each with the reason for its value; the one place where both stand.

Numbers of steps and half-lives are those at the nominal number of images. A name in brackets is one of `SOURCES`.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

AUTO = "auto"
_HALF_DECADE = math.sqrt(10)


class Choice(NamedTuple):
    """The value of a setting, and a sentence on why."""

    value: Any
    reason: str


class Preset(NamedTuple):
    """The settings for about so many images.

    Attributes:
        images: their number, in the middle of the range on a logarithmic scale.
        choices: by field, such as "optimizer.base_lr".
    """

    images: int
    choices: Mapping[str, Choice]

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest number of images that are nearest to it, on a logarithmic scale."""
        return math.floor(self.images / _HALF_DECADE) + 1, math.floor(self.images * _HALF_DECADE)

    @property
    def values(self) -> dict[str, Any]:
        """The settings alone."""
        return {field: choice.value for field, choice in self.choices.items()}


SOURCES = {
    "measured": "learning.md",
    "CrOC": "https://arxiv.org/abs/2303.13245",
    "CrOC's options": "https://github.com/stegmuel/CrOC/blob/master/croc_utils/parser.py",
    "DINO's options": "https://github.com/facebookresearch/dino/blob/main/main_dino.py",
    "DINO's README": "https://github.com/facebookresearch/dino/blob/main/README.md",
    "DINO, issue 43": "https://github.com/facebookresearch/dino/issues/43",
    "Cao et al.": "https://github.com/CupidJay/Training-Vision-Transformers-with-only-2040-images",
    "lightly": "https://github.com/lightly-ai/lightly/blob/master/docs/source/getting_started/benchmarks/"
    "imagenette_benchmark.py",
    "solo-learn": "https://github.com/vturrisi/solo-learn/blob/main/scripts/pretrain/imagenet-100/dino_vit.yaml",
}

# A network for few images and one CPU core.
_SMALL = {
    "backbone.variant": Choice("vit_tiny", "the base of a network of 0.9 million parameters; ViT-S has 22 million"),
    "backbone.width": Choice(128, "a third of ViT-S's, for CPUs; on a GPU take 384, 6 heads and a depth of 12"),
    "backbone.depth": Choice(4, "a third of ViT-S's, for the same reason"),
    "backbone.num_heads": Choice(4, "each head is clustered by itself, on 32 features"),
    "backbone.patch_size": Choice(16, "those of 8 start higher, but training adds less to them [measured]"),
    "backbone.drop_path_rate": Choice(0.0, "stochastic depth is for deep networks, and four blocks are few"),
    "head.hidden_dim": Choice(256, "twice the width; with 2,048 the head would be six times as large as the network"),
    "head.num_prototypes": Choice(
        512, "65,536 are for large, complex sets [DINO's options]; Imagenette gets 2,048 [lightly]"
    ),
    "head.num_prototypes_dense": Choice(256, "few images show few kinds of things; COCO has 8,192 [CrOC's options]"),
    "data.views.crop_size": Choice(128, "8 x 8 tokens, for up to 12 clusters"),
    "data.views.scale": Choice((0.2, 0.9), "two crops of a fifth or more share objects"),
    "objective.warmup_teacher_temp": Choice(
        0.025, "lower where training collapses [DINO, issue 43], as it does early with few images"
    ),
    "objective.teacher_temp": Choice(
        0.025,
        "with few images the 0.07 of 118,000 images [CrOC] may collapse early; 0.04 scored two points less on CamVid "
        "[measured]",
    ),
    "objective.warmup_teacher_temp_epochs": Choice(0, "the temperature is as low from the start"),
    "optimizer.freeze_last_layer_epochs": Choice(
        0, "few updates leave none to spare; more where the loss does not fall"
    ),
    "optimizer.weight_decay_end": Choice(0.1, "0.4 is for ViT-S and larger [DINO's options]"),
}

# What the paper takes from DINO for any set.
_PAPER = {
    "backbone.variant": Choice("vit_small", "the network of all published results of CrOC [CrOC]"),
    "backbone.patch_size": Choice(16, "as published [CrOC]"),
    "backbone.drop_path_rate": Choice(0.1, "DINO's for ViT-S [DINO's options]"),
    "data.views.crop_size": Choice(224, "14 x 14 tokens, for up to 12 clusters"),
    "data.views.scale": Choice((0.25, 1.0), "two crops of a quarter or more share objects [CrOC's options]"),
    "optimizer.base_lr": Choice(5e-4, "for a batch of 256, and in proportion for others [DINO's options]"),
    "optimizer.warmup_epochs": Choice(10, "3% of the run [DINO's options]"),
    "optimizer.freeze_last_layer_epochs": Choice(1, "more where the loss does not fall [DINO's options]"),
    "optimizer.weight_decay_end": Choice(0.4, "a large decay at the end helps ViTs [DINO's options]"),
    "objective.warmup_teacher_temp": Choice(
        0.04, "works in most cases; lower where the loss does not fall [DINO's options]"
    ),
    "objective.teacher_temp": Choice(0.07, "for both losses [CrOC]; higher is unstable [DINO's options]"),
    "objective.warmup_teacher_temp_epochs": Choice(30, "a tenth of the run [DINO's README]"),
    "head.num_prototypes": Choice(65_536, "for large, complex sets [DINO's options]; so on ImageNet-100 [solo-learn]"),
    "head.num_prototypes_dense": Choice(8_192, "fewer for clusters than for images [CrOC's options]"),
}

PRESETS = {
    "1k": Preset(
        1_000,
        {
            "schedule.epochs": Choice(
                160, "9,920 updates, an hour of one core; others take 800 epochs of 2,040 images [Cao et al.]"
            ),
            "schedule.batch_size": Choice(16, "62 updates an epoch; a batch of 256 would leave 3"),
            "optimizer.base_lr": Choice(
                8e-3, "5e-4 at a batch of 16; at twice that, two seeds on 367 images ended six points apart [measured]"
            ),
            "optimizer.warmup_epochs": Choice(16, "992 updates, a tenth of the run"),
            "optimizer.teacher_momentum": Choice(
                0.99, "a half-life of 69 updates, 0.7% of the run; so on Imagenette, throughout [lightly]"
            ),
        }
        | _SMALL,
    ),
    "10k": Preset(
        10_000,
        {
            "schedule.epochs": Choice(
                8,
                "5,000 updates, half an hour of one core; 3 on smaller crops gain nearly as much by linear evaluation "
                "[measured]. On a GPU take more: DINO's k-NN accuracy on Imagenette goes from 73.6% after 200 epochs "
                "to 88.1% after 800 [lightly]",
            ),
            "schedule.batch_size": Choice(16, "625 updates an epoch; a batch of 256 would leave 39"),
            "optimizer.base_lr": Choice(1.6e-2, "1e-3 at a batch of 16: few updates must go far"),
            "optimizer.warmup_epochs": Choice(1, "625 updates, an eighth of the run"),
            "optimizer.teacher_momentum": Choice(
                0.99, "a half-life of 69 updates, 1.4% of the run; so on Imagenette, throughout [lightly]"
            ),
        }
        | _SMALL,
    ),
    "100k": Preset(
        100_000,
        {
            "schedule.epochs": Choice(300, "as for the 118,000 images of COCO, 139,000 updates [CrOC]"),
            "schedule.batch_size": Choice(256, "as on COCO [CrOC]"),
            "optimizer.teacher_momentum": Choice(
                0.996, "a half-life of 173 updates, 0.1% of the run [CrOC's options]; at 1 in the end"
            ),
            "clustering.lambda_pos": Choice(4.0, "as on COCO, whose images show scenes [CrOC]"),
            "objective.tokens": Choice("values", "as on COCO [CrOC]"),
        }
        | _PAPER,
    ),
    "1m": Preset(
        1_000_000,
        {
            "schedule.epochs": Choice(300, "as for the 1.28 million images of ImageNet, 375,000 updates [CrOC]"),
            "schedule.batch_size": Choice(1024, "as on ImageNet [CrOC]"),
            "optimizer.teacher_momentum": Choice(
                0.996, "a half-life of 173 updates, 0.05% of the run [CrOC's options]; at 1 in the end"
            ),
            "clustering.lambda_pos": Choice(3.0, "as on ImageNet, whose images show single objects [CrOC]"),
            "objective.tokens": Choice("keys", "as on ImageNet [CrOC]"),
        }
        | _PAPER,
    ),
}


def nearest_preset(num_images: int) -> str:
    """Returns the name of the preset whose number of images is nearest on a logarithmic scale.

    Examples:
        >>> [nearest_preset(count) for count in (367, 9_462, 118_287, 1_281_167, 142_000_000)]
        ['1k', '10k', '100k', '1m', '1m']

    Raises:
        ValueError: for fewer images than any preset is for.
    """
    smallest, *_, largest = PRESETS
    least, _ = PRESETS[smallest].bounds
    if num_images < least:
        raise ValueError(
            f"preset={AUTO}: {num_images:,} images, and presets are for {least} or more: name more in data.folders or "
            "data.sources, post-train strong weights on these by --config=configs/post_training.py, or train on them "
            f"all the same by --config=configs/presets.py:{smallest}"
        )
    return next((name for name, preset in PRESETS.items() if num_images <= preset.bounds[1]), largest)


def explain_preset(name: str, settings: Mapping[str, Any], *, num_images: int) -> list[str]:
    """Returns a line on the preset of a run and its images, then one on each setting: its value, and why.

    Args:
        name: the preset.
        settings: all settings of the run by field, such as "optimizer.base_lr".
        num_images: images that it trains on.
    """
    preset, (least, most) = PRESETS[name], PRESETS[name].bounds
    first = f"preset {name}, for {least:,} to {most:,} images: there are {num_images:,}"
    if num_images > most and name != list(PRESETS)[-1]:
        first += f"; --config=configs/presets.py:{nearest_preset(num_images)} is nearer"
    lines = [first]
    for field, (value, reason) in preset.choices.items():
        given = settings[field]
        is_kept = given == value
        lines.append(f"  {field} = {given}: " + (reason if is_kept else f"given; the preset has {value}"))
    return [*lines, "  (in brackets: sources, see docs/configs.md)"]
