"""Evaluations are put beside those that they compare with."""

import json

import numpy as np
import pytest

from croc_jax.report.evaluations import differing_settings, group_evaluations, read_evaluations
from tests.report.tiny_results import write, write_linear


def test_what_differs_in_weights_and_seeds_alone_is_compared(tmp_path):
    write_linear(tmp_path / "a", miou=20.0, sky=20.0)
    for seed, miou in enumerate((30.0, 33.0, 36.0)):
        write_linear(tmp_path / f"b{seed}", miou=miou, seed=seed, checkpoint="runs/one", step=5, sky=miou)
    # A repetition is no further seed.
    write_linear(tmp_path / "again", miou=36.0, seed=2, checkpoint="runs/one", step=5, sky=36.0)
    write_linear(tmp_path / "c", miou=25.0, checkpoint="runs/two", step=5, sky=25.0)
    write_linear(tmp_path / "longer", miou=40.0, settings={"epochs": 9}, sky=40.0)
    write_linear(tmp_path / "elsewhere", miou=10.0, dataset={"name": "streets"}, sky=10.0)
    write_linear(tmp_path / "since", miou=10.0, dataset={"name": "streets", "digest": "0f"}, sky=10.0)
    scenes, longer, since, streets = groups = group_evaluations(read_evaluations([tmp_path]))
    assert [entry.label for entry in scenes.entries] == ["random weights", "two, step 5", "one, step 5"]
    assert [entry.score for entry in scenes.entries] == [20.0, 25.0, pytest.approx(33.0)]
    assert [entry.deviation for entry in scenes.entries] == [None, None, pytest.approx(3.0)]
    assert [len(group.entries) for group in (longer, since, streets)] == [1, 1, 1]
    images = [{"images": "0f"}, {"images": "not identified"}]
    assert differing_settings(groups) == [{"epochs": 3}, {"epochs": 9}, *images]


def test_seeds_within_an_evaluation_count(tmp_path):
    scores = {"miou": 12.0, "seed_miou": [10.0, 11.0, 15.0], "class_iou": {}}
    write(tmp_path, "unsupervised", scores, settings={"seeds": [0, 1, 2]})
    ((entry,),) = (group.entries for group in group_evaluations(read_evaluations([tmp_path])))
    assert entry.score == pytest.approx(12) and entry.deviation == pytest.approx(np.std([10, 11, 15], ddof=1))


def test_labels_are_as_long_as_it_takes_to_tell_weights_apart(tmp_path):
    paths = ["x/one/checkpoints/3", "y/one", "two.pth"]
    for index, path in enumerate(paths):
        write_linear(tmp_path / str(index), miou=1.0, checkpoint=path, step=index)
    write(tmp_path / "3", "knn", {"top1": 50.0}, checkpoint="y/one", step=1, which="student")
    labels = [one.label for one in read_evaluations([tmp_path])]
    assert labels == ["x/one, step 0", "y/one, step 1", "two.pth, step 2", "y/one, step 1, student"]


def test_objects_of_videos_have_scores_as_classes_do(tmp_path):
    objects = {"judo/1": {"j_mean": 40.0, "f_mean": 60.0}}
    write(tmp_path, "video", {"jf_mean": 50.0, "objects": objects})
    (one,) = read_evaluations([tmp_path])
    assert one.protocol.name == "video" and one.score == 50 and one.class_scores == {"judo/1": 50.0}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"protocol": "linear", "miou": 3}', '{"protocol": "other"}'])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match="results.json was not written by evaluate.py"):
        read_evaluations([tmp_path])


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": 3},
        {"step": "3"},
        {"miou": None},
        {"class_iou": []},
        {"class_iou": {"sky": "x"}},
        {"fingerprint": {"dataset": 1}},
        {"seconds": 1},
    ],
)
def test_a_damaged_file_is_named(tmp_path, change):
    file = write_linear(tmp_path, miou=20.0, sky=20.0) / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match="results.json was not written by evaluate.py"):
        read_evaluations([tmp_path])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no folder .*nowhere"):
        read_evaluations([tmp_path / "nowhere"])
