"""The evaluations of a run while it trains: from its settings to the hooks of the training loop."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import jax
from cli import UserError, parse_configs

from croc_jax.checkpoints import Checkpointer
from croc_jax.data.pipeline import CropDataset
from croc_jax.evaluation.inside import FOLDER_NAME, InsideRecorder
from croc_jax.evaluation.interval import SECONDS, Interval, PictureMoments
from croc_jax.evaluation.online import Bars, OnlineEvaluator, make_evaluator, on_first_device
from croc_jax.models import make_backbone
from croc_jax.runtime import distributed, memory
from croc_jax.training.config import Recipe
from croc_jax.training.loop import RunLength
from croc_jax.training.run_config import EvaluationConfig
from croc_jax.training.state import TrainState

FLAG = "--config.evaluation"
Result = TypeVar("Result")


def with_protocol(
    config: EvaluationConfig, file: str, overrides: Mapping[str, Any], *, every_epochs: int
) -> EvaluationConfig:
    """Returns the settings with one more protocol, at an interval of epochs; `overrides` are of its fields."""
    more = tuple(f"{name}={value}" for name, value in overrides.items())
    return dataclasses.replace(
        config,
        protocols=(*config.protocols, file),
        overrides=(*config.overrides, *more),
        every_epochs=config.every_epochs or every_epochs,
    )


def open_evaluator(recipe: Recipe, dataset: CropDataset, *, bars: Bars = nullcontext) -> OnlineEvaluator | None:
    """Returns what scores the teacher of a run, or None if nothing does.

    Args:
        recipe: settings of the run.
        dataset: its images.
        bars: returns a context of progress bars.

    Raises:
        UserError: for a wrong file, setting, path or name of a score.
    """
    config = recipe.evaluation
    configs = read_protocols(config)
    if not configs and not config.unlabeled and not config.best:
        return None
    module = make_backbone(recipe.backbone, image_size=recipe.data.views.crop_size, pixels=recipe.data.pixels)
    unlabeled = (dataset.source, recipe.data) if config.unlabeled else None
    evaluator = make_evaluator(configs, backbone_module=module, unlabeled=unlabeled, bars=bars)
    evaluator.check_best(config.best)
    return evaluator


def read_protocols(config: EvaluationConfig) -> dict[str, dict[str, Any]]:
    """Returns the contents of the files of all protocols, by their names, with the overrides and data of each."""
    pairs = [(file, root or config.root) for file, _, root in (text.partition("@") for text in config.protocols)]
    if not pairs and (config.root or config.overrides):
        raise UserError(f"{FLAG}.protocols is empty: name a file such as configs/eval/knn.py for {FLAG}.root")
    try:
        flags = [f"--config.{text}" for text in config.overrides]
        found = parse_configs(["", *flags], [file for file, _ in pairs]) if pairs else {}
    except UserError as error:
        text = str(error).replace("--config.", f"{FLAG}.overrides=").replace("--config=", f"{FLAG}.protocols=")
        raise UserError(text) from None
    for one, (_, root) in zip(found.values(), pairs, strict=True):
        one.dataset.root = root or one.dataset.root
        if not one.dataset.root:
            raise UserError(f"{FLAG}.root is empty: name the labeled data of {one.protocol}")
    return {name: one.to_dict() for name, one in found.items()}


def do_in_first(
    step: int,
    state: TrainState,
    function: Callable[[Any], Result],
    *,
    name: str,
    result: str,
    remedy: str,
    log: Callable[[str], None],
) -> Result | None:
    """Returns what a function makes of the teacher's backbone; None in other processes, and without memory.

    All processes of a run must call it: the first one calls the function, and the others wait.

    Args:
        step: updates so far.
        state: state after them.
        function: takes the parameters.
        name: what this is, for a warning if memory is out.
        result: what the function returns, likewise.
        remedy: settings that take less memory.
        log: prints a line.
    """
    found = None
    # The programs of an evaluation are those of one process: no exchange may be under way beside them.
    try:
        params = jax.block_until_ready(on_first_device(state.teacher["backbone"]))
        found = function(params) if jax.process_index() == 0 else None
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        # Training itself has room.
        log(f"warning: {name} of step {step}: out of memory, so no {result}; {remedy}")
    distributed.wait_for_all(name)
    return found


class RunPictures:
    """Records what the teacher makes of a few images, when it is due; in the first process, while the others wait."""

    def __init__(
        self, recipe: Recipe, dataset: CropDataset, length: RunLength, workdir: Path, *, log: Callable[[str], None]
    ) -> None:
        """Records nothing yet.

        Args:
            recipe: settings of the run.
            dataset: its images.
            length: length of the run.
            workdir: its folder.
            log: prints a line.
        """
        self._recorder = InsideRecorder(workdir / FOLDER_NAME, recipe, dataset.source)
        epochs, self._steps_per_epoch = length.total_steps // length.steps_per_epoch, length.steps_per_epoch
        self._moments = PictureMoments(recipe.evaluation, epochs=epochs, steps_per_epoch=length.steps_per_epoch)
        self._log = log

    def is_due(self, step: int) -> bool:
        """Returns whether the state after a step, the last one of an epoch or 0, is recorded."""
        return distributed.from_first(self._moments.is_due(step))

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Writes what the teacher makes of the images; there are no numbers for the row of the step."""
        words = {"name": "inside", "result": "pictures", "remedy": f"{FLAG}.pictures=2 takes less"}
        do_in_first(step, state, functools.partial(self._record, step), **words, log=self._log)
        return {}

    def _record(self, step: int, params: Any) -> None:
        try:
            self._recorder.prepare(params)
            with self._moments.budget.measure():
                self._recorder.record(params, step=step, epoch=step / self._steps_per_epoch)
        except (OSError, ValueError) as error:
            # A full disk, or images that cannot be read: pictures are not worth a run.
            self._log(f"warning: no pictures of step {step}: {error}")


