"""The experiment: which runs in which order, what is not done again, and, slowly, two rows from start to end."""

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from croc_jax.evaluation.results import RESULTS
from croc_jax.runtime.workdir import init_workdir
from tests.launch.program import run_program
from tests.launch.tiny_experiment import (
    EVALUATIONS,
    EXPERIMENTS,
    ROOT,
    ROWS,
    TINY,
    plan,
    pretend_trained,
    settings,
)


def test_runs_are_in_the_order_of_what_they_cost_and_say(modules, places):
    experiment, runs = plan(modules, places)
    names = ["random-s0", "random-s1", "croc-s3", "dino-s3", "croc-s5", "dino-s5", "one-s0"]
    assert [run.name for run in runs] == names
    assert [run.training is None for run in runs] == [True] * 2 + [False] * 5
    assert [run.recipe.seed for run in runs] == [0, 1, 3, 3, 5, 5, 0]
    assert [run.recipe.objective.alpha for run in runs] == [1, 1, 1, 0, 1, 0, 1]
    assert all(run.recipe.data.folders == (str(places.images),) for run in runs)
    (evaluated,) = {run.recipe.evaluation.protocols for run in runs if run.recipe.evaluation.protocols}
    assert evaluated == (f"configs/eval/linear.py@{places.data / 'bands'}",)
    assert runs[2].recipe.evaluation.overrides[-1] == "dataset.val_part=reporting"
    assert [run.recipe.evaluation.every_epochs for run in runs] == [0, 0, 2, 0, 2, 0, 0]
    assert [run.name for run in modules.plan.make_runs(experiment, places, rows=["dino"])] == ["dino-s3", "dino-s5"]
    with pytest.raises(ValueError, match="--row=nine: choose among random, one, croc, dino"):
        modules.plan.make_runs(experiment, places, rows=["nine"])


