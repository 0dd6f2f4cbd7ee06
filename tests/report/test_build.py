"""The report of a run that was really trained, if only for four steps."""

import contextlib
import json
import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from croc_jax.checkpoints import Checkpointer, CheckpointError
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import FolderSource
from croc_jax.report import build, build_comparison, build_report, read_metrics
from croc_jax.report.build import collect_facts, training_seconds
from croc_jax.report.html import Fact
from croc_jax.report.inspect import overlap
from croc_jax.runtime.metrics_writer import MetricsWriter
from croc_jax.runtime.profile import StepTimer
from croc_jax.runtime.workdir import init_workdir
from croc_jax.training.config import flatten, recipe_to_dict
from croc_jax.training.loop import RunLength, run_training
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import fresh_state
from croc_jax.training.step import make_train_step
from tests.report.tiny_results import write_linear

STEPS = 4


def train(workdir, recipe):
    """Trains for four epochs of one step."""
    init_workdir(workdir, recipe)
    dataset = make_dataset(
        FolderSource(recipe.data.folders), views=recipe.data.views, batch_size=recipe.schedule.batch_size, seed=0
    )
    assert recipe.schedule.epochs * dataset.steps_per_epoch == STEPS
    mesh, saver = make_mesh(jax.devices()[:1]), Checkpointer(workdir, recipe)
    writer = MetricsWriter(workdir, restored_step=0)
    with contextlib.closing(saver), contextlib.closing(writer), dataset.iterate() as stream:
        run_training(
            make_train_step(recipe, steps_per_epoch=1, mesh=mesh),
            fresh_state(recipe, steps_per_epoch=1, mesh=mesh),
            stream,
            mesh=mesh,
            length=RunLength(STEPS, steps_per_epoch=1, batch_size=recipe.schedule.batch_size),
            checkpointer=saver,
            writer=writer,
            timer=StepTimer(batch_size=recipe.schedule.batch_size),
            log_every_steps=1,
        )


