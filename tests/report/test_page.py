"""The pages of a run with a checkpoint, metrics and two evaluations, and of several."""

import json
import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from croc_jax.checkpoints import Checkpointer
from croc_jax.report import build_comparison, build_report, page, read_metrics
from croc_jax.report.inspect import overlap
from croc_jax.report.page import collect_facts
from croc_jax.runtime.workdir import init_workdir
from croc_jax.training.config import flatten, recipe_to_dict
from tests.report.test_figures import make_rows
from tests.report.tiny_results import write_linear
from tests.training.tiny import first_state


@pytest.fixture(scope="module")
def report(recipe, tmp_path_factory):
    """A report with scores, and what was explored for it."""
    workdir, explored = tmp_path_factory.mktemp("run"), []
    init_workdir(workdir, recipe)
    saver = Checkpointer(workdir, recipe)
    state = jax.device_put(first_state(recipe))
    saver.save(4, state.replace(step=state.step + 4), wait=True)
    saver.close()
    lines = [json.dumps(row | {"images_per_sec": 8.0, "valid_fraction": 0.75}) for row in make_rows(4)]
    (workdir / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 5, "lo']))
    write_linear(workdir / "before", checkpoint="random", step=0, miou=12.34, sky=20.0, sea=4.68)
    write_linear(workdir / "after", checkpoint=str(workdir), step=4, miou=45.67, sky=60.0, sea=31.34)

    def explore(*args, **settings):
        explored.append(original(*args, **settings))
        return explored[-1]

    original = page.explore
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "explore", explore)
        # Rendering takes most of the time.
        patch.setattr("croc_jax.report.html._PHOTO_DPI", 30)
        file = build_report(workdir)
    (pairs,) = explored
    return SimpleNamespace(file=file, workdir=workdir, text=file.read_text(encoding="utf-8"), pairs=pairs)


def test_a_report_says_what_was_trained_and_how_well(report):
    assert report.file == report.workdir / "report.html" and not list(report.workdir.glob("*.tmp"))
    assert (
        "A vision transformer of 2 blocks, 8 features and 2 heads (patches of 8 x 8 pixels) saw 7 images without a "
        "single label, as pairs of 24 x 24 crops, for 4 epochs: 4 steps of 4 images."
    ) in report.text
    facts = re.findall(r"<div><b>(.*?)</b><span>(.*?)</span></div>", report.text)
    assert [value for value, _ in facts][:3] == ["12.3 → 45.7", "0.3 min", "8"] and facts[-1][0] == "75%"


def test_a_report_has_all_sections_and_pictures(report):
    assert re.findall("<h2>(.*?)</h2>", report.text) == [
        "Linear segmentation: scenes, val",
        "Beside the paper (CrOC, CVPR 2023)",
        "What it sees: clusters across two crops",
        "How it gets there: merging from 5 clusters to 2",
        "How training went",
        "Settings",
    ]
    pictures = [(part.count("<img "), part.count("<svg ")) for part in report.text.split("<h2>")[1:]]
    assert pictures == [(0, 1), (0, 0), (4, 0), (2, 0), (0, 3), (0, 0)]
    # Small crops are drawn at twice their size, those that share 0.6 of each other first.
    assert report.pairs.views.shape[2:4] == (48, 48)
    assert "Drawn on 6 x 6 patches (48 pixels)." in report.text
    distance = np.abs(overlap(report.pairs.boxes) - 0.6)
    best = [f"{report.pairs.indices[index]}.png" for index in np.argsort(distance, kind="stable")]
    assert re.findall(r"<figcaption>(\d\.png)</figcaption>", report.text) == best[:4] + best[:2]


def test_every_setting_is_on_the_page(report, recipe):
    rows = re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", report.text.partition("<h2>Settings")[2])
    assert [name for name, _ in rows] == list(flatten(recipe_to_dict(recipe)))
    assert dict(rows)["clustering.k_start"] == "5" and dict(rows)["objective.tokens"] == recipe.objective.tokens


