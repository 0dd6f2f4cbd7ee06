"""A sweep of two runs, and a runner that does in no time what the programs do."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from croc_jax.training.workdir import claim_workdir
from tests.report.tiny_results import write_linear


def sweep_config(data, points=(0.0, 4.0), **changes):
    fields = {
        "base": "configs/demo.py",
        "common": {"clustering": {"lambda_pos": 4.0}},
        "grids": ({"clustering.lambda_pos": points},),
        "evaluations": {"dense": {"config": "configs/eval/unsupervised.py", "dataset": {"root": str(data)}}},
    }
    return ConfigDict(fields | changes)


class FakeRunner:
    """Writes what the programs would; `fails` says which do not, `stop_at` when a signal comes."""

    def __init__(self, sweep, fails=(), stop_at=None):
        self.jobs, self.fails, self.stop_at = {str(job.workdir): job for job in sweep.jobs}, fails, stop_at
        self.seen = []

    def __call__(self, command, log, watch, stop):
        program, flags = Path(command[1]).name, dict(flag.lstrip("-").split("=", 1) for flag in command[2:])
        workdir = flags.get("workdir") or flags["checkpoint"]
        name = f"{program} {Path(workdir).name}"
        self.seen.append(name)
        watch()
        if name == self.stop_at:
            stop.received = "SIGTERM"
            return 75
        if name in self.fails:
            return 1
        if program == "pretrain.py":
            self.train(self.jobs[workdir])
        else:
            assert Path(flags["output"]) == Path(workdir) / "eval" / "dense"
            write_linear(Path(flags["output"]), miou=50.0, checkpoint=workdir, step=6, sky=50.0)
        return 0

    def train(self, job):
        """Leaves the files of a finished run."""
        claim_workdir(job.workdir, job.recipe)
        (job.workdir / "checkpoints" / "6").mkdir(parents=True)
        row = {"step": 6, "epoch": job.recipe.schedule.epochs, "loss": 1.0, "loss_dense": 1.0, "loss_global": 1.0}
        (job.workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
