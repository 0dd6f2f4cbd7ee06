"""Programs that run others: a score is kept as long as it holds, signals are passed on, cores are shared."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from croc_jax.evaluation import reuse

ROOT = Path(__file__).resolve().parents[2]


def test_a_score_is_kept_for_the_same_run_settings_and_images_alone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    program = importlib.import_module("commands")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.png").write_bytes(b"an image")
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    output, calls = tmp_path / "run" / "eval", []

    def run_program(arguments):
        output.mkdir(exist_ok=True)
        (output / "results.json").write_text("{}")
        calls.append(arguments)
        return 0 if arguments != ["fails"] else 1

    monkeypatch.setattr(program, "run_program", run_program)

    def run(*arguments):
        reuse._brief.cache_clear()
        before = len(calls)
        status = program.Command(list(arguments), output, tmp_path / "run", str(tmp_path / "data")).run()
        return status, len(calls) - before

    assert [run("evaluate") for _ in range(2)] == [(0, 1), (0, 0)]
    assert [run("evaluate", "--more") for _ in range(2)] == [(0, 1), (0, 0)]
    (tmp_path / "data" / "0.png").write_bytes(b"another image")
    assert [run("evaluate", "--more") for _ in range(2)] == [(0, 1), (0, 0)]
    (tmp_path / "run" / "checkpoints" / "6").mkdir()
    assert [run("evaluate", "--more") for _ in range(2)] == [(0, 1), (0, 0)]
    (tmp_path / "run" / "config.json").write_text("{}")
    assert [run("evaluate", "--more") for _ in range(2)] == [(0, 1), (0, 0)]
    assert [run("fails") for _ in range(2)] == [(1, 1), (1, 1)]


def test_sigterm_reaches_the_program_that_runs_and_its_status_is_returned(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\nsignal.pause()\n"
    )
    code = f"import commands; raise SystemExit(commands.run_program([{str(program)!r}]))"
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'launch'}:{ROOT}"}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60).returncode == 75


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system shares no cores")
def test_a_program_and_its_threads_have_the_cores_that_it_is_given(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    commands, cores = importlib.import_module("commands"), [max(os.sched_getaffinity(0))]
    program = tmp_path / "program.py"
    program.write_text(
        "import os, threading, time\ntime.sleep(0.1)\nthread = threading.Thread(target=lambda: "
        "print(os.sched_getaffinity(0), flush=True))\nthread.start()\nthread.join()\n"
    )
    with (tmp_path / "log.txt").open("wb") as log:
        assert commands.start_program([str(program)], output=log, cores=cores).wait() == 0
    assert (tmp_path / "log.txt").read_text().strip() == str({*cores})
