"""The mesh of devices, and where arrays live on it."""

import collections
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from croc_jax.training.run_config import MeshConfig

DATA_AXIS, FSDP_AXIS, MODEL_AXIS = AXES = ("data", "fsdp", "model")
# Axes that split the batch.
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)

# Where parts of a state lie: the first pattern that ends its path counts. The optimizer's moments have the
# paths of their parameters. A dimension that its axis does not divide is not split.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # Prototypes, and the centers of their logits.
    (r"last_layer(_dense|_masked)?/(direction|scale)", PartitionSpec(MODEL_AXIS, FSDP_AXIS)),
    (r"center(_dense|_masked)?", PartitionSpec(MODEL_AXIS)),
    # Matrices and convolutions, by their outputs; that of queries, keys and values, whose outputs are divided into
    # heads, by its inputs.
    (r"qkv/kernel", PartitionSpec(FSDP_AXIS, None)),
    (r"(projection|mlp_\d)/kernel", PartitionSpec(None, FSDP_AXIS)),
    (r"(conv_\d|shortcut|downsample_\d)/kernel", PartitionSpec(None, None, None, FSDP_AXIS)),
    (r".*", PartitionSpec()),
)
# Share of a device's memory for state and gradients; the remainder is for activations.
_SHARE_OF_MEMORY = 0.5


