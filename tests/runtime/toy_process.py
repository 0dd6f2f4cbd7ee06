"""One process of two: it saves, restores and trains a small step; test_agreement says with which arguments."""

import io
import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from croc_jax.checkpoints import Checkpointer, orbax, reading
from croc_jax.runtime.failing import failing_together
from croc_jax.runtime.metrics_writer import MetricsWriter, NoLog
from croc_jax.runtime.processes import gather_texts, join_processes
from croc_jax.runtime.progress import RunProgress
from croc_jax.runtime.stopping import StopRequest
from croc_jax.training.config import RuntimeConfig
from croc_jax.training.loop import Outputs, run_training
from croc_jax.training.sharding import make_mesh, replicated
from tests.training.counting import LENGTH, Memory, Numbers, State, make_step
from tests.training.tiny import tiny_recipe


def main(address, index, workdir, signal_name):
    join_processes(address, 2, index)
    assert gather_texts(f"from {index}") == ["from 0", "from 1"]
    mesh = make_mesh()
    if signal_name != "NONE":
        save_and_restore(mesh, workdir, index)
    with failing_together(), StopRequest() as stop:
        # The signal reaches process 1 alone, while step 8 runs.
        happening = {8: lambda: os.kill(os.getpid(), signal.Signals[signal_name])} if index else {}
        if signal_name == "NONE":
            happening = {8: fail} if index else {}
        dataset, saver = Numbers(happening), Memory()
        dataset.skipped = {"a.jpg": 1 + index}
        log = NoLog() if index else MetricsWriter(workdir, restored_step=0)
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


def save_and_restore(mesh, workdir, index):
    """Arrays that lie on both processes, in parts or whole, come back; damage in one is seen by both."""
    shardings = {"rows": PartitionSpec("data"), "columns": PartitionSpec(None, "data"), "whole": PartitionSpec()}

    def state_at(step):
        make = lambda: {name: 1000.0 * step + jax.numpy.arange(32.0).reshape(4, 8) for name in shardings}  # noqa: E731
        return jax.jit(make, out_shardings={name: NamedSharding(mesh, spec) for name, spec in shardings.items()})()

    def assert_restored(step):
        describe = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)  # noqa: E731
        state = saver.restore_latest(jax.tree.map(describe, state_at(0)))
        assert state is not None
        for name, array in state_at(step).items():
            assert state[name].sharding == array.sharding
            for ours, theirs in zip(state[name].addressable_shards, array.addressable_shards, strict=True):
                np.testing.assert_array_equal(ours.data, theirs.data)

    if index:
        # A network file system that does not show another process the folder yet.
        orbax.list_checkpoints = fail
    saver = Checkpointer(workdir, tiny_recipe())
    for step in (3, 6):
        saver.save(step, state_at(step), wait=True)
    assert_restored(6)
    # One process alone meets damage, in the first checkpoint that it reads.
    real, meet = reading.check_arrays, [True] * index

    def check_arrays(arrays, metadata):
        real(arrays, metadata)
        if meet and meet.pop():
            raise reading.DamagedError("the disk of process 1 lies")

    reading.check_arrays = check_arrays
    assert_restored(3)
    assert [path.name for path in (workdir / "damaged-checkpoints").iterdir()] == ["6"]
    saver.close()


def fail(*_):
    raise OSError("disk gone")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
