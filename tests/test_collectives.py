"""The benchmark's reader of compiled programs counts what travels and what is computed, round by round."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "collectives.py"


def load():
    spec = importlib.util.spec_from_file_location("collectives", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rounds_of_loops_are_counted():
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
    work = load().read_program(compiled.as_text())
    # Five weights of 32 x 32, gathered one by one, and one sum of 32 numbers.
    assert work.sizes == {"all-gather": 5 * 32 * 32 * 4, "all-reduce": 32 * 4}
    assert work.counts == {"all-gather": 5, "all-reduce": 1}
    # A device has two rows.
    assert work.flops == 5 * 2 * 2 * 32 * 32


def test_loops_of_unknown_length_are_taken_to_run_as_often_as_told():
    text = """
%body.1 (p: f32[8]) -> f32[8] {
  %ar = (f32[8]{0}, bf16[2,4]{1,0}) all-reduce(%a, %b), to_apply=%sum
}

%cond.1 (p: f32[8]) -> pred[] {
  %x = pred[] compare(%p, %p)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = f32[8] while(%p), condition=%cond.1, body=%body.1
  %g = f32[16]{0} all-gather-start(%w), dimensions={0}
}
"""
    read = load().read_program
    assert read(text) == ({"all-reduce": 32 + 16, "all-gather": 64}, {"all-reduce": 1, "all-gather": 1}, 0)
    often = read(text, unknown_trips=8)
    assert often == ({"all-reduce": 8 * 48, "all-gather": 64}, {"all-reduce": 8, "all-gather": 1}, 0)