@contextlib.contextmanager
def compiling_in_a_hurry():
    """What is compiled here runs a few times only."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def report(recipe, tmp_path_factory):
    """A report with scores, and what was explored for it: crops as in training, then those of the gallery."""
    workdir, explored = tmp_path_factory.mktemp("run"), []

    def explore(*args, **settings):
        explored.append(original(*args, **settings))
        return explored[-1]

    original = build.explore
    with pytest.MonkeyPatch.context() as patch, compiling_in_a_hurry():
        train(workdir, recipe)
        write_linear(workdir / "before", checkpoint="random", step=0, miou=12.34, sky=20.0, sea=4.68)
        write_linear(workdir / "after", checkpoint=str(workdir), step=STEPS, miou=45.67, sky=60.0, sea=31.34)
        patch.setattr(build, "explore", explore)
        file = build_report(workdir)
    typical, gallery = explored
    return SimpleNamespace(
        file=file, workdir=workdir, page=file.read_text(encoding="utf-8"), typical=typical, gallery=gallery
    )


def test_the_report_lies_in_the_workdir(report):
    assert report.file == report.workdir / "report.html"
    assert {path.suffix for path in report.workdir.iterdir() if path.is_file()} == {".html", ".json", ".jsonl", ".prom"}


def test_the_page_opens_with_what_was_trained_and_the_facts(report):
    assert (
        "A vision transformer of 2 blocks, 8 features and 2 heads (patches of 8 x 8 pixels) saw 7 images without a "
        "single label, as pairs of 24 x 24 crops, for 4 epochs: 4 steps of 4 images."
    ) in report.page
    facts = collect_facts(read_metrics(report.workdir / "metrics.jsonl"), report.typical, batch_size=4)
    assert len(facts) == 4
    for fact in facts:
        assert f"<div><b>{fact.value}</b><span>{fact.name}</span></div>" in report.page
    assert "<b>12.3 → 45.7</b>" in report.page and float(facts[1].value) > 0


def test_a_section_for_each_question_and_all_pictures(report):
    headings = re.findall("<h2>(.*?)</h2>", report.page)
    assert headings == [
        "Linear segmentation: scenes, val",
        "Beside the paper (CrOC, CVPR 2023)",
        "What it sees: clusters across two crops",
        "How it gets there: merging from 5 clusters to 2",
        "How training went",
        "Settings",
    ]
    pictures = [(part.count("<img "), part.count("<svg ")) for part in report.page.split("<h2>")[1:]]
    assert pictures == [(0, 1), (0, 0), (4, 0), (2, 0), (0, 4), (0, 0)]


def test_a_run_is_compared_with_others_by_its_evaluations_and_losses(report, tmp_path):
    write_linear(tmp_path / "other", checkpoint="other.pth", step=7, miou=50.0, sky=70.0, sea=30.0)
    file = build_comparison([report.workdir, tmp_path], tmp_path / "page.html")
    page = file.read_text(encoding="utf-8")
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings[0] == "Linear segmentation: scenes, val" and headings[2] == "How training went"
    assert "<b>12.3 → 50.0</b>" in page and f"{report.workdir.name}, step 4" in page and "other.pth, step 7" in page
    with pytest.raises(ValueError, match="no results.json in .*nothing: evaluate first"):
        (tmp_path / "nothing").mkdir()
        build_comparison([tmp_path / "nothing"], file)


def test_small_crops_are_drawn_at_twice_their_size(report):
    assert report.typical.views.shape[2:4] == (24, 24) and report.gallery.views.shape[2:4] == (48, 48)
    assert "Drawn on 6 x 6 patches (48 pixels)." in report.page


def test_the_gallery_shows_the_most_telling_pairs_first(report):
    distance = np.abs(overlap(report.gallery.boxes) - 0.6)
    assert len(distance) == 6 and len(set(distance)) > 3
    best = [f"{report.gallery.indices[index]}.png" for index in sorted(range(6), key=lambda index: distance[index])]
    captions = re.findall(r"<figcaption>(\d\.png)</figcaption>", report.page)
    assert captions == best[:4] + best[:2]


def test_every_setting_is_on_the_page(report, recipe):
    rows = re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", report.page.partition("<h2>Settings")[2])
    settings = flatten(recipe_to_dict(recipe))
    assert [name for name, _ in rows] == list(settings)
    assert dict(rows)["clustering.k_start"] == "5" and dict(rows)["objective.tokens"] == recipe.objective.tokens


def test_a_workdir_without_metrics_or_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no metrics: train first"):
        build_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(CheckpointError, match="is not a workdir"):
        build_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_is_null_in_the_metrics_is_nan(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": null}\n{"step": 5, "loss": 0.5}\n')
    first, second = read_metrics(file)
    assert first["step"] == 1 and math.isnan(first["loss"]) and second == {"step": 5, "loss": 0.5}


@pytest.mark.parametrize("content", [None, ""])
def test_no_metrics_is_an_error_that_names_the_file_and_the_program(tmp_path, content):
    file = tmp_path / "metrics.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{file} holds no metrics: train first (launch/pretrain.py)")):
        read_metrics(file)


def make_rows(*steps_and_speeds):
    return [{"step": step, "images_per_sec": speed} for step, speed in steps_and_speeds]


def test_training_time_by_hand():
    # 1 step of 4 images at 2 a second, 4 steps at 8, 5 steps at 10.
    assert training_seconds(make_rows((1, 2.0), (5, 8.0), (10, 10.0)), 4) == pytest.approx(2 + 2 + 2)


def test_training_time_of_the_run(report):
    rows = [json.loads(line) for line in (report.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    expected = sum(4 / row["images_per_sec"] for row in rows)
    assert training_seconds(rows, 4) == pytest.approx(expected) and expected > 0


@pytest.fixture
def typical(found):
    """Two images with two heads: 3 + 2 + 4 + 3 clusters, of which both views show 2 + 2 + 3 + 2."""
    valid = np.zeros((2, 2, 5), bool)
    for place, count in zip(np.ndindex(2, 2), (2, 2, 3, 2), strict=True):
        valid[place][:count] = True
    return found._replace(num_clusters=np.array([[3, 2], [4, 3]]), valid=valid)


def test_facts_by_hand(typical):
    # 80 + 40 + 2 seconds.
    rows = make_rows((1, 10.0), (2, 20.0), (3, 400.0))
    assert collect_facts(rows, typical, batch_size=800) == [
        Fact("2.0 min", "of training"),
        Fact("20", "images a second"),
        Fact("3.0", "clusters in a pair of crops, on average"),
        Fact("75%", "of clusters lie in both crops"),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (9, "0.1 min"),
        (90, "1.5 min"),
        (3540, "59.0 min"),
        (3600, "1:00 h"),
        (9930, "2:46 h"),
        (86400 + 7200, "1 day, 2:00 h"),
    ],
)
def test_durations_in_the_unit_that_suits_them(typical, seconds, text):
    assert collect_facts(make_rows((seconds, 1.0)), typical, batch_size=1)[0].value == text
