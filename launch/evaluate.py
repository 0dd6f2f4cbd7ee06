r"""Evaluates the frozen features of a checkpoint by one protocol of configs/eval.

    python launch/evaluate.py --config=configs/eval/linear.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

A checkpoint is a workdir, a folder WORKDIR/checkpoints/STEP, a .pth or .safetensors file with
weights of the official CrOC or DINO, or 'random'. DIR gets results.json and pictures.
"""

from pathlib import Path
from typing import Any

from absl import flags
from command_line import UserError, load_config_file, run
from ml_collections import config_flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from croc_jax.data.labeled import SegmentationSplit
from croc_jax.data.segmentation_sets import open_labeled
from croc_jax.data.videos import open_videos
from croc_jax.evaluation import Gallery, LinearProtocol, MemoryBudget, evaluate_linear
from croc_jax.evaluation.backbones import RANDOM, FrozenBackbone, random_backbone, trained_backbone
from croc_jax.evaluation.pictures import draw_examples
from croc_jax.evaluation.results import (
    linear_results,
    retrieval_results,
    unsupervised_results,
    video_results,
    write_results,
)
from croc_jax.evaluation.retrieval import RetrievalProtocol, evaluate_retrieval
from croc_jax.evaluation.unsupervised import UnsupervisedProtocol, evaluate_unsupervised
from croc_jax.evaluation.video import VideoProtocol, evaluate_video
from croc_jax.training.config import Recipe, recipe_from_dict
from croc_jax.training.workdir import CONFIG_NAME, read_recipe

# A ConfigDict, whose fields the type checker cannot know.
Config = Any

