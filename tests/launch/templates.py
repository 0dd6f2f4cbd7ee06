"""A machine with the commands of every cluster, on which launch templates run."""

import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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


def dry(desk, template, *flags, **variables):
    """Returns what a dry run prints, which calls nothing and writes nothing."""
    before = set(desk.folder.rglob("*"))
    done = desk.run(template, "--dry-run", *FLAGS, *flags, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert desk.calls() == [] and set(desk.folder.rglob("*")) == before
    return done.stdout


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
