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
        (["--config=configs"], "--config=configs: there is no such file"),
    ],
)
def test_config_files_must_exist(cli, monkeypatch, argv, message):
    values = cli.flags.FlagValues()
    cli.flags.DEFINE_string("config", "", "", flag_values=values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    with pytest.raises(cli.UserError) as caught:
        cli._check_config_files(argv, "config")
    assert str(caught.value) == message
    cli._check_config_files([f"--config={LINEAR}"], "config")
    cli._check_config_files(["--help"], "config")


@pytest.mark.parametrize(
    ("content", "variant", "message"),
    [
        ("def get_config(:", "", "SyntaxError: invalid syntax (line 1)"),
        ("import no_such_package", "", "ModuleNotFoundError: No module named 'no_such_package' (line 1)"),
        ("x = 1", "", "has no function get_config: name a file such as those in configs/"),
        ("def get_config():\n    return 3", "", "get_config returns a int, not a ConfigDict"),
        ("def get_config():\n    raise ValueError('no')", "", "no (line 2)"),
        ("def get_config():\n    return 3", "small", "this file has no variants: leave out what follows the colon"),
        ("\0", "", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_errors_of_a_config_file_are_one_line_with_their_place(cli, tmp_path, content, variant, message):
    source = f"{tmp_path / 'config.py'}{f':{variant}' if variant else ''}"
    (tmp_path / "config.py").write_text(content)
    with pytest.raises(cli.UserError) as caught:
        cli.parse_config(source, [])
    assert str(caught.value) == f"--config={source}: {message}"


def test_a_mistake_ends_the_program_with_one_line(tmp_path):
    command = [sys.executable, ROOT / "launch" / "pretrain.py", "--config=~/demo.py", "--config.schedule.epoch=3"]
    (tmp_path / "demo.py").symlink_to(ROOT / "configs" / "demo.py")
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "--workdir=run"], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: unknown field epoch in --config.schedule.epoch=3; did you mean epochs?\n"
    assert not (tmp_path / "run").exists()
