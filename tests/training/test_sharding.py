"""Meshes of devices, and where the parts of a state live on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from croc_jax.training.sharding import (
    MeshConfig,
    all_gather_params,
    make_mesh,
    num_data_shards,
    shard_batch,
    state_shardings,
)
from croc_jax.training.state import state_shapes, training_bytes
from tests.training.tiny import STEPS_PER_EPOCH, tiny_recipe


class Device:
    """A device of some process."""

    def __init__(self, gib, process_index=0, number=0):
        self.platform, self.process_index, self.id = "none", process_index, number

    def __repr__(self):
        return f"{self.process_index}.{self.id}"


def shape_of(config, devices=None, **options):
    return tuple(make_mesh(devices or jax.devices(), config, **options).shape.values())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, (8, 1, 1)),
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=4), (2, 4, 1)),
        (MeshConfig(fsdp=2, model=2), (2, 2, 2)),
        (MeshConfig(data=4), (4, 2, 1)),
        (MeshConfig(data=2, model=2), (2, 2, 2)),
        (MeshConfig(data=8), (8, 1, 1)),
        (MeshConfig(data=1, fsdp=8), (1, 8, 1)),
        (MeshConfig(model=8), (1, 1, 8)),
    ],
)
def test_an_axis_takes_what_is_left(config, expected):
    assert shape_of(config) == expected


@pytest.mark.parametrize(("state_gib", "expected"), [(3, (8, 1, 1)), (7, (4, 2, 1)), (30, (1, 8, 1)), (900, (1, 8, 1))])
def test_parameters_are_split_as_far_as_they_must(state_gib, expected):
    assert shape_of(MeshConfig(), state_bytes=state_gib * 2**30, memory_bytes=8 * 2**30) == expected
    assert shape_of(MeshConfig(), state_bytes=state_gib * 2**30) == (8, 1, 1)


def test_devices_of_a_process_come_side_by_side_whatever_their_order():
    devices = [Device(8, process, number) for number in (2, 0, 3, 1) for process in (1, 0)]
    mesh = make_mesh(devices, MeshConfig(fsdp=2, model=2))
    assert str(mesh.devices.tolist()) == "[[[0.0, 0.1], [0.2, 0.3]], [[1.0, 1.1], [1.2, 1.3]]]"


@pytest.mark.parametrize(
    ("counts", "model", "message"),
    [
        ((6, 6), 4, r"model=4: must divide the 6 device\(s\) of a process, which read the same rows"),
        ((1, 1), 2, r"model=2: must divide the 1 device\(s\) of a process"),
        ((4, 2), 1, "4 of process 0, 2 of process 1: give each process as many devices as any other"),
    ],
)
def test_processes_that_cannot_share_devices_are_named(counts, model, message):
    devices = [Device(8, process, number) for process, count in enumerate(counts) for number in range(count)]
    with pytest.raises(ValueError, match=message):
        make_mesh(devices, MeshConfig(fsdp=1, model=model))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(fsdp=3), r"data=auto x fsdp=3 x model=1 does not give the 8 device\(s\); leave data=0"),
        (MeshConfig(data=4, fsdp=4), "data=4 x fsdp=4 x model=1"),
        (MeshConfig(data=3), "data=3 x fsdp=auto x model=1"),
        (MeshConfig(data=16), "data=16 x fsdp=auto x model=1"),
        (MeshConfig(model=3), r"runtime.mesh.model=3: must divide the 8 device\(s\)"),
    ],
)
def test_axes_that_do_not_multiply_to_the_devices_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(jax.devices(), config)


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="fsdp=-1: must be 0 or more"):
        MeshConfig(fsdp=-1)
    with pytest.raises(ValueError, match="model=0: must be 1 or more"):
        MeshConfig(model=0)


def test_rules_split_matrices_prototypes_and_what_follows_them():
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=4, model=2))
    shardings = state_shardings(state_shapes(tiny_recipe(), steps_per_epoch=STEPS_PER_EPOCH), mesh)
    block = shardings.teacher["backbone"]["block_1"]
    assert block["attention"]["qkv"]["kernel"].spec == PartitionSpec("fsdp", None)
    assert block["attention"]["projection"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert block["attention"]["qkv"]["bias"].spec == block["norm_1"]["scale"].spec == PartitionSpec()
    head = shardings.student["head"]
    assert head["last_layer"]["direction"].spec == PartitionSpec("model", "fsdp")
    # One column divides by nothing.
    assert head["last_layer_dense"]["scale"].spec == PartitionSpec("model", None)
    assert head["mlp_2"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert shardings.center.spec == shardings.center_dense.spec == PartitionSpec("model")
    moments = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(shardings.opt_state)
    }
    split = {name.rsplit("/", 2)[-2] for name, spec in moments.items() if "fsdp" in str(spec)}
    assert split == {"qkv", "projection", "mlp_1", "mlp_2", "mlp_3", "last_layer", "last_layer_dense"}
    assert [spec for name, spec in moments.items() if name.endswith("mu/head/last_layer/direction")] == [
        PartitionSpec("model", "fsdp")
    ]


def test_prototypes_that_do_not_divide_are_named():
    mesh = make_mesh(jax.devices(), MeshConfig(model=8))
    with pytest.raises(ValueError, match="runtime.mesh.model=8: must divide the 12 prototypes of .*last_layer"):
        state_shardings(state_shapes(tiny_recipe(), steps_per_epoch=STEPS_PER_EPOCH), mesh)


def test_all_gathered_parameters_are_whole_but_for_prototypes():
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=2, model=2))
    params = {"mlp_1": {"kernel": np.ones((4, 6))}, "last_layer": {"direction": np.arange(12.0).reshape(4, 3)}}
    split = jax.device_put(params, state_shardings(params, mesh))
    assert split["mlp_1"]["kernel"].sharding.shard_shape((4, 6)) == (4, 3)
    whole = jax.jit(lambda params: all_gather_params(params, mesh))(split)
    assert whole["mlp_1"]["kernel"].sharding.is_fully_replicated
    assert whole["last_layer"]["direction"].sharding.spec == PartitionSpec("model", None)
    np.testing.assert_array_equal(whole["last_layer"]["direction"], params["last_layer"]["direction"])
    alone = make_mesh(jax.devices()[:1])
    assert all_gather_params(params, alone) is params


def test_gradients_of_gathered_parameters_come_back_split():
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=4))
    params = {"mlp_1": {"kernel": np.ones((4, 8), np.float32)}, "norm": {"scale": np.ones(4, np.float32)}}
    split = jax.device_put(params, state_shardings(params, mesh))
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)

    def loss(params, rows):
        whole = all_gather_params(params, mesh)
        return jnp.sum((rows * whole["norm"]["scale"] @ whole["mlp_1"]["kernel"]) ** 2)

    gradients = jax.jit(jax.grad(loss))(split, shard_batch(rows, mesh))
    expected = reference_gradients(params, rows)
    assert gradients["mlp_1"]["kernel"].sharding.shard_shape((4, 8)) == (4, 2)
    np.testing.assert_allclose(gradients["mlp_1"]["kernel"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradients["norm"]["scale"], expected[1], rtol=1e-5)


def reference_gradients(params, rows):
    scale, kernel = (np.asarray(array, np.float64) for array in (params["norm"]["scale"], params["mlp_1"]["kernel"]))
    to_result = 2 * (rows * scale) @ kernel
    return (rows * scale).T @ to_result, np.sum(to_result @ kernel.T * rows, axis=0)


def test_rows_are_split_by_data_and_fsdp():
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=2, model=2))
    rows = shard_batch(np.arange(8.0), mesh)
    assert num_data_shards(mesh) == 4 and rows.sharding.shard_shape((8,)) == (2,)
    np.testing.assert_array_equal(rows, np.arange(8.0))


def test_rows_of_other_processes_are_not_taken_for_ones_own(monkeypatch):
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=2))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="process 0 reads rows 0 to 12 of 24, but its devices hold rows 0 to 24"):
        shard_batch(np.arange(12.0), mesh)


def test_a_state_and_its_gradients_are_counted():
    shapes = state_shapes(tiny_recipe(), steps_per_epoch=STEPS_PER_EPOCH)
    params = sum(leaf.size for leaf in jax.tree.leaves(shapes.student))
    # Student, teacher, both moments, gradients; counters and centers are small, frozen scales have no moments.
    assert 0.98 < training_bytes(shapes) / (4 * 5 * params) < 1.02