def test_weights_without_training_are_random_ones_or_those_that_a_row_names(modules, places):
    weights = {"name": "dinov2", "label": "DINOv2", "train": False, "overrides": ("init_from.source=dinov2.pth",)}
    own = {"name": "own", "label": "own images", "overrides": ("data.folders=('a', 'b')",)}
    below = {"name": "below", "label": "images below --data", "images": "few"}
    _, runs = plan(modules, places, rows=(ROWS[0], weights, own, below))
    by_name = {run.name: run for run in runs}
    arguments = by_name["dinov2-s0"].scorings["bands"].arguments
    assert "--checkpoint=dinov2.pth" in arguments and not any("recipe" in one for one in arguments)
    arguments = by_name["random-s1"].scorings["bands"].arguments
    folder = places.workdir / "random-s1"
    assert {"--checkpoint=random", f"--config.recipe={folder}", "--config.dataset.val_part=reporting"} <= {*arguments}
    assert f"--checkpoint={places.workdir / 'own-s0'}" in by_name["own-s0"].scorings["bands"].arguments
    assert by_name["own-s0"].recipe.data.folders == ("a", "b")
    assert by_name["below-s0"].recipe.data.folders == (str(places.data / "few"),)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": ()}, "rows are empty"),
        ({"rows": ROWS[:1] * 2}, "rows are random, random: name each once"),
        ({"rows": ({"name": "a", "label": "b", "color": 1},)}, "Row got an unexpected keyword argument 'color'"),
        ({"tables": ({"title": "T", "rows": ("nine",)},)}, "the table 'T' names 'nine', which is no row"),
        ({"rows": ({"name": "a", "label": "b", "overrides": ("objective.tokenz=keys",)},)}, "did you mean tokens"),
        ({"rows": ({**ROWS[0], "seeds": (1, 1)},)}, r"the row 'random' has the seeds \(1, 1\): name each once"),
        ({"rows": ({**ROWS[0], "overrides": ("seed=1")},)}, r"overrides='seed=1' is one text: .* \('seed=1',\)"),
        (
            {"curve": "", "evaluations": ({**EVALUATIONS[0], "protocols": ("configs/eval/knn.py",)},)},
            "knn.py of 'bands' scores no half",
        ),
        ({"curve": "bands/knn"}, "curve='bands/knn': name a data set and a protocol"),
        ({"evaluations": ({**EVALUATIONS[0], "overrides": ("linear.epoch=1",)},)}, "did you mean epochs"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(modules, places, changes, words):
    with pytest.raises(ValueError, match=words):
        experiment, _ = plan(modules, places, **changes)
        modules.plan.find_columns(experiment, places)


@pytest.mark.parametrize("file", [file.stem for file in EXPERIMENTS if file.stem != "recipe"])
def test_every_experiment_of_the_repository_can_be_planned(modules, places, file):
    content = importlib.import_module("cli").load_config_file(f"configs/experiments/{file}.py").to_dict()
    experiment = modules.plan.read_experiment(content)
    runs = modules.plan.make_runs(experiment, places)
    assert len({run.name for run in runs}) == len(runs) == sum(len(row.seeds) for row in experiment.rows)
    columns = modules.plan.find_columns(experiment, places)
    assert {column.data for column in columns} == {one.name for one in experiment.evaluations}


def test_images_to_score_may_not_be_trained_on_under_whatever_name(modules, places):
    experiment, runs = plan(modules, places)
    columns = modules.plan.find_columns(experiment, places)
    modules.plan.check_data(runs, columns, places)
    # The half for tuning counts as well.
    (places.images / "copy.png").write_bytes((places.data / "bands/images/val/0.png").read_bytes())
    with pytest.raises(ValueError, match=r"images/val/0.png, an image to score, is .*copy.png of the images of pre"):
        modules.plan.check_data(runs, columns, places)


def test_data_that_cannot_be_used_are_named_before_anything_runs(modules, places):
    experiment, runs = plan(modules, places)
    columns = modules.plan.find_columns(experiment, places)
    with pytest.raises(
        ValueError, match="images of the row 'croc', by default those of --images: .*none does not exist"
    ):
        nowhere = places._replace(images=places.images / "none")
        modules.plan.check_data(plan(modules, nowhere)[1], columns, nowhere)
    # One image to score.
    for folder in ("images", "labels"):
        for split in ("train", "val"):
            (places.data / "few" / folder / split).mkdir(parents=True)
            for index in range(2 if split == "train" else 1):
                file = f"{folder}/{split}/{index}.png"
                (places.data / "few" / file).write_bytes((places.data / "bands" / file).read_bytes())
    experiment, runs = plan(modules, places, evaluations=({**EVALUATIONS[0], "root": "few"},))
    columns = modules.plan.find_columns(experiment, places)
    words = "data set 'bands', --part=reporting: val_part='reporting': 1 to score cannot be halved; choose 'all'"
    with pytest.raises(ValueError, match=words):
        modules.plan.check_data(runs, columns, places)
    (places.data / "few").rename(places.data / "gone")
    with pytest.raises(ValueError, match=f"--data={places.data}, data set 'bands', --part=reporting: no folder"):
        modules.plan.check_data(runs, columns, places)


def test_a_run_is_trained_if_its_last_step_is_there_with_these_settings_and_images(modules, places):
    experiment, runs = plan(modules, places)
    first, second = runs[2:4]
    assert runs[0].is_trained() and not first.is_trained() and first.total_steps == 0
    epochs = first.recipe.schedule.epochs
    pretend_trained(first, places, step=2 * epochs - 1)
    assert not first.is_trained() and first.total_steps == 2 * epochs
    pretend_trained(first, places, step=2 * epochs)
    assert first.is_trained()
    pretend_trained(second, places, step=2 * epochs)
    init_workdir(second.folder, first.recipe)
    with pytest.raises(ValueError, match="dino-s3 holds a run of other settings .*objective.alpha=1.0 there, 0.0 now"):
        second.is_trained()
    (places.images / "0.png").unlink()
    with pytest.raises(ValueError, match="croc-s3 holds a run with other images: 9 images then, 8 now"):
        modules.plan.check_data(runs, modules.plan.find_columns(experiment, places), places)


@pytest.mark.usefixtures("modules")
def test_what_is_printed_can_be_run_as_it_is(places, capsys):
    flags = [f"--workdir={places.workdir}", f"--images={places.images}", f"--data={places.data}"]
    run_program("experiment", "--config=configs/experiments/small.py", "--print", "--row=random", *flags)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * 4 and all(line.startswith("python launch/evaluate.py ") for line in lines)
    # Random weights are made by the settings in this folder.
    folder = places.workdir / "random-s1"
    assert sum(f" --config.recipe={folder} " in line for line in lines) == 4
    assert json.loads((folder / "config.json").read_text())["seed"] == 1


def test_the_content_has_what_all_runs_share_and_curves_of_the_part_that_is_scored(modules, places):
    experiment, runs = plan(modules, places)
    columns, croc = modules.plan.find_columns(experiment, places), runs[2]
    output = croc.scorings["bands"].output
    pretend_trained(croc, places, step=2 * croc.recipe.schedule.epochs)
    (croc.folder / "metrics.jsonl").write_text(
        '{"step": 2, "epoch": 1.0, "images_per_sec": 8.0, "linear_miou": 50.0}\n'
    )
    result = {"miou": 51.0, "step": 16, "seconds": {"total": 1.25}, "fingerprint": {"digest": "0f"}}
    for name in ("linear", "unsupervised"):
        (output / name).mkdir(parents=True)
        (output / name / RESULTS).write_text(json.dumps(result))
    croc.scorings["bands"].mark_done()

    def collect(part):
        return modules.results.collect(experiment, runs, columns, name="two", part=part)

    content = collect("reporting")
    (run,) = content["runs"]
    assert run["scores"]["bands"]["linear"] == {"score": 51.0, "step": 16, "seconds": 1.2, "digest": "0f"}
    assert (run["steps"], run["seconds"], run["curve"]) == (2, 2 * croc.recipe.schedule.batch_size / 8, [[1.0, 50.0]])
    assert collect("tuning")["runs"][0]["curve"] == []
    assert content["settings"]["schedule.epochs"] == croc.recipe.schedule.epochs
    _, other = plan(modules, places, rows=(*ROWS[:1], {**ROWS[1], "overrides": ("schedule.epochs=1000",)}))
    shared = modules.results.collect(experiment, other, columns, name="two", part="reporting")["settings"]
    assert "schedule.epochs" not in shared and shared["backbone.width"] == croc.recipe.backbone.width


@pytest.fixture
def folder(places, tmp_path):
    """A folder with an experiment of two rows on eight images."""
    (tmp_path / "recipe.py").write_text(
        "from croc_jax.training.config_dict import recipe_config\n\n\ndef get_config():\n    config = recipe_config()\n"
        f"    config.update_from_flattened_dict({TINY!r})\n    return config\n"
    )
    rows = (ROWS[0], {**ROWS[2], "seeds": (0,)})
    content = settings(base=str(tmp_path / "recipe.py"), rows=rows, jobs=2, curve_epochs=1)
    (tmp_path / "two.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({content!r})\n"
    )
    return tmp_path


@pytest.mark.slow
def test_two_rows_are_trained_and_scored_go_on_after_a_stop_and_are_not_done_again(folder):
    work = folder / "work"
    flags = [f"--config={folder / 'two.py'}", f"--workdir={work}", f"--images={folder / 'images'}"]
    flags += [f"--data={folder / 'data'}", f"--export={folder / 'export' / 'two.json'}"]
    command = [sys.executable, "launch/experiment.py", *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not (work / "croc-s0" / "config.json").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and "stopped by SIGTERM; to go on, run the same command" in text, text
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((work / "experiment.json").read_text())
    assert [(run["row"], run["seed"]) for run in content["runs"]] == [("random", 0), ("random", 1), ("croc", 0)]
    for run, name in itertools.product(content["runs"], ("linear", "unsupervised")):
        results = json.loads((work / f"{run['row']}-s{run['seed']}/reporting/bands/{name}/results.json").read_text())
        assert run["scores"]["bands"][name]["score"] == results["miou"]
        assert results["fingerprint"]["dataset"]["val_split"] == "val[reporting half]" and results["num_images"] == 2
    (curve,) = [run["curve"] for run in content["runs"] if run["curve"]]
    assert [epoch for epoch, _ in curve] == [1, 2, 3]
    # The last point is the score of the same weights.
    assert curve[-1][1] == content["runs"][2]["scores"]["bands"]["linear"]["score"]
    assert json.loads((folder / "export" / "two.json").read_text()) == content
    assert {file.name for file in (folder / "export").iterdir()} == {
        *("two.json", "two-curves.png", "two-scores-linear.png", "two-scores-unsupervised.png")
    }
    assert "| CrOC |" in (work / "experiment.md").read_text() and (work / "experiment.html").is_file()
    before = (work / "croc-s0" / "log.txt").read_text()
    again = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert again.returncode == 0 and (work / "croc-s0" / "log.txt").read_text() == before, again.stderr
