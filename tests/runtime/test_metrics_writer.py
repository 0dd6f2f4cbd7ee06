"""metrics.jsonl: one line a logged step, whatever interrupts the run."""

import json
import logging
import math

import pytest

from croc_jax.runtime import metrics_writer
from croc_jax.runtime.metrics_writer import MetricsWriter, drop_lines_after, last_row, read_rows
from tests.full_disk import no_file_beyond


def row(step, loss=1.5):
    return {"step": step, "epoch": step / 4, "loss": loss}


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, steps, *, restored_step):
    log = MetricsWriter(workdir, restored_step=restored_step)
    for step in steps:
        log.write(row(step))
    log.close()


def test_rows_come_back_as_written(tmp_path):
    write(tmp_path, [1, 5], restored_step=0)
    assert lines(tmp_path) == [row(1), row(5)]


def test_a_row_can_be_read_before_the_log_is_closed(tmp_path):
    log = MetricsWriter(tmp_path, restored_step=0)
    log.write(row(1))
    assert lines(tmp_path) == [row(1)]
    log.sync()
    log.close()


def test_resuming_removes_what_will_be_logged_again(tmp_path):
    write(tmp_path, [1, 5, 10, 15], restored_step=0)
    write(tmp_path, [10, 15], restored_step=7)
    assert [line["step"] for line in lines(tmp_path)] == [1, 5, 10, 15]


TORN = [b'{"step": 9, "lo', b'{"st\n', b'{"loss": 2.0}', b"[]", b"\x00\x00\x00", b"\xff\xfe{\n", b"9"]


@pytest.mark.parametrize("torn", TORN)
def test_a_line_that_a_kill_or_a_crash_has_spoiled_is_passed_over_and_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps(row(1)).encode() + b"\n" + torn)
    assert read_rows(path) == [row(1)] and last_row(path) == row(1)
    drop_lines_after(path, 100)
    assert lines(tmp_path) == [row(1)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_that_is_missing_or_holds_nothing_has_no_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == [] and last_row(path) is None
    path.write_bytes(b"\x00" * 40)
    assert read_rows(path) == [] and last_row(path) is None


def test_every_line_is_json_even_for_numbers_that_json_lacks(tmp_path):
    log = MetricsWriter(tmp_path, restored_step=0)
    log.write(row(1, loss=math.nan))
    log.write(row(2, loss=math.inf))
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    parsed = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [line["loss"] for line in parsed] == [None, None]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    write(tmp_path, [1], restored_step=0)
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"loss" in events and b"epoch" in events


def test_rows_wait_for_a_full_disk_and_lose_nothing(tmp_path, caplog):
    log = MetricsWriter(tmp_path, restored_step=0)
    log.write(row(1))
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with caplog.at_level(logging.WARNING), no_file_beyond(size + 10):
        for step in range(2, 12):
            log.write(row(step))
            # No part of a row is left behind.
            assert lines(tmp_path) == [row(1)]
        with pytest.raises(OSError):
            log.sync()
    assert "metrics.jsonl waits for the disk: File too large" in caplog.messages
    log.write(row(12))
    log.sync()
    assert lines(tmp_path) == [row(step) for step in range(1, 13)]
    log.close()


def test_tensorboard_is_given_up_when_its_thread_has_died(tmp_path, caplog, monkeypatch):
    log = MetricsWriter(tmp_path, restored_step=0)
    monkeypatch.setattr(metrics_writer, "_is_alive", lambda board: False)
    with caplog.at_level(logging.WARNING):
        log.write(row(1))
        log.write(row(2))
    assert len([text for text in caplog.messages if "TensorBoard end here" in text]) == 1
    log.close()
    assert lines(tmp_path) == [row(1), row(2)]


def test_a_dead_thread_of_tensorboard_is_seen(tmp_path):
    log = MetricsWriter(tmp_path, restored_step=0)
    board = log._board
    assert board is not None and metrics_writer._is_alive(board)
    board.file_writer.event_writer._worker.stop()  # pyright: ignore
    assert not metrics_writer._is_alive(board)
    log.write(row(1))
    assert log._board is None
    log.close()
