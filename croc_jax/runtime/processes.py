"""Several processes that form one run: how they find each other, and what they tell each other between steps."""

import importlib.util
import itertools
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import logging
from jax._src import clusters, distributed

from croc_jax.runtime.meeting import meet

# Time for one that reads a large state from a slow disk; one that is gone is noticed by its heartbeats.
_PATIENCE_MS = 3_600_000
# After so many seconds of silence a process counts as dead, and all others end.
_HEARTBEAT_SECONDS = 60
_SHUTDOWN_SECONDS = 120
_NAMES = ("coordinator_address", "num_processes", "process_id")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_calls = itertools.count()


class ProcessesError(ValueError):
    """It cannot be told which processes form the run; the message says what to give."""


class Placement(NamedTuple):
    """The place of one process among those of a run.

    Attributes:
        coordinator_address: host and port of process 0.
        num_processes: of the run.
        process_id: of this one.
        local_device_ids: the accelerators of the host that are its own; all that it sees, if empty.
    """

    coordinator_address: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] = ()


def join_processes(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Placement | None:
    """Makes this process one of those of a run, if there are several; call it before any device is used.

    What is not given comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or from
    what started the processes: Slurm, Open MPI, Kubernetes, or a TPU's metadata. `num_processes=1` joins
    nothing, whatever the environment says. Warnings of absl are those of process 0 from here on.

    Args:
        coordinator_address: host and port of process 0, which all can reach.
        num_processes: of the run.
        process_id: of this one, from 0.

    Returns:
        The place of this process; None if it is alone.

    Raises:
        ProcessesError: if only some of the three are known.
        MeetingError: if the others do not come, or disagree.
    """
    placement = find_placement(os.environ, coordinator_address, num_processes, process_id)
    if placement is not None:
        meet(placement.coordinator_address, placement.num_processes, placement.process_id)
        # Signals are agreed upon by the loop; JAX's own service would take SIGTERM for itself.
        jax.config.update("jax_enable_preemption_service", False)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            placement.coordinator_address,
            placement.num_processes,
            placement.process_id,
            list(placement.local_device_ids) or None,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
        if placement.process_id > 0:
            logging.set_verbosity(logging.ERROR)
    return placement


def find_placement(
    environ: Mapping[str, str],
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Placement | None:
    """Returns what `join_processes` joins, from flags and environment alone."""
    known: dict[str, Any] = {
        "coordinator_address": coordinator_address or environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": _number("JAX_NUM_PROCESSES", environ) if num_processes is None else num_processes,
        "process_id": _number("JAX_PROCESS_ID", environ) if process_id is None else process_id,
    }
    if known["num_processes"] == 1:
        return None
    if None in known.values():
        found = _ask_launcher(environ, known)
        if found is None and set(known.values()) == {None}:
            return None
        known = found or known
        if known["num_processes"] == 1:
            return None
    missing = [f"--{name}" for name in _NAMES if known[name] is None]
    if missing:
        given = " ".join(f"--{name}={value}" for name, value in known.items() if value is not None)
        raise ProcessesError(
            f"several processes need {' and '.join(missing)} too (known: {given}); "
            "give all three, or --num_processes=1 for a process of its own"
        )
    if not 0 <= known["process_id"] < known["num_processes"]:
        raise ProcessesError(
            f"--process_id={known['process_id']}: must be from 0 to {known['num_processes'] - 1}, "
            f"as --num_processes={known['num_processes']}"
        )
    if not re.fullmatch(r".+:\d+", known["coordinator_address"]):
        raise ProcessesError(f"--coordinator_address={known['coordinator_address']}: expected HOST:PORT of process 0")
    return Placement(**known, local_device_ids=_own_devices(environ))


def _number(name: str, environ: Mapping[str, str]) -> int | None:
    text = environ.get(name)
    if text is not None and not text.isdecimal():
        raise ProcessesError(f"{name}={text!r}: expected a number")
    return None if text is None else int(text)


def _ask_launcher(environ: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the three values, those that are known as they are, or None if nothing launched several processes."""
    cluster = _detect_cluster(environ)
    if cluster is not None:
        count = known["num_processes"]
        if count is None and cluster is clusters.SlurmCluster:
            # In a step of its own, as an interactive shell is, the tasks of the job say nothing.
            count = _number("SLURM_STEP_NUM_TASKS", environ)
        count = _or(count, cluster.get_process_count)
        if count == 1:
            return {**known, "num_processes": 1}
        port = environ.get("JAX_COORDINATOR_PORT")
        address = _or(known["coordinator_address"], lambda: cluster.get_coordinator_address(300, port))
        return {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": _or(known["process_id"], cluster.get_process_id),
        }
    if "JOB_COMPLETION_INDEX" in environ and importlib.util.find_spec("kubernetes") is None:
        raise ProcessesError(
            "this is a pod of an indexed Kubernetes job: install jax[k8s] to find the others, or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (--num_processes=1 to run alone)"
        )
    # Open MPI from version 5 on does not tell the address of its first host.
    if "OMPI_COMM_WORLD_SIZE" in environ:
        theirs = {"num_processes": "OMPI_COMM_WORLD_SIZE", "process_id": "OMPI_COMM_WORLD_RANK"}
        return {**known} | {name: _or(known[name], lambda v=v: _number(v, environ)) for name, v in theirs.items()}
    return None


def _detect_cluster(environ: Mapping[str, str]) -> Any | None:
    """Returns the first of JAX's descriptions of a cluster that fits the environment."""
    kinds = [kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method]
    if "JOB_COMPLETION_INDEX" not in environ or importlib.util.find_spec("kubernetes") is None:
        # A pod that is none of an indexed job has no others to look for; without the package, JAX cannot.
        kinds = [kind for kind in kinds if kind is not clusters.K8sCluster]
    return next((kind for kind in kinds if kind.is_env_present()), None)


def _own_devices(environ: Mapping[str, str]) -> tuple[int, ...]:
    """Returns the places, among the devices that it sees, of those of a process that shares them; else nothing."""
    local, tasks = _place_on_host(environ)
    if "JAX_LOCAL_DEVICE_IDS" in environ or local is None or tasks == 1:
        return ()
    lists = [environ[name].split(",") for name in _VISIBLE if name in environ]
    seen = min((len(devices) for devices in lists), default=None)
    on_host = _number("SLURM_GPUS_ON_NODE", environ)
    # Such as a100:4.
    bound = seen is not None and environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2] == str(seen)
    if seen == 1 or bound or (seen and tasks and on_host and seen * tasks <= on_host):
        # The launcher has hidden those of the others.
        return ()
    share = max(1, seen // tasks) if seen and tasks else 1
    return tuple(range(local * share, (local + 1) * share))


def _place_on_host(environ: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Returns the number of this process among those that were launched with it on its host, and theirs, if known."""
    rank = _number("OMPI_COMM_WORLD_LOCAL_RANK", environ)
    if rank is not None:
        return rank, _number("OMPI_COMM_WORLD_LOCAL_SIZE", environ)
    # Such as 8(x2),4: in the order of hosts.
    layout = environ.get("SLURM_STEP_TASKS_PER_NODE")
    if layout is None:
        return None, None
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", layout)
    counts = [int(tasks) for tasks, hosts in groups for _ in range(int(hosts or 1))]
    host = _number("SLURM_NODEID", environ) or 0
    return _number("SLURM_LOCALID", environ), counts[host] if host < len(counts) else None


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise() if value is None else value


def gather_texts(text: str) -> list[str]:
    """Returns what all processes give, in their order; all must come by here, the same number of times."""
    if jax.process_count() == 1:
        return [text]
    client, folder = connection(), f"croc_jax/{next(_calls)}"
    client.key_value_set(f"{folder}/{jax.process_index():06d}", text)
    client.wait_at_barrier(folder, _PATIENCE_MS)
    return [value for _, value in sorted(client.key_value_dir_get(folder))]


def connection() -> Any:
    """Returns JAX's client of the service in process 0, which keeps texts by name; there are several processes."""
    client = distributed.global_state.client
    assert client is not None, "join_processes has found others"
    return client


def coordinator_host() -> str:
    """Returns the name or address of the host of process 0; there are several processes."""
    address = distributed.global_state.coordinator_address
    assert address is not None, "join_processes has found others"
    return address.rpartition(":")[0].strip("[]")