def make_mesh(
    devices: Sequence[Any] | None = None,
    config: MeshConfig | None = None,
    *,
    state_bytes: int = 0,
    memory_bytes: float = math.inf,
) -> Mesh:
    """Returns a mesh with the axes data, fsdp and model.

    Args:
        devices: all devices of all processes by default, in any order; those of a process, in the order of their
            numbers, end up on the axes that exchange most (model, then fsdp).
        config: sizes of the axes; by default, all devices are on the data axis.
        state_bytes: bytes of a whole state with its gradients, for the choice of fsdp.
        memory_bytes: bytes that the smallest device of all processes can hold, the same number in each process.

    Raises:
        ValueError: if the axes do not multiply to the devices, or the processes cannot share them.
    """
    # Process p reads the p-th part of each batch: its devices have to come p-th, too.
    devices = sorted(
        jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id)
    )
    config = config or MeshConfig(fsdp=1)
    count, model = len(devices), config.model
    if count % model:
        raise ValueError(f"runtime.mesh.model={model}: must divide the {count} device(s)")
    _check_processes(devices, model)
    available = count // model
    if config.fsdp or config.data:
        fsdp = config.fsdp or max(available // config.data, 1)
    else:
        fsdp = _choose_fsdp(memory_bytes, available, state_bytes // model)
    data = config.data or available // fsdp
    if data * fsdp * model != count:
        raise ValueError(
            f"runtime.mesh: data={config.data or 'auto'} x fsdp={config.fsdp or 'auto'} x model={model} does not give "
            f"the {count} device(s); leave data=0 to take what fsdp and model leave"
        )
    return Mesh(np.array(devices).reshape(data, fsdp, model), AXES)


def _check_processes(devices: Sequence[Any], model: int) -> None:
    """Raises ValueError unless each process has the same number of whole groups of `model` devices."""
    counts = collections.Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{number} of process {process}" for process, number in counts.items())
        raise ValueError(f"{listed}: give each process as many devices as any other, as it reads as many images")
    local = len(devices) // len(counts)
    if local % model:
        raise ValueError(
            f"runtime.mesh.model={model}: must divide the {local} device(s) of a process, which read the same rows"
        )


def _choose_fsdp(memory: float, available: int, state_bytes: int) -> int:
    """Returns the least divisor of the devices at which a part of the state fits one."""
    divisors = [size for size in range(1, available + 1) if available % size == 0]
    fitting = (size for size in divisors if state_bytes / size <= _SHARE_OF_MEMORY * memory)
    return next(fitting, available)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def state_shardings(shapes: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each array of a state (or of a part of one), by `RULES`.

    Args:
        shapes: a tree of arrays or of their shapes.
        mesh: mesh of all devices.

    Raises:
        ValueError: if the model axis does not divide the prototypes.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, _spec(path, leaf, mesh)), shapes)


def all_gather_params(params: Any, mesh: Mesh) -> Any:
    """All-gathers what the fsdp axis splits, and leaves what the model axis splits; to be called under jit.

    Gradients come back split: devices reduce-scatter them. (The transpose of a sharding constraint asks for the
    whole gradient instead: an all-reduce, of which each device then drops all but its part.)

    Args:
        params: a tree of parameters.
        mesh: mesh of all devices.
    """

    def gather(path: tuple, leaf: Array) -> Array:
        split = _spec(path, leaf, mesh)
        gathered = PartitionSpec(*(None if axis == FSDP_AXIS else axis for axis in split))
        return _gather(leaf, NamedSharding(mesh, split), NamedSharding(mesh, gathered))

    return params if mesh.shape[FSDP_AXIS] == 1 else jax.tree_util.tree_map_with_path(gather, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(leaf: Array, split: NamedSharding, gathered: NamedSharding) -> Array:
    del split
    return jax.lax.with_sharding_constraint(leaf, gathered)


def _gather_forward(leaf: Array, split: NamedSharding, gathered: NamedSharding) -> tuple[Array, None]:
    return _gather(leaf, split, gathered), None


def _gather_backward(split: NamedSharding, _: NamedSharding, __: None, cotangent: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(cotangent, split),)


_gather.defvjp(_gather_forward, _gather_backward)


def _spec(path: tuple, leaf: Array, mesh: Mesh) -> PartitionSpec:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    rule = next(spec for pattern, spec in RULES if re.search(rf"(^|/)({pattern})$", name))
    axes = []
    for size, axis in zip(leaf.shape, rule, strict=False):
        splits = axis is not None and mesh.shape[axis] > 1
        if splits and axis == MODEL_AXIS and size % mesh.shape[axis]:
            raise ValueError(f"runtime.mesh.model={mesh.shape[axis]}: must divide the {size} prototypes of {name}")
        axes.append(axis if splits and size % mesh.shape[axis] == 0 else None)
    return PartitionSpec(*axes)


def shard_map_batch(function: Callable, mesh: Mesh | None, arguments: Any, results: Any) -> Callable:
    """Returns a function that runs on each device's own rows, and exchanges only what it says itself.

    The prototypes stay split.

    Args:
        function: a function of positional arguments.
        mesh: mesh of all devices; without one, the function is returned as it is.
        arguments: specifications of the arguments, over the axes that split the batch.
        results: specifications of the results.
    """
    if mesh is None or num_data_shards(mesh) == 1:
        return function
    # Inside, the partitioner is left out only if all axes are manual; with some, it fails on cuDNN's attention.
    axes = AXES if mesh.shape[MODEL_AXIS] == 1 else BATCH_AXES
    return jax.shard_map(
        function, mesh=mesh, in_specs=arguments, out_specs=results, axis_names=set(axes), check_vma=False
    )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts each process's rows of a batch on its devices, as parts of global arrays.

    Args:
        batch: a tree of host arrays that hold this process's rows.
        mesh: mesh of all devices, by `make_mesh`.

    Raises:
        ValueError: if the devices of this process do not hold exactly its part of the rows.
    """
    sharding = batch_sharded(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        count = jax.process_count() * len(rows)
        _check_rows(sharding, count)
        return jax.make_array_from_process_local_data(sharding, rows, (count, *rows.shape[1:]))

    return jax.tree.map(put, batch)


@functools.lru_cache
def _check_rows(sharding: NamedSharding, count: int) -> None:
    places = sharding.addressable_devices_indices_map((count,)).values()
    held = {index[0].indices(count)[:2] for index in places if index}
    part, process = count // jax.process_count(), jax.process_index()
    first, last = min(held)[0], max(held)[1]
    if (first, last) != (process * part, (process + 1) * part) or sum(end - begin for begin, end in held) != part:
        raise ValueError(
            f"process {process} reads rows {process * part} to {(process + 1) * part} of {count}, but its devices "
            f"hold rows {first} to {last}: the mesh must have the devices of each process side by side, in order"
        )


def check_batch_divides(batch_size: int, *, devices: int, num_microbatches: int) -> None:
    """Raises ValueError, naming the nearest sizes that work, unless the batch splits evenly.

    Args:
        batch_size: images of an update.
        devices: devices that split the batch (data x fsdp).
        num_microbatches: gradient accumulation steps.
    """
    parts = devices * num_microbatches
    if batch_size % parts or batch_size < parts:
        below, above = batch_size // parts * parts, (batch_size // parts + 1) * parts
        near = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"schedule.batch_size={batch_size} does not divide over {devices} device(s) and "
            f"{num_microbatches} accumulation step(s); the nearest sizes that do: {near}"
        )


def num_data_shards(mesh: Mesh) -> int:
    """Returns how many devices split the batch."""
    return mesh.shape[DATA_AXIS] * mesh.shape[FSDP_AXIS]


def reduce_each(reduction: Callable[[Array], Array], arrays: Sequence[Array]) -> list[np.ndarray]:
    """Returns a number of each array, wherever it lies.

    An array that every device holds whole is read from one of them. The others go through one
    program: many that exchange numbers at the same time can wait for each other for good on CPU.

    Args:
        reduction: a jitted function of one array.
        arrays: global arrays, in any order.
    """
    spread = [index for index, array in enumerate(arrays) if not array.is_fully_replicated]
    found: list[Any] = [None] * len(arrays)
    for index, number in zip(spread, _reduce_all(reduction, [arrays[i] for i in spread]), strict=True):
        found[index] = number
    for index, array in enumerate(arrays):
        if found[index] is None:
            found[index] = reduction(array.addressable_data(0))
    return jax.device_get(found)


@functools.partial(jax.jit, static_argnums=0)
def _reduce_all(reduction: Callable[[Array], Array], arrays: list[Array]) -> list[Array]:
    return [reduction(array) for array in arrays]
