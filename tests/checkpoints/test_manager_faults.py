"""Saves that fail, folders that cannot be written, and what a kill leaves: older states stay, newer ones are saved."""

import logging
import os
import shutil
import threading
import time
from types import SimpleNamespace

import jax
import pytest

from croc_jax.checkpoints import Checkpointer, CheckpointError, aftermath, folder, manager
from croc_jax.checkpoints.manager import SaveError
from croc_jax.checkpoints.manifest import DamagedError
from croc_jax.checkpoints.restore import read_newest
from tests.checkpoints.test_manager import RECIPE, assert_same, kept, restore, save, state_at
from tests.full_disk import no_file_beyond


def finished(workdir):
    """As `kept`, but where saves fail: what is written late, behind a failure, lies in folders with longer names."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_what_a_kill_left_behind_is_named_once_ignored_and_removed(tmp_path, caplog):
    save(tmp_path, [3])
    for name in ("9.orbax-checkpoint-tmp", "12.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name / "state").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        assert_same(restore(tmp_path), state_at(3))
        assert_same(restore(tmp_path), state_at(3))
    assert caplog.messages == [f"skipping step {step}: its save was cut short" for step in (9, 12)]
    assert kept(tmp_path) == [3]


def test_a_disk_without_room_is_one_line_and_leaves_the_older_state(tmp_path, monkeypatch):
    saver = Checkpointer(tmp_path, RECIPE)
    saver.save(3, state_at(3), wait=True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**19))
        with pytest.raises(SaveError, match=r"^step 6 is not saved: its state takes 1.0 MiB, but 0.5 MiB are"):
            saver.save(6, state_at(6))
    assert kept(tmp_path) == [3] and saver.latest_step() == 3
    saver.save(9, state_at(9), wait=True)
    saver.close()
    assert_same(restore(tmp_path), state_at(9))


@pytest.mark.parametrize("wait", [True, False])
def test_a_disk_that_refuses_a_state_midway_leaves_the_older_one(tmp_path, wait, caplog, capfd):
    saver = Checkpointer(tmp_path, RECIPE)
    saver.save(3, state_at(3), wait=True)
    with caplog.at_level(logging.WARNING), no_file_beyond(1000):
        if wait:
            with pytest.raises(
                SaveError, match=r"^the state of step 6 could not be saved: \[Errno 27\] File too large$"
            ):
                saver.save(6, state_at(6), wait=True)
        else:
            saver.save(6, state_at(6))
            assert saver.latest_path() == tmp_path / "checkpoints" / "3"
        assert finished(tmp_path) == [3] and saver.latest_step() == 3
    saver.save(8, state_at(8), wait=True)
    saver.close()
    assert finished(tmp_path) == [3, 8]
    # Nothing but our own line, of the many that Orbax has.
    assert caplog.messages == ([] if wait else ["the state of step 6 could not be saved: [Errno 27] File too large"])
    assert "Traceback" not in capfd.readouterr().err
    assert_same(restore(tmp_path), state_at(8))


@pytest.mark.parametrize("step", [6, 20])
def test_a_save_that_failed_in_the_background_does_not_cost_the_next_one(tmp_path, step, caplog):
    saver = Checkpointer(tmp_path, RECIPE)
    with no_file_beyond(1000):
        saver.save(6, state_at(6))
        while saver._manager.is_saving_in_progress():
            time.sleep(0.01)
    with caplog.at_level(logging.WARNING):
        saver.save(step, state_at(step), wait=True)
    assert caplog.messages == ["the state of step 6 could not be saved: [Errno 27] File too large"]
    assert saver.latest_path() == tmp_path / "checkpoints" / str(step)
    saver.close()
    assert_same(restore(tmp_path), state_at(step))


def test_a_backbone_that_the_disk_refuses_is_one_line(tmp_path):
    with no_file_beyond(1000), pytest.raises(CheckpointError, match="^the state of step 3 could not be saved: "):
        manager.save_backbone(state_at(3).teacher["backbone"], RECIPE, step=3, workdir=tmp_path)


def test_a_save_that_failed_in_the_background_hinders_no_close(tmp_path, caplog):
    saver = Checkpointer(tmp_path, RECIPE)
    with caplog.at_level(logging.WARNING), no_file_beyond(1000):
        saver.save(6, state_at(6))
        saver.close()
    assert caplog.messages == ["the state of step 6 could not be saved: [Errno 27] File too large"]


def test_a_folder_that_cannot_be_written_is_told_before_a_run_trains(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(
        CheckpointError, match=r"^no checkpoint could be saved: cannot write to .*checkpoints: File exi"
    ):
        Checkpointer(tmp_path, RECIPE)


def test_a_folder_that_turns_read_only_is_told_before_orbax_meets_it(tmp_path, monkeypatch):
    saver = Checkpointer(tmp_path, RECIPE)
    saver.save(3, state_at(3), wait=True)
    with monkeypatch.context() as patch:
        patch.setattr(saver._manager, "save", pytest.fail)
        patch.setattr(manager, "probe", lambda folder: f"cannot write to {folder}: Read-only file system")
        with pytest.raises(
            SaveError, match=r"^step 6 is not saved: cannot write to .*/checkpoints: Read-only file sys"
        ):
            saver.save(6, state_at(6), wait=True)
        assert saver.latest_path() == tmp_path / "checkpoints" / "3"
    saver.save(9, state_at(9), wait=True)
    shutil.rmtree(tmp_path / "checkpoints")
    assert saver.latest_path() is None
    saver.close()


def test_what_one_process_cannot_write_none_saves(tmp_path, monkeypatch):
    saver = Checkpointer(tmp_path, RECIPE)
    with monkeypatch.context() as patch:
        patch.setattr(manager, "gather_texts", lambda text: [text, "cannot write to its disk"])
        with pytest.raises(SaveError, match=r"^step 6 is not saved: cannot write to its disk$"):
            saver.save(6, state_at(6))
        with pytest.raises(CheckpointError, match=r"^no checkpoint could be saved: cannot write to its disk$"):
            Checkpointer(tmp_path, RECIPE)
    saver.close()
    assert kept(tmp_path) == []


def test_only_one_process_names_damage(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(jax, "process_index", lambda: 1)

    def read(place):
        raise DamagedError("bits")

    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError, match="damaged: .*6; no whole one is left"):
        read_newest([tmp_path / "6"], read)
    assert caplog.messages == []


def test_a_probe_leaves_nothing_and_may_find_the_traces_of_another(tmp_path):
    place = tmp_path / "run" / "checkpoints"
    (place / "probe-0").mkdir(parents=True)
    assert folder.probe(place) == "" and list(place.iterdir()) == []


class Writer(threading.Thread):
    """Waits, as Orbax's do, for a part of the save that has failed."""

    def __init__(self):
        super().__init__()
        self.done = threading.Event()

    def run(self):
        self.done.wait(60)


