"""What an experiment consists of: rows, seeds and labeled data, and the commands that train and score each run."""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cli import UserError, load_config_file, parse_config, parse_configs
from commands import Command

from croc_jax.data.config import DataConfig
from croc_jax.data.sources import open_data
from croc_jax.data.sources.identity import ImageSet, describe_change, identify
from croc_jax.evaluation.backbones import RANDOM
from croc_jax.evaluation.datasets import check_never_trained_on, scored_files
from croc_jax.evaluation.registry import get_protocol
from croc_jax.runtime.starts import IMAGES_NAME, read_images
from croc_jax.runtime.workdir import CONFIG_NAME, differing_fields, init_workdir, latest_step, read_recipe
from croc_jax.training.config import Recipe
from croc_jax.training.resolve import recipe_from_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the tables: one recipe, trained from one or several seeds.

    Attributes:
        name: name of its folders, with the seed.
        label: what the tables call it.
        overrides: settings "FIELD=VALUE" in which the recipe differs from the base.
        seeds: seeds, one run each.
        train: whether it is trained; otherwise the weights that it would start from are scored.
        images: folder of images below --data; by default those of --images.
        curve: whether it is scored during training, too, by `Experiment.curve`.
    """

    name: str
    label: str
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    train: bool = True
    images: str = ""
    curve: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for seeds that would be no runs, or one run twice."""
        if not self.seeds or len({*self.seeds}) < len(self.seeds):
            raise UserError(f"--config: the row {self.name!r} has the seeds {self.seeds}: name each once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Labeled data and how it is scored.

    Attributes:
        name: what the tables call it.
        root: path below --data, perhaps after a kind, such as "voc:VOCdevkit".
        protocols: files in configs/eval.
        overrides: their settings, each for those that have the field.
    """

    name: str
    root: str
    protocols: tuple[str, ...]
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that are compared with each other, by name."""

    title: str
    rows: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The content of a file in configs/experiments.

    Attributes:
        base: config file of the recipe that all rows start from.
        rows: in the order of the tables.
        evaluations: in the order of the columns.
        tables: by default one with all rows.
        part: part of the validation images that is scored, see `croc_jax.evaluation.datasets.choose_part`.
        curve: data set and protocol that rows with a curve are scored by during training, such as "coco27/linear".
        curve_epochs: epochs between two points of a curve.
        jobs: runs at a time, which share the CPU cores; 0 for one a core.
    """

    base: str
    rows: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...]
    tables: tuple[Table, ...] = ()
    part: str = "reporting"
    curve: str = ""
    curve_epochs: int = 1
    jobs: int = 1


class Places(NamedTuple):
    """Where an experiment finds and puts its files, and what it scores.

    Attributes:
        workdir: folder of all runs.
        images: folder of images to train on.
        data: folder of labeled data.
        part: part of the validation images to score.
    """

    workdir: Path
    images: Path
    data: Path
    part: str

    def find(self, evaluation: Evaluation) -> str:
        """Returns the value of dataset.root."""
        kind, colon, path = evaluation.root.rpartition(":")
        return f"{kind}{colon}{self.data / path}"

    def flags(self, evaluation: Evaluation) -> list[str]:
        """Returns the flags of evaluate.py for all protocols of an evaluation."""
        texts = (f"dataset.root={self.find(evaluation)}", part_option(self.part), *evaluation.overrides)
        return [f"--config.{text}" for text in texts]


class Column(NamedTuple):
    """One score of each run: a protocol on a data set.

    Attributes:
        data: name of the data set.
        name: name of the protocol's file and variant, as evaluate.py names its folder.
        protocol: name of the protocol.
        score: name of its main score.
        label: what tables call the score.
    """

    data: str
    name: str
    protocol: str
    score: str
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One row with one seed.

    Attributes:
        row: the row.
        seed: seed of all that is random.
        folder: its workdir; the scores of PART are in PART/DATASET.
        recipe: its settings.
        training: the command that trains it, or goes on; None without training.
        scorings: the command that scores it on each data set.
    """

    row: Row
    seed: int
    folder: Path
    recipe: Recipe
    training: Command | None
    scorings: Mapping[str, Command]

    @property
    def name(self) -> str:
        """Name of the row and seed."""
        return self.folder.name

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; 0 without training, or if nothing has been trained yet."""
        file = self.folder / IMAGES_NAME
        if self.training is None or not file.is_file():
            return 0
        return _steps_per_epoch(self.folder, file.stat().st_mtime_ns) * self.recipe.schedule.epochs

    def is_trained(self) -> bool:
        """Returns whether there is nothing to train, or nothing more.

        Raises:
            UserError: if its folder holds a run with other settings.
        """
        config = self.folder / CONFIG_NAME
        if self.training is None or not config.is_file() or not latest_step(self.folder):
            return self.training is None
        if changes := differing_fields(read_recipe(config), self.recipe):
            listed = ", ".join(f"{name}={old!r} there, {new!r} now" for name, (old, new) in changes.items())
            raise UserError(f"{self.folder} holds a run of other settings ({listed}): remove it, or change --workdir")
        return (latest_step(self.folder) or 0) >= self.total_steps > 0


# The file lists all images, and a display asks for this number all the time.
@functools.lru_cache
def _steps_per_epoch(folder: Path, changed: int) -> int:
    del changed
    noted = read_images(folder)
    return noted.steps_per_epoch if noted else 0


def read_experiment(settings: Mapping[str, Any]) -> Experiment:
    """Returns the experiment that a config file describes; UserError names what is unknown or missing in it."""
    kinds = {"rows": Row, "evaluations": Evaluation, "tables": Table}
    groups = {name: tuple(_build(kinds[name], one) for one in settings.get(name, ())) for name in kinds}
    experiment = _build(Experiment, {**settings, **groups})
    for name in ("rows", "evaluations"):
        names = [one.name for one in groups[name]]
        if not names or len({*names}) < len(names):
            raise UserError(f"--config: {name} are {', '.join(names) or 'empty'}: name each once")
    known = {row.name for row in experiment.rows}
    for table in experiment.tables:
        if unknown := [name for name in table.rows if name not in known]:
            raise UserError(f"--config: the table {table.title!r} names {unknown[0]!r}, which is no row")
    return experiment


def _build(kind: type, settings: Mapping[str, Any]) -> Any:
    for field in dataclasses.fields(kind):
        if "tuple" in str(field.type) and isinstance(value := settings.get(field.name), str):
            raise UserError(
                f"--config: {field.name}={value!r} is one text: a tuple of one ends in a comma, ({value!r},)"
            )
    try:
        return kind(**settings)
    except TypeError as error:
        raise UserError(f"--config: {str(error).replace('.__init__()', '')}: {dict(settings)}") from None


def part_option(part: str) -> str:
    """Returns the setting of a protocol that scores a part of the validation images."""
    return f"dataset.val_part={part}"


def find_columns(experiment: Experiment, places: Places) -> dict[Column, dict[str, Any]]:
    """Returns the columns of the tables with the settings of each protocol; UserError for a wrong file or setting."""
    columns = {}
    for one in experiment.evaluations:
        if whole := [file for file in one.protocols if "val_part" not in load_config_file(file).to_dict()["dataset"]]:
            raise UserError(f"--config: {whole[0]} of {one.name!r} scores no half: name protocols for pixels or videos")
        for name, config in parse_configs(["", *places.flags(one)], one.protocols).items():
            protocol = get_protocol(config.protocol)
            label = protocol.score_labels[protocol.main_score]
            columns[Column(one.name, name, protocol.name, protocol.main_score, label)] = config.to_dict()
    return columns


def make_runs(experiment: Experiment, places: Places, *, rows: Collection[str] = ()) -> list[Run]:
    """Returns all runs in the order in which they are made: what is cheap and says most comes first.

    That is: weights without training, the first seed of rows with several, their other seeds, all other rows.

    Args:
        experiment: the experiment.
        places: its folders.
        rows: names of the rows to make; empty for all.

    Raises:
        UserError: for a wrong setting, or an unknown row.
    """
    if unknown := [name for name in rows if name not in {row.name for row in experiment.rows}]:
        raise UserError(f"--row={unknown[0]}: choose among {', '.join(row.name for row in experiment.rows)}")
    found = []
    for number, row in enumerate(experiment.rows):
        for index, seed in enumerate(row.seeds if not rows or row.name in rows else ()):
            order = row.train, len(row.seeds) == 1, index, number
            found.append((order, _make_run(experiment, places, row, seed)))
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]


def _make_run(experiment: Experiment, places: Places, row: Row, seed: int) -> Run:
    folder = places.workdir / f"{row.name}-s{seed}"
    photos = (str(places.data / row.images if row.images else places.images),)
    # A row may name its images itself; a repeated flag would join them with others.
    has_images = any(text.startswith(("data.folders=", "data.sources=")) for text in row.overrides)
    settings = [] if has_images else [f"data.folders={photos!r}", "data.sources=()", "data.weights=()"]
    settings += [*row.overrides, f"seed={seed}"]
    if row.curve and row.train and experiment.curve:
        settings += _curve_settings(experiment, places)
    flags = [f"--config.{text}" for text in settings]
    given = {text.partition("=")[0] for text in settings}
    recipe = recipe_from_config(parse_config(experiment.base, flags).to_dict(), given=given)
    training = None
    if row.train:
        training = Command(["launch/pretrain.py", f"--config={experiment.base}", *flags, f"--workdir={folder}"])
    source = [f"--checkpoint={folder if row.train else recipe.init_from.source or RANDOM}"]
    source += [] if row.train or recipe.init_from.source else [f"--config.recipe={folder}"]
    scorings = {}
    for one in experiment.evaluations:
        files = [f"--config={file}" for file in one.protocols]
        output = folder / places.part / one.name
        arguments = ["launch/evaluate.py", *files, *places.flags(one), *source, f"--output={output}"]
        scorings[one.name] = Command(arguments, output, folder, places.find(one).rpartition(":")[2])
    return Run(row=row, seed=seed, folder=folder, recipe=recipe, training=training, scorings=scorings)


def _curve_settings(experiment: Experiment, places: Places) -> list[str]:
    """Returns the settings of a run that score it during training by one protocol of the tables."""
    name, _, protocol = experiment.curve.partition("/")
    for one in experiment.evaluations:
        for file in one.protocols:
            if one.name == name and Path(file.partition(":")[0]).stem == protocol:
                group = f"{load_config_file(file).protocol}."
                overrides = tuple(text for text in one.overrides if text.startswith((group, "dataset.")))
                overrides += (part_option(places.part),)
                every = f"evaluation.every_epochs={experiment.curve_epochs}"
                protocols = (f"{file}@{places.find(one)}",)
                return [f"evaluation.protocols={protocols!r}", f"evaluation.overrides={overrides!r}", every]
    raise UserError(f"--config: curve={experiment.curve!r}: name a data set and a protocol, such as coco27/linear")


def check_data(runs: Iterable[Run], columns: Mapping[Column, Mapping[str, Any]], places: Places) -> None:
    """Opens all data, and checks that runs are of these images, and that no image to score is among them.

    Raises:
        ValueError: for data that cannot be used, an image that is in both, or a run with other images.
    """
    scored = set[Path]()
    for column, config in columns.items():
        open_dataset = get_protocol(config["protocol"]).open_dataset
        try:
            # A half that cannot be scored shall not be found after hours; the other half may not be trained on either.
            for part in dict.fromkeys((places.part, "all")):
                scored.update(scored_files(open_dataset(**{**config["dataset"], "val_part": part})))
        except (OSError, ValueError) as error:
            raise UserError(f"--data={places.data}, data set {column.data!r}, --part={places.part}: {error}") from error
    known: dict[DataConfig, ImageSet] = {}
    for run in (run for run in runs if run.row.train):
        if (settings := run.recipe.data) not in known:
            try:
                source = open_data(settings)
            except (OSError, ValueError) as error:
                raise UserError(f"images of the row {run.row.name!r}, by default those of --images: {error}") from error
            check_never_trained_on((source.name(index) for index in range(len(source))), scored)
            known[settings] = identify(source)
        if (noted := read_images(run.folder)) and noted.images.digest != known[settings].digest:
            change = describe_change(noted.images, known[settings])
            raise UserError(f"{run.folder} holds a run with other images: {change}; remove it, or change --workdir")


def note_untrained(runs: Iterable[Run]) -> None:
    """Writes the settings of runs without training where their evaluations read them."""
    for run in runs:
        if run.training is None:
            init_workdir(run.folder, run.recipe)
