"""A workdir belongs to one configuration, and to one running program."""

import dataclasses
import errno
import fcntl
import json
import logging
import os
import subprocess
import sys

import pytest

from croc_jax.runtime import workdir as workdir_module
from croc_jax.runtime.workdir import (
    WorkdirError,
    claim_workdir,
    differing_fields,
    init_workdir,
    lock_workdir,
    read_recipe,
)
from croc_jax.training.config import Recipe, RuntimeConfig, ScheduleConfig, recipe_to_dict

RECIPE = Recipe(seed=3)
HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(sys.argv[2])
file.flush()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def release(monkeypatch):
    """Releases what a test has locked, and does not wait for other programs."""
    held = {}
    monkeypatch.setattr(workdir_module, "_held", held)
    monkeypatch.setattr(workdir_module, "_SECONDS_TO_WAIT", 0.0)
    yield
    for file in held.values():
        file.close()


def test_the_configuration_is_written_in_full_and_may_come_back(tmp_path):
    workdir = tmp_path / "runs" / "new"
    for _ in range(2):
        claim_workdir(workdir, RECIPE)
        assert read_recipe(workdir / "config.json") == RECIPE
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(recipe_to_dict(RECIPE)))
    assert sorted(file.name for file in workdir.iterdir()) == ["config.json", "lock"]


def test_another_configuration_is_refused_with_old_and_new_values(tmp_path):
    init_workdir(tmp_path, RECIPE)
    with pytest.raises(WorkdirError) as refusal:
        init_workdir(tmp_path, dataclasses.replace(RECIPE, seed=4, schedule=ScheduleConfig(epochs=7)))
    message = str(refusal.value)
    assert "\n  seed: 3 there, 4 now" in message and "\n  schedule.epochs: 300 there, 7 now" in message
    assert "batch_size" not in message and str(tmp_path) in message
    assert read_recipe(tmp_path / "config.json") == RECIPE


def test_runtime_settings_may_change_and_are_updated(tmp_path):
    init_workdir(tmp_path, RECIPE)
    changed = dataclasses.replace(RECIPE, runtime=RuntimeConfig(num_workers=4))
    assert differing_fields(RECIPE, changed) == {}
    init_workdir(tmp_path, changed)
    assert read_recipe(tmp_path / "config.json") == changed


def test_a_setting_that_older_runs_lack_has_its_default(tmp_path):
    settings = recipe_to_dict(RECIPE)
    del settings["clustering"]["cost_scale"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    init_workdir(tmp_path, RECIPE)
    assert read_recipe(tmp_path / "config.json") == RECIPE


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"sead": 1}', '{"schedule": {"epochs": "many"}}'])
def test_an_unreadable_config_is_refused_by_name(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WorkdirError, match="config.json is no configuration"):
        init_workdir(tmp_path, RECIPE)
    assert (tmp_path / "config.json").read_text() == content


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WorkdirError, match="no config.json"):
        init_workdir(tmp_path, RECIPE)
    (tmp_path / "file").write_text("")
    for use in (lock_workdir, lambda folder: init_workdir(folder, RECIPE)):
        with pytest.raises(WorkdirError, match="cannot write to the workdir .*file/run: Not a directory"):
            use(tmp_path / "file" / "run")


def test_all_processes_need_the_same_configuration_and_the_same_disk(tmp_path, monkeypatch):
    texts = [json.dumps(recipe_to_dict(dataclasses.replace(RECIPE, seed=4)))]
    monkeypatch.setattr(workdir_module, "gather_texts", lambda text: [text, *texts])
    with pytest.raises(WorkdirError, match="^process 1 has another configuration: seed=4 there, 3 in process 0; give"):
        claim_workdir(tmp_path, RECIPE)
    texts.clear()
    monkeypatch.setattr(workdir_module.jax, "process_index", lambda: 1)
    monkeypatch.setattr(workdir_module, "_SECONDS_TO_SHOW", 0.0)
    with pytest.raises(WorkdirError, match="--workdir must be on a shared disk"):
        claim_workdir(tmp_path, RECIPE)


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), f"process 1 on {os.uname().nodename}\n"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_program_is_refused(tmp_path, holder, monkeypatch):
    with pytest.raises(WorkdirError, match=r"is in use by process 1 on .*: wait for it, or choose another --workdir$"):
        lock_workdir(tmp_path)
    monkeypatch.setattr(workdir_module, "_SECONDS_TO_LOSE_HOST", 0.0)
    monkeypatch.setattr(workdir_module.socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(WorkdirError, match=r"or, if that host is lost, remove .*/lock$"):
        lock_workdir(tmp_path)


def test_one_that_is_about_to_end_is_waited_for(tmp_path, holder, monkeypatch, caplog):
    monkeypatch.setattr(workdir_module, "_SECONDS_TO_WAIT", 60.0)
    monkeypatch.setattr(workdir_module.time, "sleep", lambda seconds: (holder.kill(), holder.wait()))
    with caplog.at_level(logging.WARNING):
        lock_workdir(tmp_path)
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
    (warning,) = caplog.messages
    assert "is in use by process 1 on" in warning and "waiting for it to end" in warning


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        lock_workdir(tmp_path)
    (warning,) = caplog.messages
    assert "no file locks" in warning and os.strerror(number) in warning
