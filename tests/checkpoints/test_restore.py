"""A corrupt checkpoint is passed over, a file system that fails is an error, and neither changes anything on disk."""

import errno
import logging
import os
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from croc_jax.checkpoints import Checkpointer, CheckpointError, manager, restore, restore_backbone
from croc_jax.checkpoints.manifest import CorruptError, _digest, make_manifest
from tests.checkpoints.test_manager import RECIPE, assert_same, kept, save, shapes, state_at


def snapshot(folder):
    """Returns the content of every file."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def change_arrays(folder, change):
    """Changes all files of arrays: which of them the index refers to depends on how fast each was written."""
    for path in (folder / "state" / "ocdbt.process_0" / "d").iterdir():
        change(path)


def flip_bits(path, seed=0):
    rng, octets = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(3):
        octets[rng.randrange(len(octets))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(octets))


def remove_files(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


CORRUPTION = {
    "flipped bits in the arrays": lambda folder: change_arrays(folder, flip_bits),
    "flipped bits in the index": lambda folder: flip_bits(largest_file(folder / "state" / "d")),
    "flipped bits in the metadata": lambda folder: flip_bits(folder / "metadata" / "metadata"),
    "arrays cut short": lambda folder: change_arrays(folder, lambda file: file.write_bytes(b"x" * 100)),
    "arrays of zeros": lambda folder: change_arrays(folder, lambda file: file.write_bytes(bytes(file.stat().st_size))),
    "metadata cut short": lambda folder: (folder / "metadata" / "metadata").write_bytes(b'{"step"'),
    "index emptied": lambda folder: (folder / "state" / "manifest.ocdbt").write_bytes(b""),
    "no arrays": lambda folder: change_arrays(folder, Path.unlink),
    "no metadata": lambda folder: (folder / "metadata" / "metadata").unlink(),
    "no files": remove_files,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A workdir with two checkpoints; not to be changed."""
    workdir = tmp_path_factory.mktemp("two")
    save(workdir, [3, 6])
    return workdir


@pytest.fixture
def workdir(two, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(two, tmp_path / "run"))


@pytest.mark.parametrize("kind", CORRUPTION)
def test_a_corrupt_checkpoint_is_passed_over_and_stays(workdir, kind, caplog, capfd):
    corrupt = workdir / "checkpoints" / "6"
    CORRUPTION[kind](corrupt)
    before = snapshot(workdir)
    saver = Checkpointer(workdir, RECIPE)
    with caplog.at_level(logging.WARNING):
        assert_same(saver.restore_latest(shapes()), state_at(3))
    (message,) = (text for text in caplog.messages if "corrupt checkpoint" in text)
    assert message.startswith(f"skipping the corrupt checkpoint {corrupt}: ")
    assert "Traceback" not in capfd.readouterr().err
    assert saver.latest_step() == 3 and saver.latest_path() == workdir / "checkpoints" / "3"
    saver.close()
    assert snapshot(workdir) == before


def test_a_corrupt_checkpoint_is_overwritten_when_its_step_is_saved_again(workdir):
    change_arrays(workdir / "checkpoints" / "6", flip_bits)
    saver = Checkpointer(workdir, RECIPE)
    saver.restore_latest(shapes())
    # It takes no place of a whole one.
    for step in (4, 5):
        saver.save(step, state_at(step), wait=True)
    assert kept(workdir) == [4, 5, 6] and saver.latest_step() == 5
    saver.save(6, state_at(7), wait=True)
    assert kept(workdir) == [5, 6] and saver.latest_step() == 6
    saver.close()
    saver = Checkpointer(workdir, RECIPE)
    assert_same(saver.restore_latest(shapes()), state_at(7))
    saver.close()


def test_if_all_are_corrupt_a_run_does_not_silently_start_again(workdir):
    for path in (workdir / "checkpoints").iterdir():
        remove_files(path)
    saver = Checkpointer(workdir, RECIPE)
    with pytest.raises(CheckpointError, match=r"corrupt: .*checkpoints/6.*checkpoints/3; no whole checkpoint is left"):
        saver.restore_latest(shapes())
    saver.close()
    assert kept(workdir) == [3, 6]


# What TensorStore says where open or read fails, as recorded from version 0.1.86.
TENSORSTORE = {
    errno.EIO: 'UNKNOWN: Error opening "zarr" driver: Error reading local file "d/41": Failed to read from file: '
    "Failed to read 118 bytes from file at offset 0: Input/output error [tensorstore_spec='{\\\"context\\\":{}}']",
    errno.ESTALE: 'ABORTED: Error opening "zarr" driver: Error reading local file "d/41": Failed to open: "d/41": '
    "Stale file handle [os_error_code='116'] [tensorstore_spec='{}']",
    errno.EACCES: 'PERMISSION_DENIED: Error opening "zarr" driver: Failed to open: "d/41": Permission denied '
    "[os_error_code='13']",
    # Its status code is that of a missing file.
    errno.ENXIO: 'NOT_FOUND: Error opening "zarr" driver: Failed to open: "d/41": No such device or address',
}


