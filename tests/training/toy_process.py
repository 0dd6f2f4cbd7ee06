"""One process of a run of a small step: python -m tests.training.toy_process ADDRESS INDEX WORKDIR SIGNAL."""

import io
import json
import os
import signal
import sys
from pathlib import Path

import jax
from rich.console import Console

from croc_jax.training.config import RuntimeConfig
from croc_jax.training.failing import failing_together
from croc_jax.training.loop import Outputs, run_training
from croc_jax.training.metrics_log import MetricsLog, NoLog
from croc_jax.training.processes import gather_texts, join_processes
from croc_jax.training.progress import RunProgress
from croc_jax.training.sharding import make_mesh, replicated
from croc_jax.training.stopping import StopRequest
from tests.training.test_loop import LENGTH, Memory, Numbers, State, make_step


def main(address, index, workdir, signal_name):
    join_processes(address, 2, index)
    assert gather_texts(f"from {index}") == ["from 0", "from 1"]
    mesh = make_mesh()
    with failing_together(), StopRequest() as stop:
        # The signal reaches process 1 alone, while step 8 runs.
        happening = {8: lambda: os.kill(os.getpid(), signal.Signals[signal_name])} if index else {}
        if signal_name == "NONE":
            happening = {8: fail} if index else {}
        dataset, saver = Numbers(happening), Memory()
        dataset.skipped = {"a.jpg": 1 + index}
        log = NoLog() if index else MetricsLog(workdir, restored_step=0)
        start = jax.jit(lambda: State(jax.numpy.int32(0), jax.numpy.ones(())), out_shardings=replicated(mesh))
        outcome = run_training(
            make_step(),
            start(),
            dataset,
            outputs=Outputs(saver=saver, log=log, display=RunProgress(Console(file=io.StringIO()), start=0, total=20)),
            length=LENGTH,
            # The clock of process 0 alone counts, which asks for every save; process 1 would never.
            runtime=RuntimeConfig(log_every_steps=1, checkpoint_every_minutes=1e9 if index else 0),
            mesh=mesh,
            stop=stop,
        )
        log.close()
    told = {"step": outcome.step, "stopped_by": outcome.stopped_by, "saved": list(saver.saved)}
    print("told " + json.dumps(told | {"weight": float(outcome.state.weight)}), flush=True)


def fail():
    raise OSError("disk gone")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
