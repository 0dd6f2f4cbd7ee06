"""Which processes form a run, and the wait for one that never comes; see test_several_processes for the others."""

import os
import subprocess
import sys
import time

import jax
import pytest

from croc_jax.runtime import distributed

ENVIRONMENT = ("JAX_", "SLURM_", "OMPI_", "KUBERNETES_", "JOB_", "TPU_", "CUDA_VISIBLE", "ROCR_VISIBLE", "HIP_VISIBLE")


@pytest.fixture
def started(monkeypatch):
    """The arguments of each start of JAX's service, which finds no cluster, in an environment without one."""
    calls = []

    def initialize(address, count, index, **options):
        calls.append((address, count, index, options["local_device_ids"], options["cluster_detection_method"]))
        if address is None:
            raise ValueError("coordinator_address should be defined.")
        if index is None:
            raise ValueError("The process id of the current process must be defined.")

    for name in os.environ:
        if name.startswith(ENVIRONMENT):
            monkeypatch.delenv(name)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def test_flags_come_before_variables(started, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    distributed.initialize("b:1")
    distributed.initialize(process_id=2)
    distributed.initialize(num_processes=1)
    assert started == [("b:1", 4, 3, None, None), ("a:1", 4, 2, None, None)]
    monkeypatch.setenv("JAX_NUM_PROCESSES", "four")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES='four': expected a number"):
        distributed.initialize()


@pytest.mark.parametrize(
    "environ, is_asked",
    [
        ({}, True),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        # An interactive shell of a job with several tasks; a pod of a notebook.
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "k"}, False),
        ({"KUBERNETES_SERVICE_HOST": "k", "TPU_WORKER_HOSTNAMES": "h"}, True),
    ],
)
def test_a_process_without_a_cluster_is_alone(started, monkeypatch, environ, is_asked):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert bool(started) == is_asked


def test_what_is_missing_is_named(started, monkeypatch):
    with pytest.raises(ValueError, match="need --coordinator_address, --num_processes and --process_id .*process id"):
        distributed.initialize("a:1", 2)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "k")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install jax\[k8s\], or set JAX_COORDINATOR_ADDRESS"):
        distributed.initialize()


@pytest.mark.parametrize("visible, local", [("3", [0]), ("0,1", None)])
def test_a_single_visible_device_is_its_own(started, monkeypatch, visible, local):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    distributed.initialize("a:1", 2, 1)
    assert started == [("a:1", 2, 1, local, None)]


def test_a_process_that_never_comes_ends_the_wait_with_the_address_and_the_time():
    program = "from croc_jax.runtime import distributed as d; d.initialize('localhost:23457', 2, 1, timeout_seconds=2)"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and time.monotonic() - begin < 30
    assert done.stderr.endswith(
        "error: timed out after 2 s waiting at localhost:23457 for the other processes: check their logs\n"
    )


@pytest.mark.parametrize(
    "text, is_lost",
    [
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("INTERNAL: NCCL operation ncclAllReduce failed", True),
        ("RESOURCE_EXHAUSTED: NCCL: out of memory", False),
        ("INTERNAL: ptxas exited with 1", False),
    ],
)
def test_some_errors_of_the_runtime_mean_that_another_process_is_gone(text, is_lost):
    assert distributed.is_peer_lost(jax.errors.JaxRuntimeError(text)) == is_lost
    assert not distributed.is_peer_lost(OSError(text))


def test_one_process_agrees_with_itself():
    assert distributed.gather_texts("é") == ["é"]
    assert distributed.from_first(True) and not distributed.from_first(False)
    assert distributed.least(2.5) == 2.5
