"""Runs of the pre-training program that fail, in this process: what they leave, and what a corrected one finds."""

import runpy
import sys
from types import SimpleNamespace

import pytest
from absl import flags

from croc_jax.runtime import lock, memory
from croc_jax.runtime.workdir import read_recipe
from croc_jax.training import loop, step
from croc_jax.training.presets import PRESETS
from tests.data.tiny_images import encode
from tests.launch.program import on_command_line
from tests.launch.test_pretrain import OVERRIDES

# No network: what it takes to get to the first step.
TINY = OVERRIDES | {"head.num_prototypes": 4, "head.num_prototypes_dense": 4, "schedule.epochs": 2}


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(24):
        (tmp_path / "photos" / f"{index:02d}.png").write_bytes(encode(index % 20))
    return tmp_path / "photos"


@pytest.fixture
def start(monkeypatch, photos, tmp_path):
    """Starts the program in the workdir runs/new; what it would compile is left out."""
    compiled = SimpleNamespace(lower=lambda *_: SimpleNamespace(compile=lambda: None))
    monkeypatch.setattr(step, "make_train_step", lambda *_, **__: compiled)
    monkeypatch.setattr(memory, "measure", lambda *_: memory.Needs(0, 0, 0))
    monkeypatch.setattr(lock, "_held", {})
    monkeypatch.setattr(loop, "run_training", lambda *_, **__: loop.Outcome(None, 6, True))

    def start(*arguments, images=photos, config="configs/demo.py"):
        for file in lock._held.values():
            file.close()
        lock._held.clear()
        given = [*(f"--config.{name}={value}" for name, value in (TINY | {"data.folders": images}).items()), *arguments]
        folders = f"--config={config}", f"--workdir={tmp_path / 'runs' / 'new'}"
        with on_command_line("pretrain", *folders, "--num_processes=1", *given):
            main = runpy.run_path("launch/pretrain.py", run_name="pretrain")["main"]
            flags.FLAGS(sys.argv)
            main()

    return start


MISTAKES = {
    "--config.init_from.source=nowhere.pth": "init_from.source=nowhere.pth: there is no such file or folder",
    "--config.schedule.batch_size=48": "24 images cannot fill a batch of 48",
    "--config.runtime.mesh.fsdp=3": "does not give the 8 device",
    "--profile_steps=9:3": "expected 1 <= START < STOP",
    "--config.data.sources=tar:nowhere.tar": "no tar file",
    "--config.optimizer.base_lr=fast": "base_lr",
}


def test_mistakes_leave_nothing_and_a_run_keeps_its_images(start, photos, tmp_path, capsys):
    workdir, weights = tmp_path / "runs" / "new", tmp_path / "weights.pth"
    weights.write_text("no weights")
    for flag, message in (MISTAKES | {f"--config.init_from.source={weights}": "weights.pth"}).items():
        with pytest.raises((ValueError, FileNotFoundError, flags.Error, SystemExit), match=message):
            start(flag)
        assert not workdir.parent.exists(), flag
    start()
    assert "starts from scratch" in capsys.readouterr().out
    assert sorted(file.name for file in workdir.iterdir() if file.name != "tensorboard") == [
        *("checkpoints", "config.json", "images.json", "lock", "metrics.jsonl", "starts.jsonl"),
    ]

    row = '{"step": 1, "epoch": 0.3333}\n'
    (workdir / "metrics.jsonl").write_text(row)
    (photos / "new.png").write_bytes(encode(1))
    before = {file: file.read_bytes() for file in workdir.iterdir() if file.is_file()}
    with pytest.raises(ValueError, match=r"24 images then, 25 now \(1 new: 'new.png'\)\. Restore them, choose another"):
        start()
    assert {file: file.read_bytes() for file in before} == before
    capsys.readouterr()
    photos.rename(tmp_path / "scratch")
    start("--accept_changed_images", images=tmp_path / "scratch")
    output = capsys.readouterr().out
    assert f"data.folders was ('{photos}',), is ('{tmp_path}/scratch',); other images: 24 images then, 25 now" in output
    assert "as accepted, the run keeps its length, its schedules and its count of epochs (3 steps each)" in output


@pytest.mark.parametrize("error", [FloatingPointError("the loss is nan"), ValueError("wrong")])
def test_a_first_step_that_fails_leaves_nothing(start, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        (tmp_path / "runs" / "new" / "skipped.txt").write_text("a.png\tdamaged\n")
        raise error

    monkeypatch.setattr(loop, "run_training", fail)
    with pytest.raises((SystemExit, ValueError), match=str(error)):
        start()
    assert not (tmp_path / "runs").exists()


def test_a_collapse_ends_a_run_that_asks_for_it(start, monkeypatch, capsys):
    def collapse(*_, hooks, **__):
        row = {"loss": 1.0, "lr": 0.1, "num_clusters": 2.0, "images_per_sec": 1.0, "feature_rank": 1.0}
        rows = [row | {"step": step, "epoch": step / 3} for step in (4, 6, 8)]
        *before, reason = map(hooks.on_row, rows)
        assert before == ["", ""]
        return loop.Outcome(None, 9, False, reason)

    monkeypatch.setattr(loop, "run_training", collapse)
    changes = {"window": 2, "grace_steps": 0, "min_feature_rank": 100.0, "stop_on_collapse": True}
    # The warm-up ends at step 6.
    with pytest.raises(SystemExit, match="^error: step 9: training has collapsed, .*vary along one line"):
        start(*(f"--config.runtime.watchdog.{name}={value}" for name, value in changes.items()))
    assert "warning: step 8: the teacher's [CLS] tokens vary along one line" in capsys.readouterr().out


def test_a_preset_is_chosen_once_by_the_images_and_explained(start, photos, tmp_path, capsys):
    with pytest.raises(ValueError, match="preset=auto: 24 images, and presets are for 317 or more"):
        start(config="configs/presets.py:auto")
    for index in range(317):
        (photos / f"more-{index}.png").hardlink_to(photos / "00.png")
    start(config="configs/presets.py:auto")
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index("preset 1k, for 317 to 3,162 images: there are 341")
    choices = PRESETS["1k"].choices
    explained = dict(line.strip().split(" = ", 1) for line in lines[begin + 1 : begin + 1 + len(choices)])
    assert explained.keys() == choices.keys()
    assert explained["schedule.epochs"] == "2: given; the preset has 160"
    assert explained["objective.teacher_temp"] == f"0.025: {choices['objective.teacher_temp'].reason}"
    recipe = read_recipe(tmp_path / "runs" / "new" / "config.json")
    assert (recipe.preset, recipe.objective.teacher_temp, recipe.schedule.epochs) == ("1k", 0.025, 2)

    # Too few for any preset now, but the run has one.
    (tmp_path / "runs" / "new" / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.02}\n')
    for index in range(100):
        (photos / f"more-{index}.png").unlink()
    start("--accept_changed_images", config="configs/presets.py:auto")
    output = capsys.readouterr().out
    assert "preset 1k, for 317 to 3,162 images: there are 241\n" in output and "teacher_temp" not in output
