"""A workdir belongs to one recipe."""

import dataclasses
import json
import logging
import os
import stat

import pytest

from croc_jax.atomic_write import atomic_write
from croc_jax.runtime import workdir as workdir_module
from croc_jax.runtime.workdir import (
    WorkdirError,
    check_agreed,
    check_shared,
    differing_fields,
    init_workdir,
    read_recipe,
)
from croc_jax.training.config import Recipe, RuntimeConfig, ScheduleConfig, recipe_to_dict

RECIPE = Recipe(seed=3)


def test_the_recipe_is_written_in_full_and_read_back(tmp_path):
    workdir = tmp_path / "runs" / "new"
    init_workdir(workdir, RECIPE)
    assert read_recipe(workdir / "config.json") == RECIPE
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(recipe_to_dict(RECIPE)))
    assert [file.name for file in workdir.iterdir()] == ["config.json"]


def test_the_same_recipe_may_come_back(tmp_path):
    init_workdir(tmp_path, RECIPE)
    init_workdir(tmp_path, RECIPE)
    assert read_recipe(tmp_path / "config.json") == RECIPE


def test_another_recipe_is_refused_with_old_and_new_values(tmp_path):
    init_workdir(tmp_path, RECIPE)
    changed = dataclasses.replace(RECIPE, seed=4, schedule=ScheduleConfig(epochs=7))
    with pytest.raises(WorkdirError) as refusal:
        init_workdir(tmp_path, changed)
    message = str(refusal.value)
    assert "seed: 3 there, 4 now" in message and "schedule.epochs: 300 there, 7 now" in message
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


def test_a_config_that_a_crash_has_emptied_is_written_anew(tmp_path, caplog):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("")
    with caplog.at_level(logging.WARNING):
        init_workdir(tmp_path, RECIPE)
    assert read_recipe(tmp_path / "config.json") == RECIPE
    (warning,) = caplog.messages
    assert warning == f"{tmp_path}/config.json is empty, as a crash leaves it: it gets the settings of this command"


def test_an_emptied_config_takes_no_other_recipe_than_that_of_the_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("")
    with pytest.raises(WorkdirError, match="another configuration.*\n  seed: 4 there, 3 now"):
        init_workdir(tmp_path, RECIPE, find_saved=lambda: dataclasses.replace(RECIPE, seed=4))
    assert (tmp_path / "config.json").read_text() == ""
    init_workdir(tmp_path, RECIPE, find_saved=lambda: RECIPE)
    assert read_recipe(tmp_path / "config.json") == RECIPE


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    synced = []

    def note(descriptor):
        held = os.fstat(descriptor)
        synced.append("folder" if stat.S_ISDIR(held.st_mode) else held.st_size)
        # The old one is there until the new one is safe.
        assert (tmp_path / "file").read_bytes() == (b"new" if synced[-1] == "folder" else b"old")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", note)
    atomic_write(tmp_path / "file", b"new")
    assert synced == [3, "folder"] and [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", ["{", "[1]", '{"sead": 1}', '{"schedule": {"epochs": "many"}}'])
def test_a_strange_config_is_refused_by_name(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WorkdirError, match="config.json is no recipe"):
        init_workdir(tmp_path, RECIPE)
    assert (tmp_path / "config.json").read_text() == content


def test_checkpoints_of_an_unknown_recipe_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WorkdirError, match="no config.json"):
        init_workdir(tmp_path, RECIPE)


def test_a_path_that_cannot_be_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot write to the workdir .*file"):
        init_workdir(tmp_path / "file" / "run", RECIPE)


def test_another_process_needs_the_same_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_module, "_SECONDS_TO_SHOW", 0.0)
    with pytest.raises(WorkdirError, match="config.json, written by process 0, is not here: --workdir must be on a"):
        check_shared(tmp_path)
    init_workdir(tmp_path, RECIPE)
    check_shared(tmp_path)


def test_every_process_needs_the_same_recipe_with_its_runtime_settings(monkeypatch):
    def join(*others):
        """Makes this process one of several with other recipes."""
        texts = [json.dumps(recipe_to_dict(other)) for other in others]
        monkeypatch.setattr(workdir_module, "gather_texts", lambda text: [text, *texts])

    join(RECIPE, RECIPE)
    check_agreed(RECIPE)
    join(RECIPE, dataclasses.replace(RECIPE, seed=4, runtime=RuntimeConfig(keep_every_epochs=7)))
    with pytest.raises(WorkdirError) as refusal:
        check_agreed(RECIPE)
    kept = RECIPE.runtime.keep_every_epochs
    assert str(refusal.value) == (
        f"process 2 has another recipe than process 0: runtime.keep_every_epochs=7 there and {kept} in process 0, "
        "seed=4 there and 3 in process 0; give all the same flags"
    )
