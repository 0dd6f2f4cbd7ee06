"""The reader of compiled programs: loops, fusions, what starts and ends apart, exchanges; on texts written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from programs.instructions import padded_bytes, parse, result_type
from programs.program import Exchange, read_program

LOOPS = """
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body.1 (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %ar = (f32[8]{0}, bf16[2,4]{1,0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  ROOT %n = f32[8]{0} negate(%p)
}

%cond.1 (p: f32[8]) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %x = pred[] compare(%p, %limit), direction=LT
}

%cond.2 (p: f32[8]) -> pred[] {
  ROOT %x = pred[] compare(%p, %p), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %stated = f32[8]{0} while(%p), condition=%cond.2, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %compared = f32[8]{0} while(%stated), condition=%cond.1, body=%body.1
  %unknown = f32[8]{0} while(%compared), condition=%cond.2, body=%body.1
  %g = f32[16]{0} all-gather-start(%unknown), channel_id=2, dimensions={0}
  ROOT %d = f32[16]{0} all-gather-done(%g)
}
"""
# A TPU gathers while two fusions compute, and sums up in parts.
TPU = """HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, may-alias) }

%started (p: bf16[512,64]) -> bf16[512,128] {
  %p = bf16[512,64]{1,0} parameter(0)
  %ag = bf16[512,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=11, dimensions={1}
  ROOT %c = (bf16[512,128]{1,0:T(8,128)S(1)}, u32[]) custom-call(%ag), custom_call_target="AsyncCollectiveStart"
}

%both (p: bf16[512,64], a: bf16[16,512], b: bf16[512,32]) -> bf16[16,32] {
  %p = bf16[512,64]{1,0} parameter(0)
  %a = bf16[16,512]{1,0} parameter(1)
  %b = bf16[512,32]{1,0} parameter(2)
  %ag = bf16[512,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=11, dimensions={1}
  ROOT %product = bf16[16,32]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf
}

%all-reduce-scatter.3 (input: f32[768,128]) -> f32[768,64] {
  %input = f32[768,128]{1,0} parameter(0)
  %ar = f32[768,128]{1,0:T(8,128)} all-reduce(%input), channel_id=78, to_apply=%add
  ROOT %part = f32[768,64]{1,0:T(8,128)} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={768,64}
}

ENTRY %main (p: bf16[512,64], a: bf16[16,512], b: bf16[512,32], g: f32[768,128]) -> f32[768,64] {
  %p = bf16[512,64]{1,0:T(8,128)(2,1)} parameter(0)
  %a = bf16[16,512]{1,0:T(8,128)(2,1)} parameter(1)
  %b = bf16[512,32]{1,0:T(8,128)(2,1)} parameter(2)
  %g = f32[768,128]{1,0:T(8,128)} parameter(3)
  %copy-start = (bf16[16,512]{1,0:T(8,128)(2,1)S(1)}, bf16[16,512]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = bf16[16,512]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %start = (bf16[512,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%started
  %one = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} fusion(%p, %copy-done, %b), calls=%both, BLOCK_3 {"estimated_cycles":"700"}
  %two = bf16[16,32]{1,0:T(8,128)(2,1)S(1)} fusion(%p, %copy-done, %b), calls=%both, BLOCK_4 {"estimated_cycles":"500"}
  %sorted = f32[768,128]{1,0:T(8,128)} sort(%g), dimensions={1}, to_apply=%less
  %told = f64[] custom-call(%sorted), custom_call_target="xla_python_cpu_callback"
  %other = f32[] all-reduce(%h), channel_id=11, to_apply=%add
  ROOT %scatter = f32[768,64]{1,0:T(8,128)} fusion(%sorted), kind=kCustom, calls=%all-reduce-scatter.3
}
"""
for block in ("BLOCK_3", "BLOCK_4"):
    origin = f"jit(step)/transpose(jvp(Net))/while/body/{block.title()}/mlp_1/dot_general"
    TPU = TPU.replace(block, f'metadata={{op_name="{origin}"}}, backend_config=')
# A GPU's loop takes a slice of one stack, and writes a slice of another.
STACKS = """
%load (stack: f32[11,64,32], index: s32[]) -> bf16[64,32] {
  %stack = f32[11,64,32]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %slice = f32[1,64,32]{2,1,0} dynamic-slice(%stack, %index, %zero, %zero), dynamic_slice_sizes={1,64,32}
  %flat = f32[64,32]{1,0} bitcast(%slice)
  ROOT %half = bf16[64,32]{1,0} convert(%flat)
}

%save (stack: bf16[11,64,32], part: bf16[64,32], index: s32[]) -> bf16[11,64,32] {
  %stack = bf16[11,64,32]{2,1,0} parameter(0)
  %part = bf16[64,32]{1,0} parameter(1)
  %index = s32[] parameter(2)
  %one = bf16[1,64,32]{2,1,0} bitcast(%part)
  ROOT %update = bf16[11,64,32]{2,1,0} dynamic-update-slice(%stack, %one, %index, %zero, %zero)
}

ENTRY %main (stack: f32[11,64,32], index: s32[], saved: bf16[11,64,32]) -> bf16[11,64,32] {
  %stack = f32[11,64,32]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %saved = bf16[11,64,32]{2,1,0} parameter(2)
  %fusion-start = ((f32[11,64,32]{2,1,0}, s32[]), bf16[64,32]{1,0}, u32[]) fusion-start(%stack, %index), calls=%load
  %fusion-done = bf16[64,32]{1,0} fusion-done(%fusion-start)
  ROOT %kept = bf16[11,64,32]{2,1,0} fusion(%saved, %fusion-done, %index), kind=kLoop, calls=%save
}
"""


def test_rounds_of_loops_are_stated_compared_or_assumed():
    once, often = (read_program(LOOPS, unknown_trips=trips) for trips in (1, 8))
    assert once.loops == [3, 5, 1] and often.loops == [3, 5, 8] and once.assumed == often.assumed == 1
    assert once.exchanges["all-reduce"] == Exchange(9, {"f32": 9 * 32, "bf16": 9 * 16})
    assert often.exchanges["all-reduce"] == Exchange(16, {"f32": 16 * 32, "bf16": 16 * 16})
    assert once.exchanges["all-gather"] == often.exchanges["all-gather"] == Exchange(1, {"f32": 64})
    # The sum and the negation of each round, and the gather, whose end is no operation of its own.
    assert once.launches == 19 and often.launches == 33


def test_what_a_tpu_exchanges_inside_of_fusions_counts_once():
    work = read_program(TPU)
    assert work.exchanges == {
        "all-gather": Exchange(1, {"bf16": 512 * 128 * 2}),
        # Of the same channel.
        "all-reduce": Exchange(1, {"f32": 4}),
        "reduce-scatter": Exchange(1, {"f32": 768 * 128 * 4}),
    }


def test_work_of_all_layers_comes_together_by_origin():
    work = read_program(TPU)
    (cost,) = [cost for cost in work.costs if cost.cycles]
    assert cost.name == "bf16[16,32] backward: Net/Block/mlp_1/dot_general"
    assert (cost.count, cost.cycles, cost.flops) == (2, 1200, 2 * 2 * 16 * 32 * 512)
    assert work.flops == cost.flops
    # Two operands in tiles of 8 x 128 from the main memory; one operand and the result are in the fast memory.
    assert cost.traffic == 2 * (512 * 128 + 512 * 128) * 2
    (copy,) = [cost for cost in work.costs if cost.name == "bf16[16,512] copy-start"]
    assert copy.traffic == 16 * 512 * 2


def test_what_does_not_belong_into_a_step_is_counted():
    work = read_program(TPU)
    assert (work.sorts, work.doubles, work.host, work.aliased) == (1, 1, 1, 2)
    clean = read_program(STACKS)
    assert (clean.sorts, clean.doubles, clean.host, clean.aliased) == (0, 0, 0, 0)


def test_slices_of_stacks_move_no_stack():
    work = read_program(STACKS)
    part = 64 * 32
    # Read in float32, written in bfloat16, with the index; then read and written in bfloat16.
    assert work.traffic == (part * 4 + 4 + part * 2) + (part * 2 + 4 + part * 2)
    assert work.launches == 2


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("f32[3,5]", 60),
        ("f32[3,5]{1,0}", 60),
        ("f32[3,5]{1,0:T(8,128)}", 8 * 128 * 4),
        ("bf16[768,197,197]{2,1,0:T(8,128)(2,1)}", 768 * 200 * 256 * 2),
        # The last axis of memory is the first of the array.
        ("f32[2,9]{0,1:T(8,128)}", 128 * 16 * 4),
        ("f32[300]{0:T(256)}", 512 * 4),
        ("bf16[64,64]{1,0:T(8,128)(2,1)S(1)}", 0),
        ("(f32[8]{0}, /*index=1*/u8[16]{0}, token[])", 48),
        ("f32[]{:T(128)}", 4),
    ],
)
def test_arrays_take_whole_tiles(kind, expected):
    assert padded_bytes(kind) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  %a = ((f32[2]{0}), f32[4]{0}) all-gather-start(%x)", "f32[4]{0}"),
        ("  %a = (f32[2]{0}, f32[4]{0}) all-gather-start(%x)", "f32[4]{0}"),
        ("  %a = (f32[2]{0}, bf16[4]{0}) all-reduce-start(%x, %y)", "(f32[2]{0}, bf16[4]{0})"),
        ("  %a = ((f32[2,3]{1,0}, s32[]), (f32[1], f32[2]), u32[]) fusion-start(%x, %y)", "(f32[1], f32[2])"),
        ("  %a = (f32[2]{0:T(128)S(1)}, f32[2]{0:T(128)}, u32[]) copy-start(%x)", "f32[2]{0:T(128)S(1)}"),
        ("  ROOT %a = (f32[2]{0}, f32[4]{0}) fusion(%x), kind=kLoop", "(f32[2]{0}, f32[4]{0})"),
    ],
)
def test_what_starts_an_operation_names_its_operands_too(line, expected):
    ((instruction,), entry) = (parse(f"ENTRY %e (x: f32[2]) -> f32[2] {{\n{line}\n}}")[0]["e"], "e")
    assert result_type(instruction) == expected
    assert instruction.operands[0] == "x" and instruction.is_root == ("ROOT" in line) and entry == "e"


def test_a_program_of_this_machine_is_counted_round_by_round():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def program(x, weights):
        def body(carry, weight):
            weight = jax.lax.with_sharding_constraint(weight, whole)
            return jnp.tanh(carry @ weight), None

        x, _ = jax.lax.scan(body, x, weights)
        return jnp.sum(x, axis=0)

    weights = NamedSharding(mesh, PartitionSpec(None, None, "data"))
    jitted = jax.jit(program, in_shardings=(split, weights), out_shardings=whole)
    compiled = jitted.lower(jnp.ones((16, 32)), jnp.ones((5, 32, 32))).compile()
    work = read_program(compiled.as_text())
    # Five weights of 32 x 32, gathered one by one, and one sum of 32 numbers.
    assert work.exchanges["all-gather"] == Exchange(5, {"f32": 5 * 32 * 32 * 4})
    assert work.exchanges["all-reduce"] == Exchange(1, {"f32": 32 * 4}) and len(work.exchanges) == 2
    # A device has two rows.
    assert work.flops == 5 * 2 * 2 * 32 * 32
