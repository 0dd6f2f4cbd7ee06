"""Starts JAX's distributed runtime, and holds what processes agree on outside of a training step."""

import contextlib
import importlib.util
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

_SECONDS_TO_CONNECT = 300
# A process that is silent for so long counts as dead, and all others end.
_HEARTBEAT_SECONDS = 60
_SHUTDOWN_SECONDS = 60
_LONGEST_WAIT_MS = 24 * 3600 * 1000
_VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
# What a collective raises when the other side is gone. A lack of memory can name its library, too.
_PEER_LOST = re.compile(r"^(?!.*RESOURCE_EXHAUSTED).*(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|gloo|nccl)", re.I | re.S)


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_seconds: int = _SECONDS_TO_CONNECT,
) -> None:
    """Connects the processes of a run, if there are several; must come before the first use of a device.

    What is not given is read from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and what these
    lack from the cluster that JAX detects (Slurm, Open MPI, Kubernetes, TPU). Without any of it, or with
    `num_processes=1`, the process is alone. Process 0 alone prints warnings from here on.

    Args:
        coordinator_address: HOST:PORT of process 0.
        num_processes: number of processes of the run.
        process_id: index of this process, from 0.
        timeout_seconds: how long to wait for the other processes.

    Raises:
        ValueError: if only a part of this is known.
    """
    environ = os.environ
    coordinator_address = coordinator_address or environ.get("JAX_COORDINATOR_ADDRESS")
    num_processes = _read_number("JAX_NUM_PROCESSES") if num_processes is None else num_processes
    process_id = _read_number("JAX_PROCESS_ID") if process_id is None else process_id
    given = [coordinator_address, num_processes, process_id]
    if num_processes == 1 or (given == [None, None, None] and _is_alone()):
        return
    visible = next((environ[name] for name in _VISIBLE_DEVICES if name in environ), None)
    where = coordinator_address or "the address that the cluster names"
    # JAX itself aborts when the time is over, with a message that names neither the address nor the time.
    message = f"timed out after {timeout_seconds} s waiting at {where} for the other processes: check their logs"
    alarm = threading.Timer(timeout_seconds, end_at_once, [1, f"error: {message}"])
    alarm.daemon = True
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        alarm.start()
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            # Where the launcher has hidden the devices of other processes, JAX's choice by local rank is wrong.
            local_device_ids=[0] if visible and "," not in visible else None,
            # In a pod, detection asks the Kubernetes API, which needs permissions, even if all is given.
            cluster_detection_method="deactivate" if None not in given and _in_pod() else None,
            initialization_timeout=timeout_seconds + 60,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if given == [None, None, None] and "coordinator_address should be defined" in str(error):
            return
        raise ValueError(
            f"several processes need --coordinator_address, --num_processes and --process_id ({error}); "
            "--num_processes=1 runs this process alone"
        ) from error
    finally:
        alarm.cancel()
    if jax.process_index() > 0:
        logging.set_verbosity(logging.ERROR)


def _is_alone() -> bool:
    """Says whether this is a place where JAX's cluster detection would look for processes that do not exist."""
    if _in_pod() and "JOB_COMPLETION_INDEX" in os.environ and importlib.util.find_spec("kubernetes") is None:
        raise ValueError(
            "this is a pod of an indexed Kubernetes job: install jax[k8s], or set JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID (--num_processes=1 runs this process alone)"
        )
    plain_pod = _in_pod() and "JOB_COMPLETION_INDEX" not in os.environ
    # An interactive step of a job with several tasks, such as `srun --pty bash`.
    return plain_pod or os.environ.get("SLURM_STEP_NUM_TASKS") == "1"


def _in_pod() -> bool:
    # Pods with TPUs are found by JAX without Kubernetes.
    return "KUBERNETES_SERVICE_HOST" in os.environ and "TPU_WORKER_HOSTNAMES" not in os.environ


def _read_number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise ValueError(f"{name}={text!r}: expected a number")
    return None if text is None else int(text)


@contextlib.contextmanager
def failing_fast() -> Iterator[None]:
    """Ends this process at once when the block raises: an orderly exit would wait for the other processes.

    They notice that it is gone: by their next collective on CPU, else by its missing heartbeats. Errors of a
    process that is alone pass through.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, SystemExit):
            # A text is an error message, and no code is success.
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            end_at_once(status, error.code if isinstance(error.code, str) else "")
        if is_peer_lost(error):
            first_line = str(error).splitlines()[0][:200]
            end_at_once(1, f"error: another process ended or cannot be reached: check its log ({first_line})")
        if not isinstance(error, ValueError | FileNotFoundError):
            traceback.print_exception(error)
        end_at_once(1, f"error: process {jax.process_index()} of {jax.process_count()}: {error}")


def is_peer_lost(error: BaseException) -> bool:
    """Returns whether an error of the runtime says that another process is gone."""
    return isinstance(error, jax.errors.JaxRuntimeError) and _PEER_LOST.search(str(error)) is not None


def end_at_once(status: int, message: str = "") -> None:
    """Prints a message and ends the process without waiting for threads or other processes."""
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def from_first(flag: bool) -> bool:
    """Returns the flag of process 0; all processes must call it."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(flag)))


def least(value: float) -> float:
    """Returns the least value of all processes, in float32; all processes must call it."""
    return float(np.min(multihost_utils.process_allgather(np.float32(value))))


def wait_for_all(name: str) -> None:
    """Waits until all processes call it, at most a day, and without a collective, whose patience may be short."""
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=_LONGEST_WAIT_MS)


def gather_texts(text: str) -> list[str]:
    """Returns the texts of all processes, by index; all processes must call it."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    length = max(1, int(np.max(multihost_utils.process_allgather(np.int32(len(data))))))
    rows = multihost_utils.process_allgather(np.pad(data, (0, length - len(data))))
    return [bytes(row).rstrip(b"\0").decode() for row in rows]
