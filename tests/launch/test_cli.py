"""Several configs share one command line."""

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
    flags = ["--config.dataset.root=ROOT", "--config.linear.epochs=3", "--config.dataset.train_fraction=0.1"]
    configs = cli.parse_configs(["evaluate.py", *flags], [f"{LINEAR}:paper", RETRIEVAL, LINEAR, LINEAR])
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
def test_files_are_looked_for_before_they_are_read(cli, monkeypatch, argv, message):
    values = cli.flags.FlagValues()
    cli.flags.DEFINE_string("config", "", "", flag_values=values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    with pytest.raises(cli.UserError) as caught:
        cli._check_config_exists(argv, "config")
    assert str(caught.value) == message
    cli._check_config_exists([f"--config={LINEAR}"], "config")
    cli._check_config_exists(["--help"], "config")


# Without a library, as where its extra is not installed.
WITHOUT = """
import runpy, sys
sys.modules[{name!r}] = None
sys.path.insert(0, "launch")
sys.argv = ["report.py", *{flags!r}]
runpy.run_path("launch/report.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    "name, flags, explained", [("matplotlib", [], True), ("matplotlib", ["--traceback"], False), ("rich", [], False)]
)
def test_a_missing_extra_is_named_in_one_line(name, flags, explained):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(name=name, flags=flags)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    if explained:
        assert done.stderr == "error: matplotlib is not installed: pip install 'croc_jax[report]'\n"
    else:
        assert "Traceback" in done.stderr and "ModuleNotFoundError" in done.stderr