def test_runs_are_compared_by_their_evaluations_and_losses(report, tmp_path):
    write_linear(tmp_path / "other", checkpoint="other.pth", step=7, miou=50.0, sky=70.0, sea=30.0)
    text = build_comparison([report.workdir, tmp_path], tmp_path / "page.html").read_text(encoding="utf-8")
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings[0] == "Linear segmentation: scenes, val" and headings[2] == "How training went"
    assert "<b>12.3 → 50.0</b>" in text and f"{report.workdir.name}, step 4" in text and "other.pth, step 7" in text
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no results.json in .*nothing: evaluate first"):
        build_comparison([tmp_path / "nothing"], tmp_path / "page.html")


def test_read_metrics(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for content in (None, ""):
        if content is not None:
            file.write_text(content)
        with pytest.raises(ValueError, match=re.escape(f"{file} holds no metrics: train first (launch/pretrain.py)")):
            read_metrics(file)
    with pytest.raises(ValueError, match="holds no metrics"):
        build_report(tmp_path)
    file.write_text('{"step": 1, "loss": null}\n{"step": 5, "loss": 0.5}\n')
    first, second = read_metrics(file)
    assert first["step"] == 1 and math.isnan(first["loss"]) and second == {"step": 5, "loss": 0.5}
    with pytest.raises(
        ValueError, match="metrics.jsonl has rows without images_per_sec, .*: name the workdir of a run"
    ):
        build_report(tmp_path)


@pytest.mark.parametrize(
    "line",
    [b"\xff\xfe", b"[1, 2]", b"{}", b'{"step": null}', b'{"step": "x"}', b"[" * 100_000, b'{"step": 1, "a": []}'],
)
def test_lines_that_hold_no_metrics_are_left_out(tmp_path, line, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n{"step": 3}\n{"st')
    assert [row["step"] for row in read_metrics(file)] == [1, 2, 3]
    assert "2 of 5 lines are left out" in caplog.text


def facts_of(*steps_and_speeds, **last):
    rows = [{"step": step, "images_per_sec": speed, "num_clusters": 0.0} for step, speed in steps_and_speeds]
    return collect_facts([*rows[:-1], rows[-1] | last], batch_size=800)


def test_facts_by_hand():
    # 1 step of 800 images at 10 a second, 1 at 20, 1 at 400: 80 + 40 + 2 seconds.
    facts = facts_of((1, 10.0), (2, 20.0), (3, 400.0), num_clusters=2.96, valid_fraction=0.754)
    assert facts == [
        ("2.0 min", "of training"),
        ("20", "images a second"),
        ("3.0", "clusters in a pair of crops, on average"),
        ("75%", "of clusters lie in both crops"),
    ]
    assert facts_of((10, 0.0)) == facts_of((10, math.nan)) == facts_of((1e30, 1.0)) == []
    for seconds, text in ((9, "0.1 min"), (3540, "59.0 min"), (3600, "1:00 h"), (9930, "2:46 h"),
                          (86400 + 7200, "1 day, 2:00 h")):  # fmt: skip
        assert facts_of((seconds, 800.0))[0][0] == text


def test_scores_along_a_run_are_what_follows_their_seconds():
    rows = [
        {"step": 5, "loss": 1.0, "evaluation_seconds": 2.0, "unlabeled_rank": 9.5, "knn_top1": 40.0},
        {"step": 6, "loss": 0.5},
        {"step": 9, "loss": 0.2, "evaluation_seconds": 1.0, "unlabeled_rank": math.nan, "knn_top1": 60.0},
    ]
    assert page.find_scores(rows) == {"unlabeled_rank": [(5, 9.5)], "knn_top1": [(5, 40.0), (9, 60.0)]}
    (text,) = page._score_sections(rows)
    assert text.count("<svg ") == 2 and "<figcaption>knn_top1</figcaption>" in text
    assert page._score_sections(rows[1:2]) == []
