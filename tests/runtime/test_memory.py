"""What a step needs is told from shapes alone, and the program that told it is the one that runs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from croc_jax.data.config import LocalViewsConfig, ViewsConfig
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import FolderSource
from croc_jax.runtime import memory
from croc_jax.runtime.memory import (
    Needs,
    StepTooLargeError,
    advise,
    compile_step,
    describe,
    format_bytes,
    largest_results,
    measure,
)
from croc_jax.training.config import MeshConfig
from croc_jax.training.sharding import make_mesh, shard_batch
from croc_jax.training.state import abstract_batch
from tests.training.tiny import tiny_recipe

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """Grows by one name with each program that is compiled."""
    found = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_step_is_compiled_once_before_there_is_a_state(compilations, monkeypatch):
    mesh = make_mesh(jax.devices()[:2])
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    state = jax.ShapeDtypeStruct((256,), jnp.float32, sharding=whole)
    batch = jax.ShapeDtypeStruct((4, 256), jnp.uint8, sharding=split)
    jitted = jax.jit(
        lambda state, batch: (state + jnp.mean(batch, axis=0), {"loss": jnp.sum(state)}),
        in_shardings=(whole, split), out_shardings=(whole, whole), donate_argnums=0,
    )  # fmt: skip
    lines = []
    monkeypatch.setattr(memory, "memory_limit", lambda devices: 1500.0)
    step = compile_step(jitted, state, batch, recipe=tiny_recipe(), mesh=mesh, say=lines.append)
    assert len(compilations) == 1
    assert lines[0] == "compiling the training step ..."
    assert "a device needs 1.0 KiB of state" in lines[1] and lines[1].endswith(" in all, of 1.5 KiB")
    assert lines[2].startswith("warning: a device needs ") and lines[2].endswith(
        " KiB and may hold 1.5 KiB: "
        "raise runtime.mesh.fsdp or raise optimizer.accumulation_steps or set backbone.remat=True"
    )
    state = jax.device_put(np.zeros(256, np.float32), whole)
    del compilations[:]
    for _ in range(2):
        state, metrics = step(state, shard_batch(np.ones((4, 256), np.uint8), mesh))
    assert float(metrics["loss"]) == 256 and not compilations
    monkeypatch.setattr(memory, "memory_limit", lambda devices: math.inf)
    compile_step(jitted, state, batch, recipe=tiny_recipe(), mesh=mesh, say=lines.append)
    assert len(lines) == 5


def test_shapes_of_a_batch_are_those_of_the_data(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    for local in (LocalViewsConfig(), LocalViewsConfig(count=3, crop_size=8)):
        views = ViewsConfig(crop_size=16)
        data = dataclasses.replace(tiny_recipe().data, views=views, local_views=local)
        recipe = tiny_recipe(data=data, schedule=dataclasses.replace(tiny_recipe().schedule, batch_size=4))
        dataset = make_dataset(FolderSource(tmp_path), views=views, local_views=local, batch_size=4, seed=0)
        with dataset.iterate(num_workers=0, num_threads=0) as stream:
            batch = next(stream)
        told = abstract_batch(recipe, mesh=make_mesh(jax.devices()[:4]))
        describe_leaf = lambda leaf: (leaf.shape, np.dtype(leaf.dtype))  # noqa: E731
        assert jax.tree.map(describe_leaf, told) == jax.tree.map(describe_leaf, dict(batch))
        assert told["views"].sharding.shard_shape(told["views"].shape)[0] == 1


def test_needs_are_of_one_device_and_the_largest_arrays_come_first():
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=8))
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    state = {
        "a": jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=whole),
        "b": {"kernel": jax.ShapeDtypeStruct((512, 2048), jnp.float32, sharding=split)},
    }
    batch = jax.ShapeDtypeStruct((16, 1024), jnp.uint8, sharding=split)

    def step(state, batch):
        wide = jnp.tanh(jnp.sin(batch.astype(jnp.float32) @ state["a"]) @ state["a"])
        return jax.tree.map(lambda leaf: leaf + 1, state), jnp.sum(wide)

    needs = measure(jax.jit(step).lower(state, batch).compile(), state, batch)
    assert needs.state == {"a": 2**22, "b/kernel": 2**19} and needs.batches == 2 * 2 * 1024
    assert needs.work is not None and needs.work >= 2 * 1024 * 4
    # Two rows a device; a new state is no intermediate result.
    assert max(needs.results.values()) == 2 * 1024 * 4 and any("f32[2,1024] of" in name for name in needs.results)
    assert needs.total == 2**22 + 2**19 + 4096 + needs.work


def test_results_inside_of_others_and_final_ones_are_not_listed():
    text = """
