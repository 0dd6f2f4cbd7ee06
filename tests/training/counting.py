"""A loop around a small step with known numbers, and fakes for what the loop needs."""

import contextlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from croc_jax.training.loop import Hooks, RunLength, run_training
from croc_jax.training.sharding import make_mesh

LENGTH = RunLength(20, steps_per_epoch=4, batch_size=2)
LOGGED = [1, 5, 10, 15, 20]


@flax.struct.dataclass
class State:
    step: jax.Array
    weight: jax.Array


class Numbers:
    """Batches that hold their own step; `at` maps a step to something that happens when it is read."""

    def __init__(self, at=None, start=0):
        self.at, self.step = at or {}, start

    def __iter__(self):
        return self

    def __next__(self):
        self.at.get(self.step, lambda: None)()
        batch = np.full((2, 1), self.step, np.float32)
        self.step += 1
        return batch


class Memory:
    """Keeps what is saved in a dictionary.

    `every` is the interval of saves, and `refused` maps steps to errors that are raised instead.
    """

    def __init__(self, every=None, refused=None):
        self.every, self.refused, self.saved, self.waited = every, refused or {}, {}, []

    def should_save(self, step):
        return self.every is not None and step % self.every == 0

    def save(self, step, state, *, wait=False):
        if step in self.refused:
            raise self.refused[step]
        self.saved[step] = jax.tree.map(np.array, state)
        self.waited += [step] if wait else []


class Rows(list):
    """A writer that keeps its rows."""

    write = list.append

    def flush(self):
        return True


class NoTimes:
    def waiting_for(self, what):
        return contextlib.nullcontext()

    def tick(self):
        pass

    def restart(self):
        pass

    def take(self):
        return {"step_seconds": 0.5}


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
        return State(number, weight), {"loss": loss, "loss_dense": loss}

    return jax.jit(step, donate_argnums=0)


def fresh():
    return State(jnp.zeros((), jnp.int32), jnp.ones(()))


def run(
    *, step=None, state=None, at=None, saver=None, rows=None, length=LENGTH, timer=None, every=5, epochs=1, **hooks
):
    """Returns the outcome, the rows and what is saved; the caller passes its own `saver` and `rows` for errors."""
    state, rows, saver = state or fresh(), Rows() if rows is None else rows, saver or Memory()
    outcome = run_training(
        step or make_step(),
        state,
        Numbers(at, start=int(state.step)),
        mesh=make_mesh(jax.devices()[:1]),
        length=length,
        checkpointer=saver,
        writer=rows,
        timer=timer or NoTimes(),
        hooks=Hooks(is_evaluation_due=lambda step: step % (epochs * length.steps_per_epoch) == 0, **hooks),
        log_every_steps=every,
    )
    return outcome, rows, saver


def expected_weights(steps):
    weights = [np.float32(1)]
    for number in range(steps):
        weights.append(np.float32(0.5) * weights[-1] + np.float32(number))
    return [float(weight) for weight in weights]
