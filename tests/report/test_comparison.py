"""Sections about evaluations, beside the paper."""

import re

import numpy as np
import pytest
from PIL import Image

from croc_jax.report.comparison import choose_classes, comparison_facts, comparison_sections, own_rows, paper_section
from croc_jax.report.evaluations import group_evaluations, read_evaluations
from croc_jax.report.paper import PROTOCOL_SETTINGS, TABLES
from tests.report.tiny_results import write, write_linear


def groups_in(folder):
    return group_evaluations(read_evaluations([folder]))


def rows_of(text):
    """Returns the rows of all tables, each with whether it stands out."""
    text = re.sub("<thead>.*?</thead>", "", text)
    rows = re.findall('<tr( class="own")?><th>(.*?)</th>(.*?)</tr>', text)
    return [(bool(own), [name, *re.findall("<td>(.*?)</td>", cells)]) for own, name, cells in rows]


def test_a_group_shows_scores_classes_pictures_and_fingerprints(tmp_path):
    for name, miou, sky, sea in (("random", 10.0, 5.0, 15.0), ("one", 30.0, 50.0, 10.0)):
        folder = write_linear(tmp_path / name, miou=miou, checkpoint=name, step=3, sky=sky, sea=sea, cat=None)
        for picture in ("best", "worst"):
            Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / f"{picture}.png")
    groups = groups_in(tmp_path)
    name = "mIoU (%), linear segmentation: one, step 3, from random weights"
    assert comparison_facts(groups) == [("10.0 → 30.0", name)]
    section, _ = comparison_sections(groups)
    assert "<h2>Linear segmentation: scenes, val</h2>" in section
    rows = rows_of(section)
    assert [(own, row[:4]) for own, row in rows[:2]] == [
        (False, ["random weights", "10.0", "–", "1"]),
        (True, ["one, step 3", "30.0", "–", "1"]),
    ]
    assert "The best is a score of 7 images, 4 classes in labels." in section
    assert [len(row[-1]) for _, row in rows[:2]] == [12, 12]
    assert section.count("<svg ") == 1 and section.count("<img ") == 4
    folded = section[section.index("<details>") : section.index("</details>")]
    assert "Pictures: random weights" in folded and folded.count("<img ") == 2
    assert "one, step 3: where most pixels are right" in section
    assert "&quot;epochs&quot;: 3" in rows[-1][1][1] and rows[-1][1][2].endswith("results.json")


def test_of_many_classes_those_that_differ_most_are_chosen():
    names = [f"class {index}" for index in range(60)]
    scores = {label: {n: number * float(i) for i, n in enumerate(names)} for number, label in enumerate(("a", "b"))}
    scores["a"]["class 59"] = None
    chosen, caption = choose_classes(scores)
    assert list(chosen["a"]) == list(chosen["b"]) == names[19:59] and "40 classes of 60" in caption
    assert choose_classes({"a": {"sky": 1.0}}) == ({"a": {"sky": 1.0}}, "")


def test_settings_that_distinguish_groups_are_in_their_titles(tmp_path):
    for number in (None, 500):
        settings = {"num_clusters": number, "seeds": [0]}
        scores = {"miou": 5.0, "seed_miou": [5.0], "class_iou": {"sky": 5.0}}
        write(tmp_path / str(number), "unsupervised", scores, settings=settings)
    groups = groups_in(tmp_path)
    titles = sorted(re.search("<h2>(.*?)</h2>", text)[1] for text in comparison_sections(groups)[:2])
    assert titles == [f"Unsupervised segmentation: scenes, val{note}" for note in ("", " (num_clusters 500)")]
    assert sorted(name.count("num_clusters") for _, name in comparison_facts(groups)) == [0, 1]


def test_the_paper_is_folded_where_nothing_compares(tmp_path):
    write_linear(tmp_path, miou=10.0, sky=10.0)
    text = paper_section(groups_in(tmp_path))
    assert text.index("<details>") < text.index("<table") and text.count("<table") == len(TABLES)
    rows = rows_of(text)
    assert not any(own for own, _ in rows)
    values = [[f"{score:.1f}" for score in row.scores] for table in TABLES for row in table.rows]
    assert [row[1:] for _, row in rows] == values


def test_scores_are_in_the_columns_of_their_data_sets(tmp_path):
    paper = PROTOCOL_SETTINGS["linear"]
    for kind, miou in (("voc", 60.0), ("coco-stuff", 40.0)):
        dataset = {"kind": kind, "name": kind}
        write_linear(tmp_path / kind, miou=miou, checkpoint="one", dataset=dataset, settings=paper, sky=miou)
    write_linear(tmp_path / "other", miou=70.0, checkpoint="one", dataset={"kind": "voc"}, sky=70.0)
    groups = groups_in(tmp_path)
    assert sorted(own_rows(TABLES[0], groups)) == [
        ["one, step 0 (this project)", "60.0", "", "40.0"],
        ["one, step 0 (this project, with other settings)", "70.0", "", ""],
    ]
    assert not any(own_rows(table, groups) for table in TABLES[1:])
    rows = rows_of(paper_section(groups))
    assert rows[12][1][0] == "CrOC, ViT-S/16, IN" and [own for own, _ in rows[12:16]] == [False, True, True, False]


@pytest.mark.parametrize(
    ("protocol", "scores", "value"),
    [
        ("video", {"jf_mean": 55.0, "objects": {"judo/1": {"j_mean": 50.0, "f_mean": 60.0}},
                   **{f"{a}_{b}": 1.0 for a in "jf" for b in ("mean", "recall", "decay")}}, "55.0"),
        ("knn", {"top1": 44.0, "top5": 80.0}, "44.0"),
        ("classification", {"top1": 45.0, "top5": 80.0, "class_accuracy": {"cat": 45.0}}, "45.0"),
        ("discovery", {"corloc": 33.0}, "33.0"),
        ("retrieval", {"miou": 22.0, "class_iou": {"sky": 22.0}}, "22.0"),
    ],
)  # fmt: skip
def test_every_protocol_has_a_section(tmp_path, protocol, scores, value):
    write(tmp_path, protocol, scores)
    section = comparison_sections(groups_in(tmp_path))[0]
    header = re.findall("<th>(.*?)</th>", section[: section.index("</thead>")])
    row = rows_of(section[section.index("<tbody>") :])[0][1]
    assert row[1] == value and len(row) == len(header)
    assert ("<svg " in section) == (protocol not in ("knn", "discovery"))