%fused (p: f32[8]) -> f32[8] {
  %huge = f32[4096,4096]{1,0} broadcast(%p), dimensions={}
  ROOT %r = f32[8]{0} add(%p, %p)
}

%body (p: (f32[8], s32[])) -> (f32[8], s32[]) {
  %p = (f32[8]{0}, s32[]) parameter(0)
  %g = (f32[64,64]{1,0:T(8,128)}, s8[128]{0}) custom-call(%p), metadata={op_name="jit(f)/while/body/mlp/dot_general"}
  ROOT %t = (f32[8]{0}, s32[]) tuple(%p, %p)
}

ENTRY %main (a: f32[999]) -> (f32[999], f32[8]) {
  %a = f32[999999]{0} parameter(0)
  %f = bf16[8,16]{1,0} fusion(%a), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/mlp/exp"}
  %same = bf16[8,16]{1,0} fusion(%f), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/mlp/exp"}
  %w = (f32[888888]{0}, s32[]) while(%f), condition=%cond, body=%body
  %new = f32[777]{0} fusion(%a), kind=kLoop, calls=%fused
  ROOT %tuple.1 = (f32[777]{0}, f32[8]{0}) tuple(%new, /*index=1*/%f)
}
"""
    assert largest_results(text) == {"f32[64,64] of mlp/dot_general": 4 * 64 * 64, "bf16[8,16] of mlp/exp": 256}


def test_no_size_reads_as_nothing():
    assert [format_bytes(count) for count in (0, 5, 1023, 1024, 1_048_575, 2**20, 1.5 * 2**30, 2**43)] == [
        "0 B", "5 B", "1023 B", "1.0 KiB", "1024.0 KiB", "1.0 MiB", "1.5 GiB", "8192.0 GiB",
    ]  # fmt: skip


def test_needs_are_told_against_what_there_is():
    needs = Needs({"a": 100, "b": 2048, "c": 7, "d": 8}, 64, 4096, {"f32[1024] of mlp/exp": 4096})
    told = "a device needs 2.1 KiB of state (largest: b 2.0 KiB, a 100 B, d 8 B), 64 B of batches, "
    told += "and 4.0 KiB for the work of a step (largest: f32[1024] of mlp/exp 4.0 KiB): 6.2 KiB in all"
    assert describe(needs, math.inf) == told
    assert describe(needs, 2**33) == f"{told}, of 8.0 GiB"
    silent = Needs({"a": 100}, 64, None, {})
    assert describe(silent, math.inf) == (
        "a device needs 100 B of state (largest: a 100 B), and 64 B of batches: 164 B in all"
    )


def test_advice_names_what_would_help():
    recipe = tiny_recipe(schedule=dataclasses.replace(tiny_recipe().schedule, batch_size=16))
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=4))
    assert advise(recipe, mesh) == (
        "raise runtime.mesh.fsdp or raise optimizer.accumulation_steps or set backbone.remat=True"
    )
    recipe = tiny_recipe(backbone=dataclasses.replace(recipe.backbone, remat=True))
    assert advise(recipe, make_mesh(jax.devices(), MeshConfig(fsdp=8))) == "take more devices or a smaller backbone"


def test_a_step_that_the_compiler_finds_no_room_for_is_a_line_of_advice():
    class Refused:
        def lower(self, *args):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\nMore lines.")

    options = {"recipe": tiny_recipe(), "mesh": make_mesh(jax.devices()[:2]), "say": lambda text: None}
    with pytest.raises(StepTooLargeError, match="a step does not fit a device: raise runtime.mesh.fsdp or .* hbm"):
        compile_step(Refused(), None, None, **options)  # pyright: ignore[reportArgumentType]
