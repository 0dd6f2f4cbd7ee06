"""metrics.jsonl: one line a logged step, whatever interrupts the run."""

import json
import logging
import math
import re

import pytest

from croc_jax.runtime.metrics_writer import MetricsWriter, drop_lines_after
from tests.full_disk import no_file_beyond


def row(step, loss=1.5):
    return {"step": step, "epoch": step / 4, "loss": loss}


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, rows, *, restored_step=0):
    writer = MetricsWriter(workdir, restored_step=restored_step)
    for one in rows:
        writer.write(one)
    writer.close()


def test_rows_come_back_as_written_and_resuming_removes_what_will_be_logged_again(tmp_path):
    write(tmp_path, map(row, (1, 5, 10, 15)))
    assert lines(tmp_path) == [row(step) for step in (1, 5, 10, 15)]
    write(tmp_path, map(row, (10, 15)), restored_step=7)
    assert lines(tmp_path) == [row(step) for step in (1, 5, 10, 15)]


def test_a_row_can_be_read_at_once_and_numbers_that_json_lacks_are_null(tmp_path):
    writer = MetricsWriter(tmp_path, restored_step=0)
    writer.write(row(1, loss=math.nan))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == row(1, loss=None)
    writer.close()


TORN = [b'{"step": 9, "lo', b'{"st\n', b'{"loss": 2.0}', b"[]", b"\x00\x00\x00", b"\xff\xfe{\n", b"9"]


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_line_is_passed_over_and_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(row(1)).encode() + b"\n" + torn)
    drop_lines_after(path, 100)
    assert lines(tmp_path) == [row(1)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    write(tmp_path, [row(1)])
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in events and b"epoch" in events


def test_prometheus_gets_the_latest_row_under_the_name_of_the_folder(tmp_path):
    write(tmp_path, [row(1), row(2) | {"odd name": math.inf}])
    text = (tmp_path / "metrics.prom").read_text()
    gauges = dict(re.findall(rf'^croc_(\w+){{run="{tmp_path.name}"}} (.+)$', text, re.MULTILINE))
    assert gauges.pop("logged_timestamp_seconds")
    assert gauges == {"step": "2.0", "epoch": "0.5", "loss": "1.5", "odd_name": "+Inf"}


def test_rows_wait_for_a_full_disk_and_none_is_lost(tmp_path, caplog):
    writer = MetricsWriter(tmp_path, restored_step=0)
    writer.write(row(1))
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with caplog.at_level(logging.WARNING), no_file_beyond(size + 10):
        for step in range(2, 12):
            writer.write(row(step))
            # No part of a row is left behind.
            assert lines(tmp_path) == [row(1)]
        writer.flush()
    assert "rows of metrics.jsonl wait in memory: File too large" in caplog.messages
    writer.write(row(12))
    assert lines(tmp_path) == [row(step) for step in range(1, 13)]
    writer.close()


def test_rows_are_written_on_when_the_thread_of_tensorboard_has_died(tmp_path, caplog):
    writer = MetricsWriter(tmp_path, restored_step=0)
    writer.write(row(1))
    worker = writer._board.file_writer.event_writer._worker  # pyright: ignore
    worker.stop()
    worker.join()
    with caplog.at_level(logging.WARNING):
        writer.write(row(2))
    assert writer._board is None and "TensorBoard's files end at step 2" in caplog.text
    assert lines(tmp_path) == [row(1), row(2)]
    writer.close()
