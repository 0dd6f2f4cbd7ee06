"""Evaluations and pictures come at the epochs that were asked for, or as often as their share of the time allows."""

import numpy as np
import pytest

from croc_jax.evaluation.interval import Interval, PictureMoments
from croc_jax.training.run_config import EvaluationConfig


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def simulate(config, *, epochs, epoch_seconds, evaluation_seconds):
    """Returns the epochs that are evaluated, the time of all evaluations as a share, and the last description."""
    clock, found, text = Clock(), [], ""
    interval = Interval(config, steps_per_epoch=5, total_steps=5 * epochs, compile_seconds=12.0, clock=clock)
    for epoch in range(1, epochs + 1):
        clock.seconds += epoch_seconds
        if interval.is_due(5 * epoch):
            with interval.measure():
                clock.seconds += evaluation_seconds
            found.append(epoch)
            text = interval.describe()
    return found, len(found) * evaluation_seconds / clock.seconds, text


def test_a_number_of_epochs_is_kept_and_protocols_score_the_last_state():
    config = EvaluationConfig(every_epochs=3)
    assert simulate(config, epochs=8, epoch_seconds=1, evaluation_seconds=9)[0] == [3, 6]
    config = EvaluationConfig(every_epochs=3, best="unlabeled_rank")
    assert simulate(config, epochs=8, epoch_seconds=1, evaluation_seconds=9)[0] == [3, 6, 8]
    config = EvaluationConfig(every_epochs=3, protocols=("knn.py",))
    found, _, text = simulate(config, epochs=8, epoch_seconds=1, evaluation_seconds=9)
    assert found == [3, 6, 8]
    assert text == (
        "took 9.0 s; evaluations are 77.1% of the time since the start; "
        "--config.evaluation.every_epochs=0 keeps them below 5%"
    )


@pytest.mark.parametrize(("epoch_seconds", "evaluation_seconds"), [(1, 0.2), (7, 2), (100, 4), (100, 30), (0.5, 60)])
def test_by_default_evaluations_take_a_share_of_the_time(epoch_seconds, evaluation_seconds):
    times = {"epochs": 5000, "epoch_seconds": epoch_seconds, "evaluation_seconds": evaluation_seconds}
    found, share, text = simulate(EvaluationConfig(), **times)
    assert 0.04 < share <= 0.05 or found == list(range(1, 5001))
    assert text.endswith(" of the time since the start, and come as often as at most 5% allows")
    # A quarter of what the step took is a 20th of a minute: a short run does not wait for a compilation.
    assert (found[0] - 1) * epoch_seconds < 60 <= found[0] * epoch_seconds
    assert simulate(EvaluationConfig(max_share=0.2), **times)[1] > share or found == list(range(1, 5001))


def simulate_pictures(config, *, epochs, epoch_seconds, seconds):
    """Returns the epochs that are recorded, where 0 is the start."""
    clock, found = Clock(), []
    moments = PictureMoments(config, epochs=epochs, steps_per_epoch=5, clock=clock)
    for epoch in range(epochs + 1):
        if moments.is_due(5 * epoch):
            with moments.budget.measure():
                clock.seconds += seconds
            found.append(epoch)
        clock.seconds += epoch_seconds
    return found


def test_pictures_come_at_start_and_end_and_evenly_between():
    times = {"epoch_seconds": 10, "seconds": 0.1}
    assert simulate_pictures(EvaluationConfig(), epochs=24, **times) == list(range(0, 25, 2))
    assert simulate_pictures(EvaluationConfig(), epochs=3, **times) == [0, 1, 2, 3]
    found = simulate_pictures(EvaluationConfig(), epochs=100, **times)
    assert len(found) == 13 and found[0] == 0 and found[-1] == 100 and set(np.diff(found)) == {8, 9}
    every = EvaluationConfig(pictures_every_epochs=3)
    assert simulate_pictures(every, epochs=8, epoch_seconds=1, seconds=99) == [0, 3, 6, 8]
    assert simulate_pictures(EvaluationConfig(pictures=0, pictures_every_epochs=1), epochs=3, **times) == []


def test_pictures_that_take_long_are_fewer_but_for_start_and_end():
    # 2% of 24 minutes are four times 7 seconds.
    found = simulate_pictures(EvaluationConfig(), epochs=24, epoch_seconds=60, seconds=7)
    assert found == [0, 12, 18, 24]
    small = EvaluationConfig(max_share=1e-6)
    assert simulate_pictures(small, epochs=24, epoch_seconds=60, seconds=7) == [0, 24]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"every_epochs": -1}, "every_epochs=-1: must be 0 or more"),
        ({"pictures": -1}, "pictures=-1: must be 0 or more"),
        ({"max_share": 0.0}, "max_share=0.0: a share"),
        ({"max_share": float("nan")}, "max_share=nan: a share"),
        ({"overrides": ("knn.resize",)}, "overrides='knn.resize': expected FIELD=VALUE"),
    ],
)
def test_settings_that_cannot_work(wrong, words):
    with pytest.raises(ValueError, match=words):
        EvaluationConfig(**wrong)
