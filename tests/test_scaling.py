"""The page of scaling: its tables from made-up figures; nothing is compiled."""

import importlib
import os
import sys
from pathlib import Path

import pytest
from absl import flags

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
GIB = 2**30


@pytest.fixture
def scaling(monkeypatch):
    if "scaling" not in sys.modules:
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        # It sets both for programs of its own; the devices of this one are there already.
        for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
            monkeypatch.setenv(name, os.environ[name])
        importlib.import_module("scaling")
        # Other programs have a flag of this name, too.
        delattr(flags.FLAGS, "output")
    return sys.modules["scaling"]


@pytest.fixture
def measured(scaling):
    sizes = {"all-reduce": GIB, "all-gather": 2 * GIB, "all-to-all": GIB // 4}
    work = scaling.Work(sizes, {"all-reduce": 7, "all-gather": 4, "all-to-all": 1}, 8 * 10**12)
    alone = scaling.Work({}, {}, 8 * 10**12)
    figures = {
        (model, count): scaling.Figures(10 * GIB, 4 * GIB, alone if count == 1 else work)
        for model in scaling.MODELS
        for count in scaling.NUM_DEVICES
    }
    return scaling.Measured(figures, dict.fromkeys(scaling.MODELS, 2.0 * GIB))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (3, "0.1 min"),
        (59 * 60, "59.0 min"),
        (3600, "1.0 h"),
        (86399, "24.0 h"),
        (86400, "1.0 d"),
        (15 * 86400, "15.0 d"),
        (730 * 86400, "2.0 y"),
    ],
)
def test_durations_have_one_form(scaling, seconds, expected):
    assert scaling.duration(seconds) == expected


def test_what_fits_is_judged_by_state_and_work(scaling):
    machine = scaling.Machine("small", 8, 1.0, 1.0, 10)
    assert scaling.judge(4 * GIB, 5 * GIB, machine) == "yes"
    assert scaling.judge(4 * GIB, 5.1 * GIB, machine) == "bfloat16"
    assert scaling.judge(4 * GIB, 10 * GIB, machine) == "bfloat16"
    assert scaling.judge(4 * GIB, 10.1 * GIB, machine) == "no"


def test_more_images_take_more_work_and_less_exchange(scaling, measured):
    model, machine = scaling.MODELS[0], scaling.MACHINES[0]
    assert scaling.needed(model, machine, 8, measured) == (10 * GIB, 4 * GIB)
    assert scaling.needed(model, machine, 32, measured) == (10 * GIB, 52 * GIB)
    assert [scaling.compiled_for(machine) for machine in scaling.MACHINES] == [8, 64, 64]
    # Summed up twice over, gathered and exchanged once.
    exchange = (2 + 2 + 0.25) * GIB / machine.bandwidth
    few, many = (scaling.seconds_an_image(model, machine, images, measured) for images in (8, 32))
    arithmetic = scaling.model_flops(scaling.recipe_of(model, 8), scaling.CLUSTERS) / (0.4 * machine.peak) / 8
    assert few == pytest.approx(arithmetic + exchange / 64) and many == pytest.approx(arithmetic + exchange / 256)


def test_the_page_has_all_rows(scaling, measured):
    page = scaling.make_page(measured)
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ViT")]
    models, counts = len(scaling.MODELS), len(scaling.NUM_DEVICES)
    assert len(rows) == models * (counts + counts - 1 + 2 + 4)
    assert ["ViT-L/16", "64", "8 x 8", "10.00", "4.00", "1.00", "1.00"] in rows
    assert ["ViT-L/16", "64", "1.00 GiB in 7", "2.00 GiB in 4", "0.25 GiB in 1"] in rows
    assert ["ViT-S/16", "8", "14.0, yes", "14.0, yes", "14.0, yes"] in rows
    assert ["ViT-S/16", "32", "62.0, yes", "62.0, bfloat16", "62.0, no"] in rows
    seen = [row[1] for row in rows if row[0] == "ViT-g/16"][-4:]
    assert seen == list(scaling.SEEN) and scaling.SEEN[seen[3]] == 300 * scaling.SEEN[seen[2]] == 300 * 10**9
    assert "{" not in page and "8 images of 224 x 224" in page
