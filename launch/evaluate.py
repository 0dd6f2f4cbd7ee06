"""Evaluates the frozen features of a checkpoint by one protocol of configs/eval."""

from pathlib import Path

from absl import flags
from command_line import UserError, load_config_file, run
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from croc_jax.data.labeled import open_segmentation
from croc_jax.evaluation import LinearProtocol, MemoryBudget, evaluate_linear
from croc_jax.evaluation.backbones import RANDOM, FrozenBackbone, random_backbone, trained_backbone
from croc_jax.evaluation.pictures import draw_examples
from croc_jax.evaluation.results import linear_results, write_results
from croc_jax.training.config import Recipe, recipe_from_dict
from croc_jax.training.workdir import CONFIG_NAME, read_recipe

CONFIG = config_flags.DEFINE_config_file("config", help_string="The protocol, such as configs/eval/linear.py.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A workdir, a checkpoint folder, or 'random'.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Where results.json and predictions.png go.", required=True)


def main() -> None:
    """Runs one protocol on one checkpoint."""
    config, output, console = CONFIG.value, Path(OUTPUT.value), Console()
    if config.protocol != "linear":
        raise UserError(f"config.protocol={config.protocol!r}: choose 'linear'")
    if not config.dataset.root:
        raise UserError("no data set: add --config.dataset.root=ROOT, a folder of images/ and labels/")
    protocol, budget = LinearProtocol(**config.linear.to_dict()), MemoryBudget(**config.budget.to_dict())
    train, val = (
        open_segmentation(
            config.dataset.root,
            split,
            num_classes=config.dataset.num_classes,
            train_split=config.dataset.train_split,
        )
        for split in (config.dataset.train_split, config.dataset.val_split)
    )
    backbone = load_backbone(CHECKPOINT.value, config)
    output.mkdir(parents=True, exist_ok=True)
    with Progress(console=console) as progress:
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
    results = linear_results(
        score, protocol=protocol, backbone=backbone, checkpoint=CHECKPOINT.value, train=train, val=val
    )
    draw_examples(score.examples, val.class_names).save(output / "predictions.png")
    file = write_results(results, output)
    console.print(make_table(results))
    console.print(f"{file}, and pictures beside it", markup=False, soft_wrap=True)


def load_backbone(checkpoint: str, config: ConfigDict) -> FrozenBackbone:
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


def make_table(results: dict) -> Table:
    """Returns the score and each class's, for the terminal."""
    title = f"linear segmentation of {results['checkpoint']} at step {results['step']}"
    table = Table(title=title, show_footer=True)
    table.add_column("class", "mIoU")
    table.add_column("IoU %", f"{results['miou']:.2f}", justify="right")
    for name, iou in results["class_iou"].items():
        table.add_row(name, "absent" if iou is None else f"{iou:.1f}")
    return table


if __name__ == "__main__":
    run(main)