@pytest.mark.parametrize("code", TENSORSTORE)
@pytest.mark.parametrize("where", ["metadata", "arrays"])
def test_an_error_of_the_file_system_is_raised_and_changes_nothing(two, monkeypatch, caplog, code, where):
    before = snapshot(two)
    saver = Checkpointer(two, RECIPE)

    def fail(*args, **options):
        raise OSError(code, os.strerror(code)) if where == "metadata" else ValueError(TENSORSTORE[code])

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(*((Path, "read_bytes") if where == "metadata" else (restore.tensorstore, "open")), fail)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            saver.restore_latest(shapes())
        with pytest.raises(OSError, match=os.strerror(code)):
            restore_backbone(two)
    assert caught.value.errno == code
    assert caplog.messages == [] and snapshot(two) == before
    assert_same(saver.restore_latest(shapes()), state_at(6))
    saver.close()


def test_what_is_not_known_is_raised(two, monkeypatch):
    saver = Checkpointer(two, RECIPE)
    for error in (ValueError("UNKNOWN: something else"), TypeError("open() takes no argument")):

        def fail(*args, error=error, **options):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(restore.tensorstore, "open", fail)
            with pytest.raises(type(error)) as caught:
                saver.restore_latest(shapes())
        assert caught.value is error
    saver.close()


def test_a_lost_mount_is_no_corruption(workdir):
    saver = Checkpointer(workdir, RECIPE)
    (workdir / "checkpoints").rename(workdir / "elsewhere")
    with pytest.raises(FileNotFoundError, match="vanished while it was read"):
        saver.restore_latest(shapes())
    (workdir / "elsewhere").rename(workdir / "checkpoints")
    saver.close()


@pytest.mark.parametrize(
    ("statuses", "error", "message"),
    [([0, 2], OSError, "process 1 could not read"), ([0, 1], CorruptError, "corrupt for process 1")],
)
def test_all_processes_agree_on_a_failure(two, monkeypatch, statuses, error, message):
    monkeypatch.setattr(restore.multihost_utils, "process_allgather", lambda status: np.array(statuses))
    with pytest.raises(error, match=message):
        restore.restore_state(two / "checkpoints" / "6", shapes())


def test_only_process_0_warns(two, monkeypatch, caplog):
    saver = Checkpointer(two, RECIPE)
    monkeypatch.setattr(manager, "restore_state", lambda *args: (_ for _ in ()).throw(CorruptError("bits")))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError, match="corrupt: .*6.*3; no whole"):
        saver.restore_latest(shapes())
    assert caplog.messages == []
    monkeypatch.undo()
    saver.close()


def test_restore_backbone_takes_a_workdir_or_a_checkpoint(two):
    above = f"../{two.name}/checkpoints/3"
    for place, which in (("", "teacher"), ("checkpoints", "student"), ("checkpoints/3", "teacher"), (above, "teacher")):
        recipe, params, step = restore_backbone(str(two / place), which=which)
        assert (recipe, step) == (RECIPE, 3 if place.endswith("3") else 6)
        assert_same(params, getattr(state_at(step), which)["backbone"])
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    with pytest.raises(ValueError, match="which='both'"):
        restore_backbone(two, which="both")


def test_restore_backbone_passes_over_corruption(workdir):
    remove_files(workdir / "checkpoints" / "6")
    assert restore_backbone(workdir)[2] == 3
    with pytest.raises(CheckpointError, match="corrupt: .*checkpoints/6"):
        restore_backbone(workdir / "checkpoints" / "6")


def test_a_wrong_path_is_explained(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "run" / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir(parents=True)
    for place, message in {
        "nowhere": "nowhere does not exist",
        "photos": "photos is no checkpoint: it has neither a folder checkpoints, as runs have, nor model.safetensors",
        "run": "no checkpoint in .*run/checkpoints",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            restore_backbone(tmp_path / place)


def test_a_checkpoint_of_another_version_is_no_corruption(tmp_path, monkeypatch):
    def make_future_manifest(*args):
        content = make_manifest(*args)
        content["recipe"]["backbone"]["adapters"] = 4
        del content["digest"]
        return {**content, "digest": _digest(content)}

    monkeypatch.setattr(manager, "make_manifest", make_future_manifest)
    save(tmp_path, [3])
    with pytest.raises(CheckpointError, match="of another version: unknown field backbone.adapters"):
        restore_backbone(tmp_path)
