"""Rows for Weights & Biases: each step once, whatever interrupts the run or the network."""

import dataclasses
import importlib.util
import json
import logging
import math
import struct
import sys
import time
from types import SimpleNamespace

import pytest

from croc_jax.runtime.wandb_writer import check_wandb, open_writers
from croc_jax.training.config import recipe_to_dict
from croc_jax.training.run_config import RuntimeConfig
from tests.training.tiny import tiny_recipe

RECIPE = dataclasses.replace(tiny_recipe(), runtime=RuntimeConfig(wandb_project="crops"))


KINDS = ("run", "history", "exit")


def row(step):
    return {"step": step, "epoch": step / 4, "loss": 1.5}


class Server:
    """Stands for the library and what it has sent."""

    def __init__(self, *, offline):
        self.inits, self.rows, self.finished, self.offline = [], [], 0, offline
        self.refuses_start = self.refuses_rows = False

    def Settings(self, **settings):  # noqa: N802
        return settings

    def init(self, **settings):
        if self.refuses_start:
            raise RuntimeError("no route to host\nin many lines")
        self.inits.append(settings)
        return self

    @property
    def step(self):
        return max((step for step, _ in self.rows), default=-1) + 1

    def log(self, values, *, step):
        if self.refuses_rows:
            raise ConnectionError("broken pipe")
        self.rows.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture(params=[True, False], ids=["offline", "online"])
def server(monkeypatch, request):
    fake = Server(offline=request.param)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_NAME", raising=False)
    return fake


def write(workdir, steps, *, restored_step=0, close=True):
    writer = open_writers(workdir, RECIPE, restored_step=restored_step)
    for step in steps:
        writer.write(row(step) | {"odd": math.inf})
    assert writer.flush()
    if close:
        writer.close()


def test_a_restart_goes_on_with_the_same_run_and_sends_no_step_twice(server, tmp_path):
    write(tmp_path, (1, 5, 10), close=False)
    write(tmp_path, (10, 15), restored_step=5)
    assert server.rows == [(step, {"epoch": step / 4, "loss": 1.5}) for step in (1, 5, 10, 15)]
    assert server.finished == 1 and (tmp_path / "metrics.jsonl").read_text().count("\n") == 4
    first, second = server.inits
    assert first == second and len(first["id"]) == 12 and json.loads((tmp_path / "wandb.json").read_text())
    assert (first["project"], first["name"], first["resume"]) == ("crops", tmp_path.name, "allow")
    assert first["config"] == recipe_to_dict(RECIPE) and first["dir"] == tmp_path
    assert first["settings"]["console"] == "off"


def test_what_the_server_has_lost_is_sent_again(server, tmp_path):
    write(tmp_path, (1, 5, 10), close=False)
    del server.rows[-1]
    write(tmp_path, (5, 10, 15), restored_step=1)
    assert [step for step, _ in server.rows] == ([1, 5, 15] if server.offline else [1, 5, 10, 15])


@pytest.mark.parametrize("when", ["start", "rows"])
def test_a_failure_is_one_warning_and_the_files_go_on(server, tmp_path, caplog, when):
    setattr(server, f"refuses_{when}", True)
    with caplog.at_level(logging.WARNING):
        write(tmp_path, (1, 5, 10))
    (text,) = (record.getMessage() for record in caplog.records if record.name == "absl")
    assert text.startswith(f"Weights & Biases gets no more rows: {'no route to host' if when == 'start' else 'broken'}")
    assert "; training goes on. WANDB_MODE=offline writes them to wandb/ in the workdir" in text
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3 and not server.rows


def test_a_missing_library_is_named_at_the_start(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_wandb("")
    with pytest.raises(ValueError, match=r"runtime.wandb_project='crops': .* pip install 'croc_jax\[wandb\]'"):
        check_wandb("crops")


def test_without_a_project_nothing_is_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    writer = open_writers(tmp_path, tiny_recipe(), restored_step=0)
    writer.close()
    assert [path.name for path in tmp_path.iterdir() if "wandb" in path.name] == []


def test_the_library_writes_the_rows_in_its_offline_mode(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    check_wandb("crops")
    write(tmp_path, (1, 5, 10))
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    found, deadline = {}, time.monotonic() + 60
    # Another process of the library writes them.
    while "exit" not in found and time.monotonic() < deadline:
        time.sleep(0.05)
        records = [wandb_internal_pb2.Record.FromString(data) for data in read_log(file.read_bytes())]
        found = {kind: [one for one in records if one.WhichOneof("record_type") == kind] for kind in KINDS}
        found = {kind: ones for kind, ones in found.items() if ones}
    history = [
        {item.nested_key[0]: json.loads(item.value_json) for item in one.history.item} for one in found["history"]
    ]
    assert [(one["_step"], one["epoch"], one["loss"]) for one in history] == [(s, s / 4, 1.5) for s in (1, 5, 10)]
    (run,) = (one.run for one in found["run"])
    settings = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert (run.project, run.display_name) == ("crops", tmp_path.name)
    assert run.run_id == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert settings["schedule"] == {"epochs": 4, "batch_size": 8}


def read_log(data):
    """Yields the records of a file of the library: LevelDB's log format after a header of 7 bytes."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):
            return
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        # 1 is a whole record, and 4 the last part of one.
        if kind in (1, 4):
            yield parts
            parts = b""
