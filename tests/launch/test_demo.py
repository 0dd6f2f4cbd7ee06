"""The demo's plan, and the order of what it does; the programs that it calls have tests of their own."""

import functools
import importlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image
from rich.console import Console

from croc_jax.runtime.workdir import init_workdir, read_recipe
from croc_jax.training.config import recipe_from_dict

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("images", "workdir", "traceback")
# Of configs/demo.py, for 400 images.
EPOCHS = {
    "schedule.epochs": 24,
    "optimizer.warmup_epochs": 2,
    "optimizer.freeze_last_layer_epochs": 1,
    "objective.warmup_teacher_temp_epochs": 10,
}


@pytest.fixture(scope="module")
def demo():
    """The program as a module; its flags are gone afterwards, as other programs have the same."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "launch"))
        yield importlib.import_module("demo")
    for name in {"demo", "cli"} - before:
        del sys.modules[name]
    for name in FLAGS:
        delattr(flags.FLAGS, name)


@pytest.fixture
def photos(tmp_path):
    """A folder of 20 images, with a name that is easily taken for a list."""
    return fill(tmp_path / "my photos, (2024)", 20)


@pytest.fixture
def labeled(tmp_path):
    """Eight training images and two for validation, and their labels."""
    root = tmp_path / "labeled"
    for split, count in (("train", 8), ("val", 2)):
        fill(root / "images" / split, count)
        fill(root / "labels" / split, count)
    return root


def fill(folder, count):
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(np.full((4, 6, 3), index, np.uint8)).save(folder / f"{index}.png")
    return folder


def test_a_plain_folder_is_trained_on_and_not_scored(demo, photos):
    plan = demo.make_plan(str(photos), "")
    assert plan.folder == photos and not plan.labeled
    assert plan.workdir == ROOT / "runs" / f"demo-{photos.name}"
    # A 20th of the images is 20 times the epochs.
    assert plan.changes == {"data.folders": str(photos)} | {name: 20 * epochs for name, epochs in EPOCHS.items()}


def test_of_a_labeled_folder_the_training_images_alone_are_trained_on(demo, labeled, tmp_path):
    plan = demo.make_plan(str(labeled), str(tmp_path / "run"))
    assert plan.folder == labeled and plan.labeled and plan.workdir == tmp_path / "run"
    # 8 of the 10 images.
    assert plan.changes["data.folders"] == str(labeled / "images" / "train")
    assert plan.changes["schedule.epochs"] == 24 * 50


@pytest.mark.parametrize("missing", ["images/train", "labels/val"])
def test_half_a_labeled_folder_is_a_plain_one(demo, labeled, missing):
    (labeled / missing).rename(labeled / missing.replace("/", "/other-"))
    plan = demo.make_plan(str(labeled), "")
    assert not plan.labeled and plan.changes["data.folders"] == str(labeled)


def test_a_relative_folder_means_the_same_from_elsewhere(demo, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert demo.make_plan(photos.name, "").changes["data.folders"] == str(photos)


def test_a_missing_folder_is_the_user_s_mistake(demo, tmp_path):
    with pytest.raises(demo.UserError) as refusal:
        demo.make_plan(f"{tmp_path}/nowhere", "")
    assert str(refusal.value) == f"--images={tmp_path}/nowhere: there is no such folder"


def test_without_images_the_scenes_are_generated_once(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "NUM_SCENES", 2)
    small = functools.partial(demo.write_scenes, num_val=1, size=(32, 32), show_progress=False)
    monkeypatch.setattr(demo, "write_scenes", small)
    plan = demo.make_plan("", "")
    scenes = tmp_path / "data" / "scenes"
    # The numbers of epochs are those of the config file.
    assert plan == (scenes, True, tmp_path / "runs" / "demo", {"data.folders": str(scenes / "images" / "train")})
    first = {file: file.stat().st_mtime_ns for file in scenes.rglob("*")}
    assert len(list((scenes / "images" / "train").iterdir())) == 2
    assert demo.make_plan("", "") == plan
    assert {file: file.stat().st_mtime_ns for file in scenes.rglob("*")} == first


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [
        (400, (24, 2, 1, 10)),
        (200, (48, 4, 2, 20)),
        (800, (12, 1, 0, 5)),
        (40_000, (1, 0, 0, 0)),
        (1_000_000, (1, 0, 0, 0)),
    ],
)
def test_more_images_make_fewer_epochs_but_at_least_one(demo, num_images, expected):
    scaled = demo.scaled_epochs(num_images)
    assert scaled == dict(zip(EPOCHS, expected, strict=True))
    assert {type(value) for value in scaled.values()} == {int}


def pretrain_recipe(arguments, monkeypatch):
    """Returns the recipe that launch/pretrain.py reads from its arguments."""
    values = flags.FlagValues()
    # The flags of single fields are made from what the command line holds.
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments])
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    values(sys.argv)
    return recipe_from_dict(config.value.to_dict())


class Programs:
    """Stands for the programs that the demo calls: notes the calls and leaves what they would leave."""

    def __init__(self, monkeypatch, *, steps=75):
        self.calls, self.steps, self.scores, self._monkeypatch = [], steps, 0, monkeypatch

    def __call__(self, program, *arguments):
        self.calls.append((program, arguments))
        given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
        if program == "pretrain.py":
            workdir = Path(given["workdir"])
            init_workdir(workdir, pretrain_recipe(arguments, self._monkeypatch))
            (workdir / "metrics.jsonl").write_text(json.dumps({"step": self.steps}) + "\n")
        else:
            self.scores += 1
            output, step = Path(given["output"]), 0 if given["checkpoint"] == "random" else self.steps
            output.mkdir(parents=True, exist_ok=True)
            (output / "results.json").write_text(json.dumps({"step": step, "miou": self.scores}))

    @property
    def names(self):
        return [program for program, _ in self.calls]


@pytest.fixture
def start(demo, monkeypatch):
    """Starts the demo with programs that do next to nothing; returns them, and the scores of the report."""

    def start(images, workdir, **settings):
        programs, reports = Programs(monkeypatch, **settings), []

        def report(workdir):
            files = {name: workdir / name / "results.json" for name in ("before", "after")}
            found = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
            reports.append((workdir, found))
            return workdir / "report.html"

        monkeypatch.setattr(demo, "call", programs)
        monkeypatch.setattr(demo, "build_report", report)
        monkeypatch.setattr(demo, "IMAGES", SimpleNamespace(value=str(images)))
        monkeypatch.setattr(demo, "WORKDIR", SimpleNamespace(value=str(workdir)))
        demo.main()
        ((where, scores),) = reports
        assert where == workdir
        return programs, scores

    return start


def test_photos_are_trained_on_and_reported_without_a_score(start, photos, tmp_path, capsys):
    workdir = tmp_path / "run [old]"
    programs, scores = start(photos, workdir)
    assert programs.names == ["pretrain.py"] and scores == {}
    recipe = read_recipe(workdir / "config.json")
    assert recipe.data.folders == (str(photos),)
    assert recipe.schedule.epochs == 480 and recipe.objective.warmup_teacher_temp_epochs == 200
    assert str(workdir / "report.html") in capsys.readouterr().out


def test_labeled_images_are_scored_before_and_after(start, labeled, tmp_path):
    programs, scores = start(labeled, tmp_path / "run")
    assert programs.names == ["evaluate.py", "pretrain.py", "evaluate.py"]
    assert scores == {"before": {"step": 0, "miou": 1}, "after": {"step": 75, "miou": 2}}
    for (_, arguments), checkpoint, name in zip(
        programs.calls[::2], ("random", tmp_path / "run"), ("before", "after"), strict=True
    ):
        assert f"--checkpoint={checkpoint}" in arguments and f"--output={tmp_path / 'run' / name}" in arguments
        assert f"--config.dataset.root={labeled}" in arguments


def test_the_same_command_again_scores_nothing_again(start, labeled, tmp_path):
    _, first = start(labeled, tmp_path / "run")
    programs, scores = start(labeled, tmp_path / "run")
    assert programs.names == ["pretrain.py"] and scores == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("run")] == ["run"]


def test_a_score_of_an_earlier_step_is_made_again(start, labeled, tmp_path):
    start(labeled, tmp_path / "run", steps=75)
    programs, scores = start(labeled, tmp_path / "run", steps=150)
    assert programs.names == ["pretrain.py", "evaluate.py"]
    assert (scores["before"]["step"], scores["after"]["step"]) == (0, 150)


def test_other_images_set_the_earlier_run_aside(start, photos, tmp_path, capsys):
    workdir = tmp_path / "run"
    for number in (1, 2):
        start(photos, workdir)
        (workdir / "mark").write_text(str(number))
        capsys.readouterr()
        # One more image makes fewer epochs.
        Image.new("RGB", (4, 4)).save(photos / f"more{number}.png")
        start(photos, workdir)
        said = " ".join(capsys.readouterr().out.split())
        changed = said.partition("the settings have changed (")[2].partition(")")[0]
        assert set(changed.split(", ")) == set(EPOCHS)
        assert f": the earlier run is now {workdir}.{number}, a new one starts" in said
        assert (tmp_path / f"run.{number}" / "mark").read_text() == str(number) and not (workdir / "mark").exists()


def set_aside(demo, plan):
    """Returns what it says."""
    said = io.StringIO()
    demo.set_aside(plan, Console(file=said, soft_wrap=True, highlight=False))
    return said.getvalue()


@pytest.fixture
def plan(demo, photos, tmp_path):
    """A plan, and a run of it in its workdir."""
    plan = demo.make_plan(str(photos), str(tmp_path / "run"))
    settings = demo.load_config_file(str(ROOT / "configs" / "demo.py"))
    settings.update_from_flattened_dict(plan.changes | {"data.folders": (str(photos),)})
    init_workdir(plan.workdir, recipe_from_dict(settings.to_dict()))
    return plan


def test_a_run_with_the_same_settings_stays(demo, plan):
    before = sorted(path.name for path in plan.workdir.parent.iterdir())
    assert set_aside(demo, plan) == ""
    assert sorted(path.name for path in plan.workdir.parent.iterdir()) == before


def test_a_workdir_without_a_run_stays(demo, plan):
    (plan.workdir / "config.json").rename(plan.workdir / "notes.json")
    assert set_aside(demo, plan) == "" and (plan.workdir / "notes.json").exists()


@pytest.mark.parametrize(
    ("group", "field", "value"), [("schedule", "batch_size", 8), ("data", "folders", ["elsewhere"])]
)
def test_a_run_with_other_settings_is_renamed_and_the_field_named(demo, plan, group, field, value):
    file = plan.workdir / "config.json"
    settings = json.loads(file.read_text())
    settings[group][field] = value
    file.write_text(json.dumps(settings))
    other = plan.workdir.with_name("run.1")
    expected = f"the settings have changed ({group}.{field}): the earlier run is now {other}, a new one starts\n"
    assert set_aside(demo, plan) == expected
    assert not plan.workdir.exists() and json.loads((other / "config.json").read_text()) == settings


def test_a_run_of_another_version_is_renamed_too(demo, plan):
    (plan.workdir / "config.json").write_text('{"sead": 1}')
    assert "the settings have changed (the version): the earlier run" in set_aside(demo, plan)
    assert (plan.workdir.with_name("run.1") / "config.json").read_text() == '{"sead": 1}'


def test_settings_that_decide_nothing_may_change(demo, plan):
    file = plan.workdir / "config.json"
    settings = json.loads(file.read_text())
    settings["runtime"]["log_every_steps"] = 99
    file.write_text(json.dumps(settings))
    assert set_aside(demo, plan) == "" and file.exists()


@pytest.mark.parametrize("status", [0, 3])
def test_a_program_that_fails_ends_the_demo_with_its_status(demo, tmp_path, monkeypatch, status):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    (tmp_path / "launch").mkdir()
    script = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); sys.exit(int(sys.argv[2]))"
    (tmp_path / "launch" / "program.py").write_text(script)
    if status:
        with pytest.raises(SystemExit) as end:
            demo.call("program.py", str(tmp_path / "note"), str(status))
        assert end.value.code == status
    else:
        demo.call("program.py", str(tmp_path / "note"), str(status))
    assert (tmp_path / "note").read_text() == str(status)
