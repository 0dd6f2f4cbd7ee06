"""The trial of a new accelerator: all of it with tiny networks on CPU, its reader of traces, and failures."""

import dataclasses
import gzip
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.training.config import recipe_from_dict
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_batch, abstract_state
from croc_jax.training.step import make_train_step

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    for folder in ("benchmarks", "launch"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


def load(name):
    return importlib.import_module(name)


def rows_of(file):
    return {row["name"]: row for row in json.loads(file.read_text())["rows"]}


def test_a_trial_on_cpu_finds_the_same_numbers_and_survives_a_kill(tmp_path):
    output = tmp_path / "trial"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "benchmarks/accelerator.py", "--size=toy", f"--output={output}"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = rows_of(output / "accelerator.json")
    assert not [row for row in rows.values() if row["verdict"] not in ("ok", "")]

    devices = rows["devices"]["numbers"]
    assert devices["platform"] == "cpu" and devices["count"] == 1 and devices["jax"] == jax.__version__
    assert rows["choices of auto"]["numbers"]["dtype"] == "float32"
    for loss in ("loss", "loss_dense", "loss_global"):
        numbers = rows[f"{loss}, as it trains (float32)"]["numbers"]
        assert len(numbers["found"]) == 3 and min(numbers["found"]) > 0.1
        np.testing.assert_allclose(numbers["found"], numbers["reference"], rtol=1e-5)
    for part in ("backbone", "head"):
        assert rows[f"gradient of the {part}, as it trains (float32)"]["numbers"]["apart"] < 1e-5
    clusters = rows["clusters, as it trains (float32)"]["numbers"]
    assert clusters == {"same_k": 1.0, "same_labels": 1.0}
    assert [name for name in rows if name.startswith("attention, xla, float32, 257")]

    speed = rows["batch 8"]["numbers"]
    assert speed["images_per_sec"] == pytest.approx(8 / speed["seconds"]) and speed["predicted_bytes"] > 0
    assert speed["share_of_peak"] is None and speed["peak_bytes"] is None
    # No figure is made up where there are no lanes of a device.
    assert "no device lanes in the trace" in rows["share of each part"]["figure"]

    killed, resumed = rows["killed"]["numbers"], rows["resumed"]["numbers"]["step"]
    assert 0 < killed["saved"] <= resumed and killed["step"] > 0
    assert rows["metrics.jsonl"]["numbers"]["lines"] == 1 + STEPS // 2
    assert rows["end"]["numbers"] == {"step": STEPS, "steps": STEPS}
    assert rows["speed of training"]["numbers"]["images_per_sec"] > 0
    page = (output / "accelerator.md").read_text()
    assert page.startswith(f"### 1 x cpu, jax {jax.__version__}") and "| numbers | loss, as it trains" in page


def lane(process, name, *, pid=1, tid=1):
    return [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": process}},
        {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}},
    ]


def event(title, ts, dur, *, pid=1, tid=1, **args):
    return {"ph": "X", "pid": pid, "tid": tid, "name": title, "ts": ts, "dur": dur, "args": args}


PROGRAM = """
%fused (p: f32[8]) -> f32[8] {
  %a.1 = f32[8]{0} add(%p, %p), metadata={op_name="jit(train_step)/optimizer/add"}
  ROOT %b.1 = f32[8]{0} multiply(%a.1, %p)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %gemm.1 = f32[8]{0} custom-call(%p), metadata={op_name="jit(train_step)/jvp(VisionTransformer)/VisionTransformer.run_blocks/while/body/Block/attention/qkv/dot_general"}
  %gemm.2 = f32[8]{0} custom-call(%p), metadata={op_name="jit(train_step)/transpose(jvp(VisionTransformer))/Block/mlp_1/dot_general"}
  %norm.3 = f32[8]{0} fusion(%p), kind=kLoop, calls=%other, metadata={op_name="jit(train_step)/VisionTransformer/Block/norm_1/mul"}
  ROOT %fusion.4 = f32[8]{0} fusion(%gemm.1), kind=kLoop, calls=%fused
}
"""  # noqa: E501


