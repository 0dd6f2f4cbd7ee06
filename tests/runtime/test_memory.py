"""What a step needs of a device's memory."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from croc_jax.runtime.memory import Needs, advise, describe, is_exhausted, measure
from croc_jax.training.run_config import MeshConfig
from croc_jax.training.sharding import make_mesh
from tests.training.tiny import tiny_recipe


def test_needs_are_of_one_device():
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=8))
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    state = {
        "a": jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=whole),
        "b": jax.ShapeDtypeStruct((512, 2048), jnp.float32, sharding=split),
    }
    batch = jax.ShapeDtypeStruct((16, 1024), jnp.uint8, sharding=split)

    def step(state, batch):
        wide = jnp.tanh(jnp.sin(batch.astype(jnp.float32) @ state["a"]) @ state["a"])
        return jax.tree.map(lambda leaf: leaf + 1, state), jnp.sum(wide)

    needs = measure(jax.jit(step).lower(state, batch).compile(), state, batch)
    # Two rows a device.
    assert needs[:2] == (2**22 + 2**19, 2 * 2 * 1024) and needs.work >= 2 * 1024 * 4


def test_needs_are_described_beside_the_limit_with_advice_if_they_exceed_it():
    needs = Needs(2048, 64, 4096)
    line = "memory of a device: 2.0 KiB state + 64 B batches + 4.0 KiB work = 6.1 KiB"
    assert describe(needs, limit=math.inf, advice="X") == line
    assert describe(needs, limit=2**33, advice="X") == f"{line} of 8.0 GiB"
    assert describe(needs, limit=6000, advice="X") == f"{line} of 5.9 KiB\nwarning: this may not fit: X"


def test_advice_names_what_would_help():
    recipe = tiny_recipe(schedule=dataclasses.replace(tiny_recipe().schedule, batch_size=16))
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=4))
    assert advise(recipe, mesh) == (
        "raise runtime.mesh.fsdp or raise optimizer.accumulation_steps or set backbone.remat=True"
    )
    recipe = tiny_recipe(backbone=dataclasses.replace(recipe.backbone, remat=True))
    assert advise(recipe, make_mesh(jax.devices(), MeshConfig(fsdp=8))) == "take more devices or a smaller backbone"


def test_a_lack_of_memory_is_recognized():
    assert is_exhausted(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm."))
    assert not is_exhausted(jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure"))
