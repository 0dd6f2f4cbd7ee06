"""What a page says about evaluations."""

import numpy as np
import pytest
from PIL import Image

from croc_jax.report.comparison import comparison_facts, comparison_sections, paper_section
from croc_jax.report.evaluations import group_evaluations, read_evaluations
from croc_jax.report.html import Details, Fact, Photo, Picture, Table
from croc_jax.report.paper import PROTOCOL_SETTINGS, TABLES
from tests.report.tiny_results import write, write_linear


def groups_in(folder):
    return group_evaluations(read_evaluations([folder]))


def test_a_group_shows_scores_classes_pictures_and_fingerprints(tmp_path):
    for name, miou, sky, sea in (("random", 10.0, 5.0, 15.0), ("one", 30.0, 50.0, 10.0)):
        folder = write_linear(tmp_path / name, miou=miou, checkpoint=name, step=3, sky=sky, sea=sea, cat=None)
        for picture in ("best", "worst"):
            Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / f"{picture}.png")
    groups = groups_in(tmp_path)
    assert comparison_facts(groups) == [
        Fact("10.0 → 30.0", "mIoU (%), linear segmentation: one, step 3, from random weights")
    ]
    section, _ = comparison_sections(groups)
    assert section.title == "Linear segmentation: scenes, val"
    table, classes, folded, best, worst, fingerprints = section.blocks
    assert isinstance(table, Table) and table.own == [1]
    assert [row[:4] for row in table.rows] == [["random weights", "10.0", "–", "1"], ["one, step 3", "30.0", "–", "1"]]
    assert table.header[-1] == "fingerprint" and len(table.rows[0][-1]) == 12
    assert isinstance(classes, Picture)
    (axes,) = classes.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean", "sky", "sea"]
    assert isinstance(folded, Details) and len(folded.blocks) == 2
    assert isinstance(best, Photo) and best.file == tmp_path / "one" / "best.png" and "most" in best.caption
    assert isinstance(worst, Photo) and worst.file.name == "worst.png" and "fewest" in worst.caption
    assert isinstance(fingerprints, Details) and '"epochs": 3' in fingerprints.blocks[0].rows[0][1]


def test_of_many_classes_those_that_differ_most_are_drawn(tmp_path):
    names = [f"class {index}" for index in range(60)]
    for number, name in enumerate(("random", "one")):
        write_linear(tmp_path / name, miou=1.0, checkpoint=name, **{n: number * float(i) for i, n in enumerate(names)})
    picture = comparison_sections(groups_in(tmp_path))[0].blocks[1]
    shown = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert shown == ["mean", *names[20:]] and "40 classes of 60" in picture.caption


def test_settings_that_tell_groups_apart_are_in_their_titles(tmp_path):
    for number in (None, 500):
        settings = {"num_clusters": number, "seeds": [0]}
        scores = {"miou": 5.0, "seed_miou": [5.0], "class_iou": {"sky": 5.0}}
        write(tmp_path / str(number), "unsupervised", scores, settings=settings)
    groups = groups_in(tmp_path)
    titles = sorted(section.title for section in comparison_sections(groups)[:2])
    assert titles == [f"Unsupervised segmentation: scenes, val{note}" for note in ("", " (num_clusters 500)")]
    assert sorted(fact.name.count("num_clusters") for fact in comparison_facts(groups)) == [0, 1]


def test_the_paper_is_folded_away_where_nothing_compares(tmp_path):
    write_linear(tmp_path, miou=10.0, sky=10.0)
    (folded,) = paper_section(groups_in(tmp_path)).blocks
    assert isinstance(folded, Details) and len(folded.blocks) == len(TABLES)
    for table, rendered in zip(TABLES, folded.blocks, strict=True):
        assert len(rendered.rows) == len(table.rows) and not rendered.own
        assert [float(value) for value in rendered.rows[-1][1:]] == list(table.rows[-1].scores)


def test_our_scores_stand_in_the_columns_of_their_data_sets(tmp_path):
    paper = PROTOCOL_SETTINGS["linear"]
    for kind, miou in (("voc", 60.0), ("coco-stuff", 40.0)):
        dataset = {"kind": kind, "name": kind}
        write_linear(tmp_path / kind, miou=miou, checkpoint="one", dataset=dataset, settings=paper, sky=miou)
    write_linear(tmp_path / "other", miou=70.0, checkpoint="one", dataset={"kind": "voc"}, sky=70.0)
    table, folded = paper_section(groups_in(tmp_path)).blocks
    assert table.caption.startswith("Table 1") and list(table.own) == [13, 14]
    rows = {row[0]: row[1:] for row in table.rows[13:]}
    assert rows == {
        "one, step 0 (ours)": ["60.0", "", "40.0"],
        "one, step 0 (ours, with other settings)": ["70.0", "", ""],
    }
    assert table.rows[12][0] == "CrOC, ViT-S/16, IN" and len(folded.blocks) == 5


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
    table = section.blocks[0]
    assert table.rows[0][1] == value and len(table.header) == len(table.rows[0])
    assert any(isinstance(block, Picture) for block in section.blocks) == (protocol not in ("knn", "discovery"))
