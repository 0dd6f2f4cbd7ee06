"""A loop around a small step whose numbers can be foretold, and savers for it."""

import io
import json

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from croc_jax.runtime.metrics_writer import MetricsWriter
from croc_jax.runtime.progress import RunProgress
from croc_jax.runtime.stopping import StopRequest
from croc_jax.training.config import RuntimeConfig
from croc_jax.training.loop import Outputs, RunLength, SaveError, run_training
from croc_jax.training.sharding import make_mesh

LENGTH = RunLength(20, steps_per_epoch=4, batch_size=2)
NEVER = RuntimeConfig(
    num_workers=0, num_threads=2, log_every_steps=5, checkpoint_every_minutes=1e9, keep_every_epochs=1000
)
LOGGED = [1, 5, 10, 15, 20]
CONTRACT = "step epoch loss loss_dense loss_global lr images_per_sec num_clusters valid_fraction".split()
CONTRACT += ["teacher_entropy", "teacher_entropy_c"]


@flax.struct.dataclass
class State:
    step: jax.Array
    weight: jax.Array


class Numbers:
    """Batches that hold their own step; `at` maps a step to something that happens when it is read."""

    def __init__(self, at=None):
        self.at, self.skipped, self.closed, self.starts = at or {}, {}, False, []

    def iterate(self, start_step, *, num_workers, num_threads):
        self.starts.append((start_step, num_workers, num_threads))
        self.step = start_step
        return self

    def __next__(self):
        happening = self.at.get(self.step)
        if happening is not None:
            happening()
        batch = np.full((2, 1), self.step, np.float32)
        self.step += 1
        return batch

    def close(self):
        self.closed = True


class Memory:
    """Keeps what is saved, and whether the loop waited for it."""

    def __init__(self):
        self.saved = {}
        self.waited = []

    def save(self, step, state, *, wait=False):
        self.saved[step] = jax.tree.map(np.array, state)
        self.waited += [step] if wait else []


def make_step(loss_at=None, weight_at=None):
    """Returns weight' = 0.5 weight + batch; the loss is the old weight, or what the tables say."""

    def value_at(table, step, otherwise):
        for when, value in (table or {}).items():
            otherwise = jnp.where(step == when, value, otherwise)
        return otherwise

    def step(state, batch):
        number = state.step + 1
        loss = value_at(loss_at, number, state.weight)
        weight = value_at(weight_at, number, 0.5 * state.weight + batch.mean())
        rest = {name: jnp.float32(0) for name in CONTRACT if name not in ("step", "epoch", "images_per_sec")}
        return State(number, weight), rest | {"loss": loss}

    return jax.jit(step, donate_argnums=0)


def fresh():
    return State(jnp.zeros((), jnp.int32), jnp.ones(()))


def run(workdir, *, step=None, state=None, dataset=None, runtime=NEVER, stop=None, length=LENGTH, saver=None, **more):
    state, dataset, saver = state or fresh(), dataset or Numbers(), saver or Memory()
    workdir.mkdir(exist_ok=True)
    log = MetricsWriter(workdir, restored_step=int(state.step))
    display = RunProgress(Console(file=io.StringIO()), start=0, total=length.total_steps)
    try:
        outcome = run_training(
            step or make_step(),
            state,
            dataset,
            outputs=Outputs(saver=saver, log=log, display=display, **more),
            length=length,
            runtime=runtime,
            mesh=make_mesh(jax.devices()[:1]),
            stop=stop or StopRequest(),
        )
    except Exception as error:
        error.saver = saver  # pyright: ignore[reportAttributeAccessIssue]
        raise
    finally:
        log.close()
    return outcome, saver


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def expected_weights(steps):
    weights = [np.float32(1)]
    for number in range(steps):
        weights.append(np.float32(0.5) * weights[-1] + np.float32(number))
    return [float(weight) for weight in weights]


class Full(Memory):
    """Refuses the states of some steps."""

    def __init__(self, refused):
        super().__init__()
        self.refused = refused

    def save(self, step, state, *, wait=False):
        if step in self.refused:
            raise SaveError(f"step {step} is not saved: no room")
        super().save(step, state, wait=wait)
