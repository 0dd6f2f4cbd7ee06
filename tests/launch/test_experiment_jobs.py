"""The jobs of an experiment, and what is shown of them."""

import datetime
import io

import pytest
from rich.console import Console

from croc_jax.data.sources import FolderSource
from croc_jax.data.sources.identity import identify
from croc_jax.evaluation.results import RESULTS
from croc_jax.runtime.starts import RunImages, write_images
from croc_jax.runtime.workdir import init_workdir
from tests.launch.tiny_experiment import (
    plan,
    pretend_trained,
)
from tests.report.tiny_results import experiment_content


class Program:
    """A program that ends when it is told to."""

    def __init__(self, log, arguments):
        self.arguments, self.status, self.asked = arguments, None, False
        log.append(self)

    def poll(self):
        return self.status

    def terminate(self):
        self.asked = True


def start_jobs(modules, runs, count):
    started = []
    jobs = modules.jobs.Jobs(runs, count, start=lambda arguments, output, cores: Program(started, arguments))
    return jobs, started


def test_two_jobs_at_a_time_score_what_is_trained_first_and_no_run_twice(modules, places):
    _, runs = plan(modules, places)
    jobs, started = start_jobs(modules, runs, 2)
    order = []
    while jobs.advance():
        jobs.take_ended()
        names = [job.run.name for job in jobs.running]
        assert len(names) <= 2 and len({*names}) == len(names)
        if jobs.running:
            # The one that started last ends first.
            program = [one for one in started if one.status is None][-1]
            job = next(job for job in jobs.running if job.command.arguments is program.arguments)
            if job.kind == "training":
                pretend_trained(job.run, places, step=2 * job.run.recipe.schedule.epochs)
            else:
                job.command.output.mkdir(parents=True)
                (job.command.output / RESULTS).write_text("{}")
            program.status = 0
            order.append((job.run.name, job.kind))
    trained = [name for name, kind in order if kind == "training"]
    assert sorted(order) == sorted(
        [(run.name, "bands") for run in runs] + [(run.name, "training") for run in runs if run.training]
    )
    assert order[0] == ("random-s1", "bands")
    # Of a run that has been trained, the score is next.
    for name in trained:
        assert order.index((name, "bands")) == order.index((name, "training")) + 1
    # Everything is done: nothing starts again.
    jobs, started = start_jobs(modules, runs, 2)
    assert not jobs.advance() and not started


def test_a_first_failure_ends_the_others_and_shows_what_was_printed(modules, places):
    _, runs = plan(modules, places)
    jobs, started = start_jobs(modules, runs, 2)
    jobs.advance()
    (runs[0].folder / "log.txt").write_text("first\nno such file\n")
    started[0].status = 3
    assert jobs.advance() and started[1].asked and len(jobs.failed) == 1
    text = jobs.failed[0].explain()
    assert "random-s0, bands ended with status 3" in text and "no such file" in text
    started[1].status = 75
    assert not jobs.advance() and len(started) == 2 and jobs.failed[0].status == 3


def test_a_run_that_diverges_costs_its_own_scores_alone(modules, places):
    _, runs = plan(modules, places)
    random, first, second = runs[0], *[run for run in runs if run.training][:2]
    jobs, started = start_jobs(modules, [random, first, second], 1)
    for scoring in (*random.scorings.values(), *second.scorings.values()):
        scoring.output.mkdir(parents=True)
    for status in (*(0 for _ in random.scorings), 1, 0, *(0 for _ in second.scorings)):
        assert jobs.advance()
        started[-1].status = status
    while jobs.advance():
        jobs.take_ended()
    assert [job.run.name for job in jobs.failed] == [first.name]
    assert sum(str(first.folder) in " ".join(one.arguments) for one in started) == 1
    assert sum(str(second.folder) in " ".join(one.arguments) for one in started) == 1 + len(second.scorings)


def test_a_program_that_starts_while_a_signal_comes_is_asked_to_end_as_well(modules, places):
    _, runs = plan(modules, places)
    started = []

    def start(arguments, output, cores):
        if started:
            jobs.stop()
        return Program(started, arguments)

    jobs = modules.jobs.Jobs(runs, 2, start=start)
    assert jobs.advance() and [program.asked for program in started] == [True, True]


def test_runs_share_all_cores_even_if_they_are_fewer_than_the_jobs(modules, places):
    _, runs = plan(modules, places)
    shares = []

    def start(arguments, output, cores):
        shares.append(cores)
        return Program([], arguments)

    modules.jobs.Jobs(runs[:1], 4, start=start).advance()
    assert [len(share) for share in shares] == [modules.jobs.count_cores()]


def test_the_time_left_is_that_of_images_and_evaluations_over_all_jobs(modules):
    run = {"images_per_sec": 50.0, "steps": 10, "scores": {"a": {"x": {"seconds": 5}, "y": {"seconds": 15}}}}
    other = {"images_per_sec": 100.0, "steps": 20, "scores": {"a": {"x": {"seconds": 40}}}}
    estimate = modules.progress.Estimate({"runs": [run, other]})
    assert estimate.seconds(7500, 4, jobs=2) == pytest.approx((7500 / 75 + 4 * 30) / 2) and estimate.steps == 20
    nothing = modules.progress.Estimate({"runs": []})
    assert nothing.seconds(0, 0, jobs=2) == 0 and nothing.seconds(10, 0, jobs=1) is None
    assert estimate.seconds(None, 4, jobs=2) is None


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_display_has_the_table_what_runs_and_the_time_left(modules, places, monkeypatch, is_terminal):
    _, runs = plan(modules, places)
    croc = next(run for run in runs if run.name == "croc-s3")
    init_workdir(croc.folder, croc.recipe)
    write_images(croc.folder, RunImages(identify(FolderSource(places.images)), 2))
    (croc.folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 4, "images_per_sec": 50.0}\n{"step": 5, "ima')
    jobs, started = start_jobs(modules, [croc, runs[0]], 2)
    monkeypatch.setattr(modules.progress, "_SECONDS_BETWEEN_LINES", -1)
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=is_terminal, width=120, color_system=None, soft_wrap=True)
    with modules.progress.Display(console, jobs, experiment_content()) as display:
        jobs.advance()
        display.refresh()
        (score,) = [job for job in jobs.running if job.kind == "bands"]
        display.update(experiment_content(), score)
        display.refresh()
    text, total = printed.getvalue(), 2 * croc.recipe.schedule.epochs
    # 40 images a second, and 2.2 s an evaluation, by what the content says.
    seconds = round(((total - 4) * croc.recipe.schedule.batch_size / 40 + 2 * 2.2) / 2)
    assert f"to do: 1 trainings, 2 evaluations, time left about {datetime.timedelta(seconds=seconds)}" in text
    if is_terminal:
        batch = croc.recipe.schedule.batch_size
        assert "31.5 ± 1.5" in text and "scoring random-s0, bands" in text and f"{4 * batch}/{total * batch}" in text
    else:
        assert f"croc-s3: {100 * 4 / total:.0f}%; to do" in text and "random-s0: bands: linear" not in text
