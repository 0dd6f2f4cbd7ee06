"""Rows of the table of accelerators: their figures are kept, and a failure is one; nothing is compiled."""

import json
import subprocess

import pytest
from programs import rows
from programs.rows import ROWS, find_figures, find_row, fingerprint

from tests.benchmarks.programs.test_scaling_page import figures

ROW = ROWS[0]
FIGURES = figures(largest=[], exchanges={})


@pytest.fixture
def answers(monkeypatch):
    """Yields what the compiler's process answers, one after the other, and the jobs that it was given."""
    given, jobs = [], []

    class Process:
        def __init__(self, command, **options):
            assert options["env"]["JAX_PLATFORMS"] == "cpu" and "JAX_COMPILATION_CACHE_DIR" not in options["env"]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def communicate(self, job):
            jobs.append(json.loads(job))
            self.returncode, output, errors = given.pop(0)
            return output, errors

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(rows, "missing_library", lambda topology: "")
    return given, jobs


def answer(**told):
    return 0, f"a warning\n{json.dumps(told)}\n", ""


def test_rows_have_names_of_their_own():
    assert len({row.name for row in ROWS}) == len({row.title for row in ROWS}) == len(ROWS) == 8
    assert ROW.title == "ViT-S/16, batch 256, 4 x v5e" and ROW.name == "vit_small-v5e-4"


def test_figures_are_kept(tmp_path, answers):
    given, jobs = answers
    given.append(answer(**vars(FIGURES)))
    (first,) = find_figures([ROW], folder=tmp_path / "results", dump=tmp_path / "texts")
    assert first == FIGURES and len(list((tmp_path / "results").iterdir())) == 1
    fields = {"schedule.batch_size": 256, "runtime.mesh.fsdp": 1}
    dump = str(tmp_path / "texts" / "vit_small-v5e-4.txt")
    assert jobs == [{"config": "croc_vit:vit_small", "topology": "v5e:2x2", "fields": fields, "dump": dump}]
    (second,) = find_figures([ROW], folder=tmp_path / "results", dump=None)
    assert second == FIGURES and len(jobs) == 1


def test_another_recipe_is_another_row(tmp_path, answers):
    given, jobs = answers
    given += [answer(**vars(FIGURES)), answer(**vars(figures(images=32, largest=[], exchanges={})))]
    find_row(ROW, folder=tmp_path, dump=None)
    changed = ROW._replace(fields={**ROW.fields, "schedule.batch_size": 128})
    found = find_row(changed, folder=tmp_path, dump=None)
    assert jobs[1]["fields"] == {"schedule.batch_size": 128, "runtime.mesh.fsdp": 1} and jobs[1]["dump"] == ""
    assert found == figures(images=32, largest=[], exchanges={}) and len(list(tmp_path.iterdir())) == 2
    assert fingerprint(changed) != fingerprint(ROW) == fingerprint(ROW._replace(title="other"))


def test_what_does_not_fit_is_kept_and_other_failures_are_tried_again(tmp_path, answers):
    given, jobs = answers
    short = "does not fit: needs 19.5 of 15.75 GiB"
    given += [(-9, "", ""), (1, "", "one\nValueError: two\n"), answer(failure="INTERNAL: busy"), answer(failure=short)]
    found = [find_row(ROW, folder=tmp_path, dump=None) for _ in range(5)]
    assert found == [
        "not compiled: the compiler's process ended with status -9: no message",
        "not compiled: the compiler's process ended with status 1: ValueError: two",
        "INTERNAL: busy",
        short,
        short,
    ]
    assert len(jobs) == 4


def test_a_compiler_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "missing_library", lambda topology: "libtpu")
    assert find_row(ROW, folder=tmp_path, dump=None) == "not compiled: libtpu is not installed (make chips TARGET=tpu)"
    assert not list(tmp_path.iterdir())
