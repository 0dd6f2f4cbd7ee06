"""The reader of traces: made-up traces of a GPU and a TPU, and the scopes of a real step."""

import gzip
import json

import jax
import pytest
from trial import trace_parts
from trial.sizes import TOY

from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_batch, abstract_state
from croc_jax.training.step import make_train_step


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


def test_split_time_finds_kernels_of_a_gpu_by_their_instruction():
    program = trace_parts.parts_of_program(PROGRAM)
    assert program["gemm.1"] == "attention" and program["gemm.2"] == "MLP"
    assert program["norm.3"] == trace_parts.BACKBONE and program["fusion.4"] == "optimizer and teacher"
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
    split = trace_parts.split_time(trace, program)
    microseconds = {part: round(1e6 * seconds) for part, seconds in split.seconds.items()}
    assert microseconds == {
        "attention": 40, "MLP": 20, "optimizer and teacher": 20, "collectives": 10, "clustering": 2, "other": 8
    }  # fmt: skip
    assert split.shares["attention"] == pytest.approx(0.4) and sum(split.shares.values()) == pytest.approx(1)
    assert list(split.unknown) == ["MemcpyD2H"] and split.busy == pytest.approx(1)


def test_split_time_counts_a_loop_of_a_tpu_without_the_operations_inside_it():
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
    split = trace_parts.split_time(trace, {})
    # The outermost scope decides.
    assert {part: round(1e6 * seconds) for part, seconds in split.seconds.items()} == {
        "heads and losses": 70, "clustering": 30, "other": 50
    }  # fmt: skip
    assert split.busy == pytest.approx(0.75)


def test_the_scopes_of_a_real_step_name_all_parts():
    recipe = TOY.recipe
    mesh = make_mesh(jax.devices()[:1])
    state, batch = abstract_state(recipe, steps_per_epoch=2, mesh=mesh), abstract_batch(recipe, mesh=mesh)
    lowered = make_train_step(recipe, steps_per_epoch=2, mesh=mesh).lower(state, batch)
    lines = [line for line in lowered.as_text(debug_info=True).splitlines() if 'loc("' in line]
    assert set(trace_parts.PARTS) - {trace_parts.part_of(line.split('"')[1]) for line in lines} == {"collectives"}


def test_a_trace_without_devices_is_an_error_that_lists_its_processes(tmp_path):
    folder = tmp_path / "plugins" / "profile" / "1"
    folder.mkdir(parents=True)
    with gzip.open(folder / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": [*lane("/host:CPU", "python"), event("f", 0, 1)]}, file)
    with pytest.raises(trace_parts.NoLanesError, match=r"no device lanes in the trace, which has /host:CPU$"):
        trace_parts.split_time(trace_parts.read_trace(tmp_path), {})
    with pytest.raises(FileNotFoundError):
        trace_parts.read_trace(folder / "nowhere")
