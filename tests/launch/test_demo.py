"""The demo's plan, and the order of what it does; the programs that it calls have tests of their own."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from PIL import Image

from croc_jax.evaluation import reuse

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("images", "workdir")
# Of configs/demo.py, for 400 images.
EPOCHS = {
    "schedule.epochs": 28,
    "optimizer.warmup_epochs": 2,
    "optimizer.freeze_last_layer_epochs": 1,
    "objective.warmup_teacher_temp_epochs": 10,
}

# As the paper has it, whatever scenes need.
COLORS = {"data.photometric.hue": 0.1, "data.photometric.saturation": 0.2}


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
    """Four training images and two for validation, and their labels."""
    root = tmp_path / "labeled"
    for split, count in (("train", 4), ("val", 2)):
        fill(root / "images" / split, count)
        fill(root / "labels" / split, count)
    return root


def fill(folder, count):
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(np.full((4, 6, 3), index, np.uint8)).save(folder / f"{index}.png")
    return folder


def test_make_plan_trains_on_a_plain_folder_without_scores(demo, photos, monkeypatch):
    plan = demo.make_plan(str(photos), "")
    # A 20th of the images is 20 times the epochs.
    changes = {"data.folders": str(photos)} | COLORS | {name: 20 * epochs for name, epochs in EPOCHS.items()}
    assert plan == (photos, False, ROOT / "runs" / f"demo-{photos.name}", changes)
    monkeypatch.chdir(photos.parent)
    assert demo.make_plan(photos.name, "") == plan
    with pytest.raises(demo.UserError, match="--images=nowhere: there is no such folder"):
        demo.make_plan("nowhere", "")


@pytest.mark.parametrize("missing", ["", "images/train", "labels/val"])
def test_make_plan_trains_on_the_training_images_of_a_labeled_folder(demo, labeled, tmp_path, missing):
    if missing:
        (labeled / missing).rename(labeled / missing.replace("/", "/other-"))
    plan = demo.make_plan(str(labeled), str(tmp_path / "run"))
    assert (plan.folder, plan.labeled, plan.workdir) == (labeled, not missing, tmp_path / "run")
    assert plan.changes["data.folders"] == str(labeled if missing else labeled / "images" / "train")
    if not missing:
        assert (plan.changes["schedule.epochs"], plan.changes["schedule.batch_size"]) == (1400, 4)


def test_scaled_schedule(demo):
    for num_images, expected in {400: (28, 2, 1, 10), 800: (14, 1, 0, 5), 1_000_000: (1, 0, 0, 0)}.items():
        assert demo.scaled_schedule(num_images) == dict(zip(EPOCHS, expected, strict=True))


@pytest.mark.parametrize("num_images", [2, 5, 7])
def test_less_photos_than_a_batch_lower_it_and_take_as_many_steps(demo, tmp_path, capsys, start, num_images):
    ((_, given),) = start(fill(tmp_path / "few", num_images))
    assert given["config.schedule.batch_size"] == str(num_images) and given["config.schedule.epochs"] == "1400"
    assert f"batches hold {num_images} images" in capsys.readouterr().out


def test_a_single_photo_is_a_mistake(demo, tmp_path):
    with pytest.raises(demo.UserError, match="holds 1 photo: training needs at least 2"):
        demo.make_plan(fill(tmp_path / "one", 1), None)


@pytest.fixture
def start(demo, monkeypatch, tmp_path):
    """Starts the demo with programs that only leave what they would leave; returns the calls."""

    def start(images, *, steps=75):
        calls = []

        def call(program, *arguments):
            given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
            calls.append((program, given))
            if program == "launch/pretrain.py":
                (tmp_path / "run").mkdir(exist_ok=True)
                (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": steps}) + "\n")
                (tmp_path / "run" / "config.json").write_text(json.dumps(given["config.data.folders"]))
            elif program == "launch/evaluate.py":
                output, step = Path(given["output"]), 0 if given["checkpoint"] == "random" else steps
                output.mkdir(parents=True, exist_ok=True)
                (output / "results.json").write_text(json.dumps({"step": step}))
            else:
                fill(demo.ROOT / "data" / "scenes" / "images" / "train", 2)
                fill(demo.ROOT / "data" / "scenes" / "labels" / "val", 1)

        monkeypatch.setattr(demo, "call", call)
        monkeypatch.setattr(demo, "build_report", lambda workdir: workdir / "report.html")
        monkeypatch.setattr(demo, "IMAGES", SimpleNamespace(value=str(images)))
        monkeypatch.setattr(demo, "WORKDIR", SimpleNamespace(value=str(tmp_path / "run")))
        demo.main()
        return calls

    return start


def programs(calls):
    return [program.removeprefix("launch/").removesuffix(".py") for program, _ in calls]


def test_main_trains_on_photos_and_reports(start, photos, tmp_path, capsys):
    ((program, given),) = start(photos)
    assert program == "launch/pretrain.py" and given["workdir"] == str(tmp_path / "run")
    assert given["config.data.folders"] == repr(str(photos)) and given["config.schedule.epochs"] == "560"
    assert str(tmp_path / "run" / "report.html") in capsys.readouterr().out


def test_main_scores_labeled_images_before_and_after_once(start, labeled, tmp_path):
    calls = start(labeled)
    assert programs(calls) == ["evaluate", "pretrain", "evaluate"]
    for (_, given), checkpoint, name in zip(calls[::2], ("random", tmp_path / "run"), ("before", "after"), strict=True):
        assert given["checkpoint"] == str(checkpoint) and given["output"] == str(tmp_path / "run" / name)
        assert given["config.dataset.root"] == str(labeled)
    assert programs(start(labeled)) == ["pretrain"]
    assert programs(start(labeled, steps=150)) == ["pretrain", "evaluate"]
    # Other labels of the same number have another score, and so has a run that began with other settings.
    (labeled / "labels" / "val" / "0.png").write_bytes(b"other labels")
    reuse._brief.cache_clear()
    assert programs(start(labeled, steps=150)) == ["evaluate", "pretrain", "evaluate"]
    assert programs(start(labeled, steps=150)) == ["pretrain"]


def test_main_generates_scenes_without_images(demo, start, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    calls = start("")
    scenes = tmp_path / "data" / "scenes"
    assert calls[0] == ("examples/scenes", {"output": str(scenes), "num_train": "400"})
    assert programs(calls[1:]) == ["evaluate", "pretrain", "evaluate"]
    # The number of epochs is that of the config file.
    assert {name: value for name, value in calls[2][1].items() if "." in name} == {
        "config.data.folders": repr(str(scenes / "images" / "train"))
    }


def test_call_exits_with_the_status_of_a_program_that_fails(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    (tmp_path / "program.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    demo.call("program.py", "0")
    with pytest.raises(SystemExit) as end:
        demo.call("program.py", "3")
    assert end.value.code == 3