def test_kernels_of_a_gpu_are_told_by_their_instruction():
    parts = load("trace_parts")
    program = parts.parts_of_program(PROGRAM)
    assert program["gemm.1"] == "attention" and program["gemm.2"] == "MLP"
    assert program["norm.3"] == parts.BACKBONE and program["fusion.4"] == "optimizer and teacher"
    trace = {
        "traceEvents": [
            *lane("/host:CPU", "python", pid=9),
            *lane("/device:GPU:0", "Stream #7(Compute)", tid=7),
            *lane("/device:GPU:0", "Stream #8(MemcpyD2H)", tid=8),
            # A summary of the same kernels, which would count them twice.
            *lane("/device:GPU:0", "XLA Ops", tid=99),
            event("PjitFunction", 0, 5000, pid=9),
            event("sm90_xmma_gemm", 100, 40, tid=7, hlo_op="gemm.1", hlo_module="jit_train_step"),
            event("sm90_xmma_gemm", 140, 20, tid=7, hlo_op="gemm.2"),
            event("loop_fusion", 160, 20, tid=7, hlo_op="fusion.4"),
            event("ncclDevKernel_AllReduce_Sum_f32", 180, 10, tid=7, hlo_op="all-reduce-start.1"),
            event("unheard_of", 190, 2, tid=7, name="jit(train_step)/clustering/jit(_cluster_views)/while/body/exp"),
            event("MemcpyD2H", 170, 8, tid=8),
            event("gemm.1", 100, 80, tid=99),
            {},
        ]
    }
    split = parts.split_time(trace, program)
    microseconds = {part: round(1e6 * seconds) for part, seconds in split.seconds.items()}
    assert microseconds == {
        "attention": 40, "MLP": 20, "optimizer and teacher": 20, "collectives": 10, "clustering": 2, "other": 8
    }  # fmt: skip
    assert split.shares["attention"] == pytest.approx(0.4) and sum(split.shares.values()) == pytest.approx(1)
    assert list(split.unknown) == ["MemcpyD2H"] and split.busy == pytest.approx(1)


def test_a_loop_of_a_tpu_counts_without_the_operations_inside_it():
    parts = load("trace_parts")
    scope = "jit(train_step)/jvp(heads)/while"
    trace = {
        "traceEvents": [
            *lane("/device:TPU:0", "XLA Modules", tid=1),
            *lane("/device:TPU:0", "XLA Ops", tid=2),
            event("jit_train_step", 0, 400, tid=1),
            event("while.5", 0, 100, tid=2, tf_op=scope),
            event("fusion.6", 10, 30, tid=2, tf_op=f"{scope}/body/clustering/mul"),
            event("fusion.7", 40, 30, tid=2, long_name="%fusion.7 = ...", tf_op="jit(train_step)/clustering/mul"),
            event("copy.8", 150, 50, tid=2),
        ]
    }
    split = parts.split_time(trace, {})
    # The outermost scope decides.
    assert {part: round(1e6 * seconds) for part, seconds in split.seconds.items()} == {
        "heads and losses": 70, "clustering": 30, "other": 50
    }  # fmt: skip
    assert split.busy == pytest.approx(0.75)


def test_the_scopes_of_a_real_step_name_all_parts():
    parts = load("trace_parts")
    trial = load("trial_sizes")
    recipe = dataclasses.replace(
        trial.TOY.recipe, backbone=dataclasses.replace(trial.TOY.recipe.backbone, drop_path_rate=0.0)
    )
    mesh = make_mesh(jax.devices()[:1])
    state, batch = abstract_state(recipe, steps_per_epoch=2, mesh=mesh), abstract_batch(recipe, mesh=mesh)
    lowered = make_train_step(recipe, steps_per_epoch=2, mesh=mesh).lower(state, batch)
    found = {
        parts.part_of(line.split('"')[1]) for line in lowered.as_text(debug_info=True).splitlines() if 'loc("' in line
    }
    assert set(parts.PARTS) - found == {"collectives"}


