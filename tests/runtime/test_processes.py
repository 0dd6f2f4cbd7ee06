"""Which processes form a run, as flags and launchers tell."""

import sys

import pytest

from croc_jax.runtime.processes import Placement, ProcessesError, find_placement, gather_texts, join_processes

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "gpu[007-010],gpu012",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
GIVEN = {"JAX_COORDINATOR_ADDRESS": "host0:12345", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
LAUNCHERS = ("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_P", "JAX_PROCESS", "KUBERNETES_", "JOB_COM")
DEVICES = ("JAX_LOCAL", "CUDA_V", "ROCR_V", "HIP_V")
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
FOUR_A_HOST = SLURM | {
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4,1",
}
SEES_EIGHT = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SLURM_GPUS_ON_NODE": "8"}
ALL_IT_SEES = Placement("gpu007:61441", 8, 6)
# Without a coordinator, as Open MPI from version 5 on has it.
OPEN_MPI_5 = {name: value for name, value in OPEN_MPI.items() if "uri" not in name}


@pytest.fixture
def environ(monkeypatch):
    """Sets variables in place of all that a launcher might have set; JAX reads them too."""

    def set_only(variables):
        import os

        for name in list(os.environ):
            if name.startswith((*LAUNCHERS, *DEVICES)):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return os.environ

    return set_only


@pytest.mark.parametrize(
    ("variables", "given", "expected"),
    [
        ({}, {}, None),
        ({}, {"num_processes": 1}, None),
        (SLURM, {"num_processes": 1}, None),
        (SLURM | {"SLURM_NTASKS": "1"}, {}, None),
        ({}, {"coordinator_address": "a:1", "num_processes": 2, "process_id": 0}, Placement("a:1", 2, 0)),
        (GIVEN, {}, Placement("host0:12345", 4, 3)),
        (GIVEN, {"process_id": 1}, Placement("host0:12345", 4, 1)),
        # JAX's rule: the last 4096 ports, by the number of the job.
        (SLURM, {}, Placement("gpu007:61441", 16, 11, (3,))),
        (SLURM, {"coordinator_address": "gpu007:99"}, Placement("gpu007:99", 16, 11, (3,))),
        (SLURM | {"JAX_COORDINATOR_PORT": "99"}, {}, Placement("gpu007:99", 16, 11, (3,))),
        # A process that has its host to itself takes all devices, and so does one that sees only its own.
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x16)"}, {}, Placement("gpu007:61441", 16, 11)),
        (SLURM | {"ROCR_VISIBLE_DEVICES": "3"}, {}, Placement("gpu007:61441", 16, 11)),
        (SLURM | {"ROCR_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, {}, Placement("gpu007:61441", 16, 11, (3,))),
        # Devices that all processes of a host see are shared out ...
        (FOUR_A_HOST | SEES_EIGHT, {}, Placement("gpu007:61441", 8, 6, (4, 5))),
        (FOUR_A_HOST | SEES_EIGHT | {"SLURM_NODEID": "1"}, {}, Placement("gpu007:61441", 8, 6)),
        # ... but those that a process sees alone are its own, whatever their numbers.
        (FOUR_A_HOST | {"SLURM_GPUS_ON_NODE": "8"} | {name: "4,5" for name in VISIBLE}, {}, ALL_IT_SEES),
        (FOUR_A_HOST | {"SLURM_GPUS_PER_TASK": "a100:2", "CUDA_VISIBLE_DEVICES": "4,5"}, {}, ALL_IT_SEES),
        (FOUR_A_HOST | {"JAX_LOCAL_DEVICE_IDS": "4"}, {}, ALL_IT_SEES),
        # Who gives the three values has not given the device.
        (SLURM | GIVEN, {}, Placement("host0:12345", 4, 3, (3,))),
        (OPEN_MPI_5 | GIVEN, {}, Placement("host0:12345", 4, 3, (1,))),
        # A script of a job, which starts processes by itself.
        ({"SLURM_LOCALID": "0", "SLURM_NTASKS": "8"} | GIVEN, {}, Placement("host0:12345", 4, 3)),
        # A shell in a step of one task, in a job of sixteen.
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "16"}, {}, Placement("gpu007:61441", 16, 11, (3,))),
        (OPEN_MPI, {}, Placement("10.96.0.1:62624", 4, 2, (1,))),
        (OPEN_MPI_5, {"coordinator_address": "a:1"}, Placement("a:1", 4, 2, (1,))),
        (OPEN_MPI_5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, {"coordinator_address": "a:1"}, Placement("a:1", 4, 2)),
    ],
)
def test_flags_come_before_variables_and_those_before_the_launcher(environ, variables, given, expected):
    assert find_placement(environ(variables), **given) == expected


@pytest.mark.parametrize(
    ("variables", "given", "message"),
    [
        ({}, {"num_processes": 2}, "need --coordinator_address and --process_id too (known: --num_processes=2)"),
        ({}, {"process_id": 0}, "need --coordinator_address and --num_processes too (known: --process_id=0)"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, {}, "need --num_processes and --process_id too"),
        (OPEN_MPI_5, {}, "need --coordinator_address too (known: --num_processes=4 --process_id=2)"),
        (GIVEN, {"process_id": 4}, "--process_id=4: must be from 0 to 3, as --num_processes=4"),
        (GIVEN, {"coordinator_address": "host0"}, "--coordinator_address=host0: expected HOST:PORT"),
        (GIVEN | {"JAX_PROCESS_ID": "all"}, {}, "JAX_PROCESS_ID='all': expected a number"),
        ({"JOB_COMPLETION_INDEX": "1"}, {}, "install jax[k8s]"),
    ],
)
def test_what_does_not_tell_enough_is_an_error_of_one_line(environ, monkeypatch, variables, given, message):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProcessesError) as failure:
        find_placement(environ(variables), **given)
    assert message in str(failure.value) and "\n" not in str(failure.value)


def test_a_process_that_is_alone_joins_nothing_and_hears_itself(environ):
    environ({})
    assert join_processes() is None
    assert gather_texts("alone") == ["alone"]
