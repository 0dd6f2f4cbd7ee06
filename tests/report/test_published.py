"""Published scores stand beside results of the same protocol, settings and data set, and no others."""

import json
import runpy
from pathlib import Path

import pytest

from croc_jax.report.comparison import comparison_sections
from croc_jax.report.evaluations import group_evaluations, read_evaluations
from croc_jax.report.published import FOLLOWED, PUBLISHED, published_for
from tests.report.tiny_results import write

CONFIGS = Path(__file__).parents[2] / "configs" / "eval"


def settings_of(config):
    """Returns the protocol and the settings of a config, as results.json holds them."""
    file, *variant = config.split(":")
    content = runpy.run_path(str(CONFIGS / file))["get_config"](*variant).to_dict()
    return content["protocol"], json.loads(json.dumps(content[content["protocol"]]))


@pytest.mark.parametrize("config", FOLLOWED)
def test_results_of_a_config_compare_with_its_rows_alone(config):
    protocol, settings = settings_of(config)
    kind = next(kind for row in PUBLISHED if row.config == config for kind in row.scores)
    rows = published_for(protocol, settings | {"seed": 4}, kind)
    assert rows == [row for row in PUBLISHED if row.config == config and kind in row.scores] and rows
    assert not published_for(protocol, settings, "coco-things")
    other = next(name for name, value in settings.items() if isinstance(value, float))
    assert not published_for(protocol, settings | {other: settings[other] / 2}, kind)


def test_a_report_shows_published_scores_above_its_own(tmp_path):
    protocol, settings = settings_of("linear.py:dinov2")
    scores = {"miou": 12.34, "class_iou": {}}
    for folder, of in (("same", settings), ("other", settings | {"iterations": 100})):
        write(tmp_path / folder, protocol, scores, settings=of, dataset={"kind": "voc", "name": "VOC2012"})
    pages = comparison_sections(group_evaluations(read_evaluations([tmp_path])))
    shown = [page for page in pages if "Published scores by this protocol" in page]
    assert len(shown) == 1 and "DINOv2 ViT-L/14</th><td>82.1</td>" in shown[0] and "DINOv3 ViT" not in shown[0]
    assert shown[0].index("OpenCLIP") < shown[0].index("<td>12.3</td><td>this project</td>")