def test_a_trace_without_devices_is_an_error_that_names_what_is_there(tmp_path):
    parts = load("trace_parts")
    folder = tmp_path / "plugins" / "profile" / "1"
    folder.mkdir(parents=True)
    with gzip.open(folder / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": [*lane("/host:CPU", "python"), event("f", 0, 1)]}, file)
    with pytest.raises(parts.NoLanesError, match=r"no device lanes in the trace, which has /host:CPU$"):
        parts.split_time(parts.read_trace(tmp_path), {})
    with pytest.raises(FileNotFoundError):
        parts.read_trace(folder / "nowhere")


def test_an_error_is_a_row_and_the_rest_goes_on(tmp_path, capsys):
    findings = load("findings")
    report = findings.Report("numbers", tmp_path / "rows.jsonl", say=lambda line: None)

    def fail():
        raise ValueError("the first line\nthe second one")

    assert not findings.attempt(report, fail) and findings.attempt(report, lambda: report("loss", "1", findings.OK))
    assert "the second one" in capsys.readouterr().err
    rows = findings.read_rows(tmp_path / "rows.jsonl")
    assert [row.is_bad for row in rows] == [True, False]
    assert rows[0][:4] == ("numbers", "the whole phase", "ValueError: the first line", "failed")
    # The end of a phase that was killed while it wrote.
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"phase": "numb')
    assert len(findings.read_rows(tmp_path / "rows.jsonl")) == 2
    files = findings.write_findings(tmp_path, "a card", [findings.Row("speed", "batch 8 | 16", "x", "out of memory")])
    assert "| speed | batch 8 \\| 16 | x | out of memory |" in files[0].read_text()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print('x'); raise SystemExit('error: no such device')", "status 1: error: no such device"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import time; time.sleep(60)", "not done after 2 s"),
    ],
)
def test_a_phase_that_ends_badly_keeps_what_it_has_found(tmp_path, code, told):
    phases, findings = load("phases"), load("findings")
    row = json.dumps(findings.Row("speed", "batch 8", "fast", "ok")._asdict())
    code = f"open({str(tmp_path / 'speed.jsonl')!r}, 'w').write({row!r} + chr(10))\n{code}"
    command = phases.python("-c", code)
    rows = phases.run_phase(command, name="speed", folder=tmp_path, seconds=2, env=os.environ)
    assert [row.name for row in rows] == ["batch 8", "the whole phase", "time"]
    assert rows[1].is_bad and rows[1].figure.startswith(told)


def test_the_environment_of_a_phase_has_the_cpu_beside_the_gpu(monkeypatch, tmp_path):
    phases = load("phases")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert phases.environment(tmp_path)["JAX_PLATFORMS"] == "cuda,cpu"
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "JAX_PLATFORMS" not in phases.environment(tmp_path)


def test_peaks_are_those_of_the_kinds_that_jax_names():
    peak_of = load("device_phases").peak_of
    kinds = {
        "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989, "NVIDIA A100-SXM4-80GB": 312,
        "AMD Instinct MI250X": 191.5, "TPU v5 lite": 197, "TPU v5": 459, "TPU v5p": 459, "TPU v6 lite": 918,
    }  # fmt: skip
    assert {kind: peak_of(kind) for kind in kinds} == kinds and peak_of("cpu") is None