CONFIG = config_flags.DEFINE_config_file("config", help_string="The protocol, such as configs/eval/linear.py.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A workdir, a checkpoint folder, a .pth or .safetensors file, or 'random'.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "Where results.json and pictures go.", required=True)

SCORE_NAMES = {"miou": "mIoU", "miou_deviation": "deviation over seeds", "jf_mean": "J&F"}
# Numbers of results.json that are no percentages.
NO_SCORES = ("step", "final_train_loss")


def main() -> None:
    """Runs one protocol on one checkpoint."""
    config, output, console = CONFIG.value, Path(OUTPUT.value), Console()
    if config.protocol not in PROTOCOLS:
        raise UserError(f"config.protocol={config.protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    if not config.dataset.root:
        raise UserError("no data set: add --config.dataset.root=ROOT; the config file says what it holds")
    with Progress(console=console) as progress:
        results = PROTOCOLS[config.protocol](config, output, progress)
    file = write_results(results, output)
    console.print(make_table(results))
    console.print(f"{file}, and pictures beside it", markup=False, soft_wrap=True)


def run_linear(config: Config, output: Path, progress: Progress) -> dict[str, Any]:
    """Scores a linear layer on frozen features."""
    protocol, budget = LinearProtocol(**config.linear.to_dict()), MemoryBudget(**config.budget.to_dict())
    train, val = open_splits(config)
    backbone = load_backbone(CHECKPOINT.value, config)
    output.mkdir(parents=True, exist_ok=True)
    score = evaluate_linear(
        backbone.module,
        backbone.params,
        train=train,
        val=val,
        protocol=protocol,
        budget=budget,
        folder=output,
        progress=progress,
    )
    draw_gallery(score.gallery, val, output)
    return linear_results(
        score, protocol=protocol, backbone=backbone, checkpoint=CHECKPOINT.value, train=train, val=val
    )


def run_video(config: Config, output: Path, progress: Progress) -> dict[str, Any]:
    """Scores labels that travel through videos."""
    protocol, root = VideoProtocol(**config.video.to_dict()), Path(config.dataset.root)
    videos = open_videos(root, config.dataset.split)
    backbone = load_backbone(CHECKPOINT.value, config)
    score = evaluate_video(
        backbone.module, backbone.params, videos, protocol=protocol, output=output, progress=progress
    )
    return video_results(
        score, protocol=protocol, backbone=backbone, checkpoint=CHECKPOINT.value, root=root, videos=videos
    )


def run_unsupervised(config: Config, output: Path, progress: Progress) -> dict[str, Any]:
    """Scores clusters of frozen features."""
    protocol = UnsupervisedProtocol(**config.unsupervised.to_dict())
    budget = MemoryBudget(**config.budget.to_dict())
    val = open_split(config.dataset, config.dataset.val_split)
    backbone = load_backbone(CHECKPOINT.value, config)
    output.mkdir(parents=True, exist_ok=True)
    score = evaluate_unsupervised(
        backbone.module,
        backbone.params,
        val=val,
        protocol=protocol,
        budget=budget,
        folder=output,
        progress=progress,
    )
    draw_gallery(score.gallery, val, output)
    return unsupervised_results(score, protocol=protocol, backbone=backbone, checkpoint=CHECKPOINT.value, val=val)


def run_retrieval(config: Config, output: Path, progress: Progress) -> dict[str, Any]:
    """Scores the labels of nearest neighbors."""
    protocol, budget = RetrievalProtocol(**config.retrieval.to_dict()), MemoryBudget(**config.budget.to_dict())
    train, val = open_splits(config)
    backbone = load_backbone(CHECKPOINT.value, config)
    output.mkdir(parents=True, exist_ok=True)
    score = evaluate_retrieval(
        backbone.module, backbone.params, train=train, val=val, protocol=protocol, budget=budget, progress=progress
    )
    draw_gallery(score.gallery, val, output)
    return retrieval_results(
        score, protocol=protocol, backbone=backbone, checkpoint=CHECKPOINT.value, train=train, val=val
    )


PROTOCOLS = {"linear": run_linear, "retrieval": run_retrieval, "unsupervised": run_unsupervised, "video": run_video}


def draw_gallery(gallery: Gallery, split: SegmentationSplit, output: Path) -> None:
    """Writes OUTPUT/typical.png, best.png and worst.png."""
    for name, examples in gallery._asdict().items():
        draw_examples(examples, split.class_names).save(output / f"{name}.png")


def open_splits(config: Config) -> tuple[SegmentationSplit, SegmentationSplit]:
    """Returns the images to learn from, and those to score."""
    dataset = config.dataset
    return open_split(dataset, dataset.train_split, fraction=dataset.train_fraction), open_split(
        dataset, dataset.val_split
    )


def open_split(dataset: Config, split: str, *, fraction: float = 1) -> SegmentationSplit:
    """Returns labeled images, or a share of them."""
    return open_labeled(
        dataset.root, split, num_classes=dataset.num_classes, train_split=dataset.train_split, fraction=fraction
    )


def load_backbone(checkpoint: str, config: Config) -> FrozenBackbone:
    """Returns the weights to evaluate."""
    if checkpoint == RANDOM:
        return random_backbone(find_recipe(str(config.recipe)))
    return trained_backbone(Path(checkpoint), which=str(config.which))


def find_recipe(source: str) -> Recipe:
    """Returns the recipe of a workdir or of a config file."""
    saved = Path(source) / CONFIG_NAME
    if saved.is_file():
        return read_recipe(saved)
    if not Path(source.partition(":")[0]).is_file():
        raise UserError(f"config.recipe={source!r}: name a workdir or a configs/*.py file")
    return recipe_from_dict(load_config_file(source).to_dict())


def make_table(results: dict[str, Any]) -> Table:
    """Returns the scores, and each class's, for the terminal."""
    table = Table(title=f"{results['protocol']}: {results['checkpoint']} at step {results['step']}")
    table.add_column("score")
    table.add_column("%", justify="right")
    for name, value in results.items():
        if isinstance(value, float) and name not in NO_SCORES:
            table.add_row(SCORE_NAMES.get(name, name), f"{value:.2f}", end_section=name == "miou")
    for name, value in results.get("class_iou", {}).items():
        table.add_row(name, "absent" if value is None else f"{value:.1f}")
    return table


if __name__ == "__main__":
    run(main)
