"""The command line that the programs share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINEAR, RETRIEVAL = (str(ROOT / "configs" / "eval" / f"{name}.py") for name in ("linear", "retrieval"))


@pytest.fixture
def cli(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "launch")
    import cli

    return cli


def test_an_override_goes_to_each_config_that_has_the_field(cli):
    overrides = ["--config.dataset.root=ROOT", "--config.linear.epochs=3", "--config.dataset.train_fraction=0.1"]
    configs = cli.parse_configs(["evaluate.py", *overrides], [f"{LINEAR}:paper", RETRIEVAL, LINEAR, LINEAR])
    assert list(configs) == ["linear-paper", "retrieval", "linear", "linear.2"]
    assert {config.dataset.root for config in configs.values()} == {"ROOT"}
    assert {config.dataset.train_fraction for config in configs.values()} == {0.1}
    assert [config.linear.epochs for config in configs.values() if "linear" in config] == [3, 3, 3]
    assert configs["linear-paper"].linear.image_size == (448, 448)
    assert configs["retrieval"].retrieval.num_neighbors == 30


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.linear.epoch=3", ("unknown field epoch", "did you mean epochs?")),
        ("--config.linear.epochs=many", ("epochs", "many")),
    ],
)
def test_an_override_that_no_config_takes_is_a_mistake(cli, flag, words):
    with pytest.raises(cli.UserError) as caught:
        cli.parse_configs(["evaluate.py", flag], [LINEAR, RETRIEVAL])
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no configuration: add --config=configs/NAME.py"),
        (["--config", "a.py"], "--config=a.py: there is no such file"),
        (["--config=b.py:x"], "--config=b.py:x: there is no such file"),
    ],
)
def test_config_files_must_exist(cli, monkeypatch, argv, message):
    values = cli.flags.FlagValues()
    cli.flags.DEFINE_string("config", "", "", flag_values=values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    with pytest.raises(cli.UserError) as caught:
        cli._check_config_exists(argv, "config")
    assert str(caught.value) == message
    cli._check_config_exists([f"--config={LINEAR}"], "config")
    cli._check_config_exists(["--help"], "config")


def test_a_missing_extra_is_named_in_one_line(cli, capsys, monkeypatch):
    def explain(name):
        error = ModuleNotFoundError(f"No module named {name!r}", name=name)
        cli.explain_missing(ModuleNotFoundError, error, None)
        return capsys.readouterr().err

    assert sys.excepthook is cli.explain_missing
    assert explain("matplotlib.figure") == "error: matplotlib is not installed: pip install 'croc_jax[report]'\n"
    assert "ModuleNotFoundError: No module named 'rich'" in explain("rich")
    monkeypatch.setattr(sys, "argv", ["report.py", "--traceback"])
    assert "ModuleNotFoundError" in explain("matplotlib")


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        # Images on the command line replace those of the config file, in whichever of its fields these are.
        ("croc_vits16_coco", ["--config.data.folders=nowhere"], "the image folder nowhere does not exist"),
        ("camvid", ["--config.data.sources=list:nowhere.txt"], "nowhere.txt"),
        ("demo", ["--config.schedule.epoch=3"], "--config.schedule.epoch=3; did you mean epochs?"),
    ],
)
def test_mistakes_end_the_program_with_one_line(tmp_path, config, arguments, message):
    command = [sys.executable, ROOT / "launch" / "pretrain.py", f"--config={ROOT}/configs/{config}.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}/run", *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
