"""The trial of a new accelerator with tiny networks on CPU: its checks, its phases, and its training run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from trial import device_phases, findings, numeric_checks, phases, training
from trial.sizes import FULL, TOY

from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_batch, abstract_state

ROOT = Path(__file__).resolve().parents[3]
STEPS = 24


@pytest.fixture
def report(tmp_path):
    return findings.Report("phase", tmp_path / "rows.jsonl", say=lambda line: None)


def rows_of(report):
    return findings.read_rows(report._file)


def check_numbers_are_those_of_the_cpu(rows):
    """Checks the rows, by name, of a device that is the CPU itself."""
    for loss in ("loss", "loss_dense", "loss_global"):
        numbers = rows[f"{loss}, as it trains (float32)"]
        assert len(numbers["found"]) == 3 and min(numbers["found"]) > 0.1
        np.testing.assert_allclose(numbers["found"], numbers["reference"], rtol=1e-5)
    for part in ("backbone", "head"):
        assert rows[f"gradient of the {part}, as it trains (float32)"]["apart"] < 1e-5
    assert rows["clusters, as it trains (float32)"] == {"same_k": 1.0, "same_labels": 1.0}
    assert [name for name in rows if name.startswith("attention, xla, float32, 257")]


def test_the_programs_of_a_comparison_fit_together():
    recipe, device = numeric_checks.check_recipe(TOY, dtype="float32"), jax.devices()[0]
    mesh, programs = make_mesh([device]), numeric_checks.make_programs(recipe, device)
    state = abstract_state(recipe, steps_per_epoch=2, mesh=mesh)
    indices = jax.ShapeDtypeStruct((8, 2, 3), np.int32)
    views, keys = jax.eval_shape(programs.see, state.step, abstract_batch(recipe, mesh=mesh))
    num_clusters, labels = jax.eval_shape(programs.cluster, state.teacher, views, indices)
    assert num_clusters.shape == (8, 2) and labels.shape == (2, 8, 2, 4)
    found, metrics = jax.eval_shape(programs.update, state, views, keys, indices)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, state)
    assert set(numeric_checks.LOSSES) <= set(metrics)
    assert set(numeric_checks.first_moments(found.opt_state)) == {"backbone", "head"}


@pytest.mark.slow
def test_check_numbers_of_the_cpu_against_itself(tmp_path, report):
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    numeric_checks.check_numbers(TOY, str(tmp_path), report)
    rows = rows_of(report)
    assert {row.verdict for row in rows} == {"ok"}
    check_numbers_are_those_of_the_cpu({row.name: row.numbers for row in rows})


@pytest.mark.slow
def test_all_phases_and_a_killed_run(tmp_path):
    output = tmp_path / "trial"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "benchmarks/accelerator.py", "--size=toy", f"--output={output}"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    listed = json.loads((output / "accelerator.json").read_text())["rows"]
    assert not [row for row in listed if row["verdict"] not in ("ok", "")]
    rows = {row["name"]: row["numbers"] for row in listed}

    devices = rows["devices"]
    assert devices["platform"] == "cpu" and devices["count"] == 1 and devices["jax"] == jax.__version__
    assert rows["choices of auto"]["dtype"] == "float32"
    check_numbers_are_those_of_the_cpu(rows)
    speed = rows["batch 8"]
    assert speed["images_per_sec"] == pytest.approx(8 / speed["seconds"]) and speed["predicted_bytes"] > 0
    assert speed["share_of_peak"] is None and speed["peak_bytes"] is None
    figures = {row["name"]: row["figure"] for row in listed}
    assert "no device lanes in the trace" in figures["share of each part"]

    assert 0 < rows["killed"]["saved"] <= rows["resumed"]["step"] and rows["killed"]["step"] > 0
    assert rows["metrics.jsonl"]["lines"] == 1 + STEPS // 2 and rows["end"] == {"step": STEPS, "steps": STEPS}
    assert rows["speed of training"]["images_per_sec"] > 0
    page = (output / "accelerator.md").read_text()
    assert page.startswith(f"### 1 x cpu, jax {jax.__version__}") and "| numbers | loss, as it trains" in page


def test_an_error_is_a_row_and_later_checks_run(tmp_path, report, capsys):
    def fail():
        raise ValueError("the first line\nthe second one")

    assert not findings.attempt(report, fail)
    assert findings.attempt(report, lambda: report("loss", "1", findings.OK))
    assert "the second one" in capsys.readouterr().err
    rows = rows_of(report)
    assert [row.is_bad for row in rows] == [True, False]
    assert rows[0][:4] == ("phase", "the whole phase", "ValueError: the first line", "failed")
    # A phase that was killed while it wrote.
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"phase": "numb')
    assert len(rows_of(report)) == 2
    files = findings.write_findings(tmp_path, "a card", [findings.Row("speed", "batch 8 | 16", "x", "out of memory")])
    assert "| speed | batch 8 \\| 16 | x | out of memory |" in files[0].read_text()


@pytest.mark.parametrize(
    ("code", "figure"),
    [
        ("print('x'); raise SystemExit('error: no such device')", "status 1: error: no such device"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import time; time.sleep(60)", "timed out after 1 s"),
    ],
)
def test_run_phase_keeps_the_rows_of_a_phase_that_fails(tmp_path, code, figure):
    row = json.dumps(findings.Row("speed", "batch 8", "fast", "ok")._asdict())
    code = f"open({str(tmp_path / 'speed.jsonl')!r}, 'w').write({row!r} + chr(10))\n{code}"
    rows = phases.run_phase([sys.executable, "-c", code], name="speed", folder=tmp_path, seconds=1, env=os.environ)
    assert [row.name for row in rows] == ["batch 8", "the whole phase", "time"]
    assert rows[1].is_bad and rows[1].figure.startswith(figure)


def test_the_environment_of_a_phase_has_the_cpu_beside_the_accelerator(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert phases.environment(tmp_path)["JAX_PLATFORMS"] == "cuda,cpu"
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "JAX_PLATFORMS" not in phases.environment(tmp_path)


def test_peak_of_kinds_that_jax_names():
    kinds = {
        "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989, "NVIDIA A100-SXM4-80GB": 312,
        "AMD Instinct MI250X": 191.5, "TPU v5 lite": 197, "TPU v5": 459, "TPU v5p": 459, "TPU v6 lite": 918,
    }  # fmt: skip
    assert {kind: device_phases.peak_of(kind) for kind in kinds} == kinds and device_phases.peak_of("cpu") is None


def test_a_batch_that_does_not_fit_ends_the_timing_but_is_no_failure(report, monkeypatch):
    errors = {2: ValueError("odd"), 8: jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 90 GiB\nmore")}

    def time_batch(recipe, repeats, report, name):
        if recipe.schedule.batch_size in errors:
            raise errors[recipe.schedule.batch_size]
        report(name, "fast", findings.OK)

    monkeypatch.setattr(device_phases, "_time_batch", time_batch)
    device_phases.time_steps(TOY._replace(speed_batches=(2, 4, 8, 16)), report)
    rows = rows_of(report)
    assert [(row.name, row.verdict) for row in rows] == [
        ("batch 2", "failed"), ("batch 4", "ok"), ("batch 8", "out of memory")
    ]  # fmt: skip
    assert rows[2].figure.endswith("RESOURCE_EXHAUSTED: 90 GiB") and not rows[2].is_bad


def test_numbers_that_differ_are_too_far(report):
    checks = numeric_checks
    labels = np.zeros((2, 1, 2, 4), int)
    gradients = {"backbone": [np.array([3.0, 4.0])]}
    reference = checks.Found(np.ones((2, 3)), gradients, np.array([[3, 2]]), labels)
    off = {"backbone": [np.array([3.0, 3.0])]}
    found = checks.Found(
        np.array([[1, 1, 1], [1, 1.5, np.nan]]), off, np.array([[3, 3]]), labels + np.array([[0], [1]])
    )
    checks.compare("x", found, reference, checks.Limits(0.1, 0.3, 0.5, 1.0, 0.1), report)
    checks.compare("y", found, reference, checks.Limits(0.1, 0.1, 0.6, 1.0, 0.1), report)
    rows = rows_of(report)
    # Half of the heads have the same K, and in those all labels are the same.
    assert [row.verdict == "ok" for row in rows] == [
        True, False, False, True, True, True, False, False, False, False
    ]  # fmt: skip
    assert rows[3].numbers == {"apart": pytest.approx(0.2)}
    assert rows[4].numbers == {"same_k": 0.5, "same_labels": 1.0}


def test_attention_in_numpy_has_the_gradients_of_autodiff():
    rng = np.random.default_rng(0)
    *inputs, weights = (rng.standard_normal((2, 5, 3, 4)).astype(np.float32) for _ in range(4))

    def attention(inputs):
        return jnp.swapaxes(jax.nn.dot_product_attention(*(jnp.swapaxes(part, 1, 2) for part in inputs)), 1, 2)

    def weighted(inputs):
        output = attention(inputs)
        return jnp.sum(output * weights), output

    (_, output), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(inputs)
    theirs = output, *gradients
    for our, their in zip(numeric_checks.attention_in_numpy(*inputs, weights), theirs, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "status", "verdicts"),
    [
        ([1, 10, 20, 25], 0, ["ok", "ok", "ok"]),
        ([1, 10, 10, 20, 25], 0, ["ok", "failed", "ok"]),
        ([1, 20, 25], 0, ["ok", "failed", "ok"]),
        ([1, 10, 20], 0, ["ok", "ok", "failed"]),
        ([1, 10, 20], None, ["ok", "ok", "ok"]),
        ([1, 10, 20], 1, ["ok", "ok", "failed"]),
    ],
)
def test_lines_that_are_lost_or_doubled_fail(tmp_path, report, steps, status, verdicts):
    plan = training.Plan([], tmp_path / "run", steps=25, every=10, seconds=60, env={})
    plan.workdir.mkdir()
    (plan.workdir / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in steps))
    training.log_of(plan, "second").write_text("ViT: 24 images; resumes after step 12\nerror: the disk is full\n")
    training.report_resumption(plan, 12, [1, 10], status, report)
    assert [row.verdict for row in rows_of(report)] == verdicts


def test_make_plan_fills_its_time_with_the_first_of_many_images(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(100):
        (photos / f"{index:03d}.jpg").touch()
    size = FULL._replace(overrides={"schedule.batch_size": 10, "runtime.log_every_steps": 5})

    def plan(seconds, speed):
        made = training.make_plan(size, photos, tmp_path, seconds=seconds, speed=speed, env={})
        return made, len((tmp_path / "images.txt").read_text().splitlines())

    # 230 seconds less two starts are 180; 0.8 of them at two images a second are 288, four epochs of 72.
    found, count = plan(230, 2.0)
    assert count == 72 and found.steps == 4 * 7 and found.every == 5
    assert {"--config.runtime.checkpoint_every_minutes=0.9", "--config.schedule.epochs=4"} < set(found.command)
    assert plan(230, 0.1)[1] == 10 and plan(230, 5.0)[0].steps == 7 * 10
    with pytest.raises(ValueError, match="100 images, fewer than a batch of 256"):
        training.make_plan(FULL, photos, tmp_path, seconds=230, speed=1.0, env={})