class InTurn:
    """Parts of an evaluation, such as scores and pictures, each done when it is due."""

    def __init__(self, *parts: "RunEvaluation | RunPictures") -> None:
        """Takes the parts, in their order."""
        self._parts, self._due = parts, []

    def is_due(self, step: int) -> bool:
        """Returns whether any part is due after a step, the last one of an epoch."""
        self._due = [part for part in self._parts if part.is_due(step)]
        return bool(self._due)

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Returns the numbers of the parts that are due."""
        found: dict[str, float] = {}
        for part in self._due:
            found |= part.evaluate(step, state)
        return found


class RunEvaluation:
    """Decides when a state is evaluated, and says what came of it and what it cost.

    If several processes form the run, all make the same calls: the first evaluates, and the others wait.
    """

    def __init__(
        self,
        recipe: Recipe,
        evaluator: OnlineEvaluator | None,
        length: RunLength,
        checkpointer: Checkpointer,
        *,
        compile_seconds: float,
        log: Callable[[str], None],
    ) -> None:
        """Evaluates nothing yet.

        Args:
            recipe: settings of the run.
            evaluator: what scores its teacher, if anything does.
            length: length of the run.
            checkpointer: takes the scores.
            compile_seconds: see `Interval`.
            log: prints a line.
        """
        self._evaluator, self._checkpointer, self._log = evaluator, checkpointer, log
        self._count = 0
        self._interval = Interval(
            recipe.evaluation,
            steps_per_epoch=length.steps_per_epoch,
            total_steps=length.total_steps,
            compile_seconds=compile_seconds,
        )

    def is_due(self, step: int) -> bool:
        """Returns whether the state after a step, the last one of an epoch, is evaluated."""
        return self._evaluator is not None and distributed.from_first(self._interval.is_due(step))

    def evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        """Returns the scores of the teacher, and the seconds that they took."""
        assert self._evaluator is not None
        remedy = f"{FLAG}.unlabeled=False, and for protocols {FLAG}.overrides=budget.batch_size=8, take less"
        with self._interval.measure():
            words = {"name": "evaluation", "result": "scores", "remedy": remedy}
            scores = do_in_first(step, state, self._evaluator.evaluate, **words, log=self._log) or {}
        scores = json.loads(distributed.gather_texts(json.dumps(scores))[0])
        self._count += 1
        self._checkpointer.note_scores(step, scores)
        values = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        self._log(f"evaluation of step {step}: {values or 'no scores'}; {self._interval.describe()}")
        # In a row, the scores follow it.
        return {SECONDS: round(self._interval.seconds, 3)} | scores

    def explain_none(self) -> str:
        """Returns that nothing was evaluated since the start, in words; "" if it was, or nothing should be."""
        if self._evaluator is None or self._count:
            return ""
        return f"no evaluation since the start, as the run was short: {FLAG}.every_epochs=1 asks for one each epoch"
