r"""Evaluates the frozen features of a checkpoint by one protocol of configs/eval, or by several.

    python launch/evaluate.py --config=configs/eval/linear.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

A checkpoint is a workdir, a folder WORKDIR/checkpoints/STEP, a .pth or .safetensors file with
weights of CrOC, DINO, timm and others, or 'random'. DIR gets results.json and pictures.

Several --config=FILE share what they can of the features, and write to DIR/NAME, named after their files; a
--config.FIELD=VALUE goes to each that has the field.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags
from cli import UserError, load_config_file, make_progress, parse_configs, run
from protocols import Config, plan
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from croc_jax.evaluation import FrozenFeatures, MemoryBudget
from croc_jax.evaluation.backbones import RANDOM, FrozenBackbone, random_backbone, trained_backbone
from croc_jax.evaluation.results import make_results, write_results
from croc_jax.runtime.workdir import CONFIG_NAME, read_recipe
from croc_jax.training.config import Recipe, recipe_from_dict

CONFIGS = flags.DEFINE_multi_string("config", [], "A protocol, such as configs/eval/linear.py; may be repeated.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A workdir, a checkpoint folder, a .pth or .safetensors file, or 'random'.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "Where results.json and pictures go.", required=True)
PATCH_SIZE = flags.DEFINE_enum(
    "patch_size", None, ("8", "16", "32"), "Pixels between the tokens of a convolutional network, if not as it comes."
)

SCORE_NAMES = {
    "miou": "mIoU", "miou_deviation": "deviation over seeds", "jf_mean": "J&F", "corloc": "CorLoc",
    "top1": "top-1", "top5": "top-5",
}  # fmt: skip
# Numbers of results.json that are no percentages.
NO_SCORES = ("step", "final_train_loss")


class BackboneCache:
    """Backbones that are loaded once, with features that protocols share."""

    def __init__(self, checkpoint: str, *, folder: Path, remember: bool) -> None:
        """Loads nothing yet.

        Args:
            checkpoint: see --checkpoint.
            folder: for temporary files.
            remember: whether several protocols follow.
        """
        self._checkpoint, self._folder, self._remember = checkpoint, folder, remember
        self._known: dict[tuple[str, str], tuple[FrozenBackbone, FrozenFeatures]] = {}

    def get(self, config: Config, progress: Progress) -> tuple[FrozenBackbone, FrozenFeatures]:
        """Returns the weights that a config asks for, at work within the budget of the first such config."""
        key = (RANDOM, str(config.recipe)) if self._checkpoint == RANDOM else (str(config.which), "")
        if key not in self._known:
            backbone, budget = load_backbone(self._checkpoint, config), MemoryBudget(**config.budget.to_dict())
            settings = {"budget": budget, "folder": self._folder, "remember": self._remember}
            self._known[key] = backbone, FrozenFeatures(backbone.module, backbone.params, **settings)
        backbone, features = self._known[key]
        features.progress = progress
        return backbone, features


def main() -> None:
    """Runs all protocols on one checkpoint."""
    configs, output = parse_configs(sys.argv, CONFIGS.value), Path(OUTPUT.value)
    # All mistakes come to light before the first hour of work.
    runs = {name: plan(config) for name, config in configs.items()}
    console = Console()
    bench = BackboneCache(CHECKPOINT.value, folder=output, remember=len(configs) > 1)
    for name, config in configs.items():
        folder = output / name if len(configs) > 1 else output
        with make_progress(console) as progress:
            backbone, features = bench.get(config, progress)
            folder.mkdir(parents=True, exist_ok=True)
            outcome = runs[name](features, folder)
        results = make_results(outcome, backbone=backbone, checkpoint=CHECKPOINT.value)
        file = write_results(results, folder)
        console.print(make_table(results))
        console.print(f"{file}, and pictures beside it", markup=False, soft_wrap=True)


def load_backbone(checkpoint: str, config: Config) -> FrozenBackbone:
    """Returns the weights to evaluate."""
    if checkpoint == RANDOM:
        backbone = random_backbone(find_recipe(str(config.recipe)))
    else:
        backbone = trained_backbone(Path(checkpoint), which=str(config.which))
    return backbone if PATCH_SIZE.value is None else backbone.with_patch_size(int(PATCH_SIZE.value))


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
    for name, value in (results.get("class_iou") or results.get("class_accuracy") or {}).items():
        table.add_row(name, "absent" if value is None else f"{value:.1f}")
    return table


if __name__ == "__main__":
    run(main)