@pytest.mark.parametrize(("code", "status", "said"), [("error: full", 1, "error: full\n"), (75, 75, ""), (None, 0, "")])
def test_a_program_does_not_wait_for_the_writers_of_a_failed_save(code, status, said, monkeypatch, capsys):
    monkeypatch.setattr(aftermath, "_SECONDS_TO_JOIN", 0.1)
    monkeypatch.setattr(Writer, "__module__", "orbax.checkpoint.futures")
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    writer = Writer()
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread(), writer])
    writer.start()
    with aftermath.leaving_writers_behind():
        raise SystemExit(code)
    assert ended == [status] and capsys.readouterr().err == said
    writer.done.set()
    # One that ends by itself is waited for, and the program ends as usual.
    with pytest.raises(SystemExit) as end, aftermath.leaving_writers_behind():
        raise SystemExit(code)
    assert end.value.code == code and ended == [status] and not writer.is_alive()


@pytest.mark.parametrize(
    ("error", "status", "last"),
    [(OSError("disk gone"), 1, "OSError: disk gone"), (KeyboardInterrupt(), 130, "KeyboardInterrupt")],
)
def test_no_other_end_waits_for_the_writers_either(error, status, last, monkeypatch, capsys):
    monkeypatch.setattr(aftermath, "_SECONDS_TO_JOIN", 0.1)
    monkeypatch.setattr(Writer, "__module__", "orbax.checkpoint.futures")
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    writer = Writer()
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread(), writer])
    writer.start()
    with aftermath.leaving_writers_behind():
        raise error
    said = capsys.readouterr().err.splitlines()
    assert ended == [status] and said[0].startswith("Traceback") and said[-1] == last
    writer.done.set()
    with pytest.raises(type(error)), aftermath.leaving_writers_behind():
        raise error


def test_leftovers_that_cannot_be_removed_yet_hinder_no_later_save(tmp_path, monkeypatch):
    torn = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    (torn / "state").mkdir(parents=True)
    remove = shutil.rmtree

    def remove_while_written(folder, ignore_errors=False, **options):
        """Fails for the leftovers, as it does where another thread puts files into them meanwhile."""
        if str(folder) != str(torn):
            remove(folder, ignore_errors=ignore_errors, **options)
        elif not ignore_errors:
            raise OSError(39, "Directory not empty", "array_metadatas")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_while_written)
        saver = Checkpointer(tmp_path, RECIPE)
        saver.save(8, state_at(8), wait=True)
        saver.close()
    assert torn.exists() and finished(tmp_path) == [8]
    assert_same(restore(tmp_path), state_at(8))
    assert not torn.exists()