def test_a_batch_that_does_not_fit_ends_the_timing_but_is_no_failure(tmp_path, monkeypatch):
    phases, findings, sizes = load("device_phases"), load("findings"), load("trial_sizes")
    errors = {2: ValueError("odd"), 8: jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 90 GiB\nmore")}

    def time_batch(recipe, repeats, report, name):
        if recipe.schedule.batch_size in errors:
            raise errors[recipe.schedule.batch_size]
        report(name, "fast", findings.OK)

    monkeypatch.setattr(phases, "_time_batch", time_batch)
    report = findings.Report("speed", tmp_path / "rows.jsonl", say=lambda line: None)
    phases.time_steps(sizes.TOY._replace(speed_batches=(2, 4, 8, 16)), report)
    rows = findings.read_rows(tmp_path / "rows.jsonl")
    assert [(row.name, row.verdict) for row in rows] == [
        ("batch 2", "failed"), ("batch 4", "ok"), ("batch 8", "out of memory")
    ]  # fmt: skip
    assert rows[2].figure.endswith("RESOURCE_EXHAUSTED: 90 GiB") and not rows[2].is_bad


def test_numbers_that_differ_are_too_far(tmp_path):
    checks, findings = load("numeric_checks"), load("findings")
    report = findings.Report("numbers", tmp_path / "rows.jsonl", say=lambda line: None)
    labels = np.zeros((2, 1, 2, 4), int)
    gradients = {"backbone": [np.array([3.0, 4.0])]}
    reference = checks.Found(np.ones((2, 3)), gradients, np.array([[3, 2]]), labels)
    off = {"backbone": [np.array([3.0, 3.0])]}
    found = checks.Found(
        np.array([[1, 1, 1], [1, 1.5, np.nan]]), off, np.array([[3, 3]]), labels + np.array([[0], [1]])
    )
    checks.compare("x", found, reference, checks.Limits(0.1, 0.3, 0.5, 1.0, 0.1), report)
    checks.compare("y", found, reference, checks.Limits(0.1, 0.1, 0.6, 1.0, 0.1), report)
    rows = findings.read_rows(tmp_path / "rows.jsonl")
    # Half of the heads have the same K, and in those all labels are the same.
    assert [row.verdict == "ok" for row in rows] == [
        True, False, False, True, True, True, False, False, False, False
    ]  # fmt: skip
    assert rows[3].numbers == {"apart": pytest.approx(0.2)}
    assert rows[4].numbers == {"same_k": 0.5, "same_labels": 1.0}


def test_the_reference_of_attention_has_the_gradients_of_autodiff():
    reference = load("numeric_checks").attention_in_numpy
    rng = np.random.default_rng(0)
    *inputs, weights = (rng.standard_normal((2, 5, 3, 4)).astype(np.float32) for _ in range(4))

    def attention(inputs):
        return jnp.swapaxes(jax.nn.dot_product_attention(*(jnp.swapaxes(part, 1, 2) for part in inputs)), 1, 2)

    theirs = attention(inputs), *jax.grad(lambda inputs: jnp.sum(attention(inputs) * weights))(inputs)
    for our, their in zip(reference(*inputs, weights), theirs, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-5)


@pytest.fixture
def plan(tmp_path):
    trial = load("training_trial")
    return trial.Plan([], tmp_path, steps=25, every=10, seconds=60, env={})


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
def test_lines_that_are_lost_or_doubled_fail(plan, steps, status, verdicts):
    trial, findings = load("training_trial"), load("findings")
    (plan.workdir / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in steps))
    log = trial._log(plan, "second")
    log.write_text("ViT: 24 images; resumes after step 12\nerror: the disk is full\n")
    report = findings.Report("training", plan.workdir / "rows.jsonl", say=lambda line: None)
    trial._report_resumption(plan, 12, [1, 10], status, report)
    assert [row.verdict for row in findings.read_rows(plan.workdir / "rows.jsonl")] == verdicts


def test_a_run_is_as_long_as_its_time_and_takes_a_part_of_many_images(tmp_path):
    trial, sizes = load("training_trial"), load("trial_sizes")
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(100):
        (photos / f"{index:03d}.jpg").touch()
    overrides = {"schedule.batch_size": 10, "runtime.log_every_steps": 5}
    size = sizes.FULL._replace(overrides=overrides)

    def plan(minutes, speed):
        made = trial.make_plan(size, photos, tmp_path, minutes=minutes, speed=speed, compile_seconds=10.0, env={})
        return made, len((tmp_path / "images.txt").read_text().splitlines())

    # 240 seconds less two starts and a compilation are 180; 0.8 of them at two images a second are 288.
    found, count = plan(4, 2.0)
    assert count == 50 and found.steps == 5 * 5 and found.every == 5
    assert "--config.runtime.checkpoint_every_minutes=0.9" in " ".join(found.command)
    assert plan(4, 0.1)[1] >= 10
    settings = [flag for flag in found.command if flag.startswith("--config.")]
    config = load("cli").parse_config(str(ROOT / size.config), settings)
    recipe = recipe_from_dict(config.to_dict())
    assert recipe.schedule.epochs == 5 and recipe.optimizer.warmup_epochs == 1 and recipe.backbone.dtype == "auto"
    with pytest.raises(ValueError, match="100 images, fewer than a batch of 256"):
        trial.make_plan(sizes.FULL, photos, tmp_path, minutes=4, speed=1.0, compile_seconds=0.0, env={})
