"""The text file for Prometheus."""

import math
import re

import pytest

from croc_jax.runtime import prometheus
from croc_jax.runtime.prometheus import format_prometheus, write_prometheus


def test_the_text_is_that_of_the_format():
    text = format_prometheus({"step": 7, "loss": 0.5, "kl": math.nan, "odd name": math.inf}, run='a"b\\c', now=12.5)
    run = r'{run="a\"b\\c"}'
    assert text.splitlines() == [
        "# TYPE croc_step gauge",
        f"croc_step{run} 7.0",
        "# TYPE croc_loss gauge",
        f"croc_loss{run} 0.5",
        "# TYPE croc_kl gauge",
        f"croc_kl{run} NaN",
        "# TYPE croc_odd_name gauge",
        f"croc_odd_name{run} +Inf",
        "# TYPE croc_logged_timestamp_seconds gauge",
        f"croc_logged_timestamp_seconds{run} 12.5",
    ]
    assert text.endswith("\n")


def test_the_file_holds_the_latest_row_alone_and_the_run_is_the_name_of_its_folder(tmp_path):
    for step in (1, 2):
        write_prometheus(tmp_path, {"step": step})
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.prom"]
    text = (tmp_path / "metrics.prom").read_text()
    assert re.findall(r"^croc_step.*$", text, re.MULTILINE) == [f'croc_step{{run="{tmp_path.name}"}} 2.0']


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_prometheus(tmp_path, {"step": 1})
    before = (tmp_path / "metrics.prom").read_text()

    def refuse(*_):
        raise OSError(28, "no space")

    monkeypatch.setattr(prometheus.os, "replace", refuse)
    with pytest.raises(OSError, match="no space"):
        write_prometheus(tmp_path, {"step": 2})
    assert (tmp_path / "metrics.prom").read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.prom"]
