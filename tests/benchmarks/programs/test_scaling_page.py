"""The page of scaling: its tables from made-up figures; nothing is compiled."""

from pathlib import Path

import pytest
from programs.compiling import Figures, describe_failure, summarize
from programs.program import Cost, Exchange, Work
from programs.scaling_page import (
    HEAD,
    MEASURED,
    PAGE,
    SEEN,
    Entry,
    cells_of,
    duration,
    make_page,
    measured_section,
    time_range,
)  # fmt: skip
from programs.targets import CHIPS, chip_of

GIB = 2**30
NAME = "bf16[8,8] forward: Block/mlp_1/dot_general"


def figures(**changes):
    made = {
        "mesh": {"data": 2, "fsdp": 2, "model": 1},
        "images": 64,
        "state": GIB // 2,
        "arguments": 3 * GIB // 4,
        "temporaries": 6 * GIB,
        "fits": True,
        "seconds": 0.2,
        "traffic": 80 * 10**9,
        "flops": 4 * 10**12,
        "method_flops": 5.91e12,
        "launches": 4567,
        "loops": [11, 4],
        "assumed": 1,
        "sorts": 2,
        "doubles": 0,
        "host": 0,
        "aliased": 645,
        "leaves": 646,
        "largest": [(NAME, 11, 0.05, 3 * 10**9, 10**12)],
        "exchanges": {"all-reduce": (51, {"f32": 2 * 10**6, "bf16": 1234 * 10**6, "s32": 8})},
        "compile_seconds": 61.4,
        "compile_cpu_seconds": 122.7,
    }
    return Figures(**(made | changes))


ENTRIES = [
    Entry("ViT-S/16, batch 256, 4 x v5e", "v5e:2x2", figures()),
    Entry("ViT-g/14, batch 256, 4 x h100", "h100:1x1x4", figures(fits=False, exchanges={})),
    Entry("ViT-S/16, batch 1024, 4 x v5e", "v5e:2x2", "does not fit: needs 19.5 of 15.75 GiB"),
]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(3, "0.1 min"), (59 * 60, "59.0 min"), (3600, "1.0 h"), (86399, "24.0 h"), (15 * 86400, "15.0 d")],
)
def test_durations_have_one_form(seconds, expected):
    assert duration(seconds) == expected


def test_rows_say_what_is_estimated_and_what_is_a_bound():
    guess, bound, failure = map(cells_of, ENTRIES)
    # 4 TFLOP in 0.2 s, of 197 TFLOP/s.
    assert guess[1:] == ["64", "0.50", "0.75", "6.00", "yes", "200", "4", "10%", "", "4,567", "61, 123"]
    assert bound[5:10] == ["no", "200 at least", "4", "2% at most", "80"]
    assert failure[1] == "does not fit: needs 19.5 of 15.75 GiB" and len(failure) == len(HEAD)


def test_runs_take_from_the_estimate_to_a_share_of_the_peak():
    # 256 images a step: of 0.2 s, or of 5.91 TFLOP at 15% of 197 TFLOP/s, which is 0.2 s, too.
    assert time_range(figures(), "v5e:2x2", 256 * 18_000) == "1.0 h"
    assert time_range(figures(seconds=0.1), "v5e:2x2", 256 * 18_000) == "30.0 min to 1.0 h"
    assert time_range(figures(seconds=0.4), "v5e:2x2", 256 * 18_000) == "1.0 h to 2.0 h"
    assert time_range(figures(method_flops=0.0), "v5e:2x2", 256 * 18_000) == "1.0 h"


def test_the_page_has_all_rows():
    page = make_page(ENTRIES)
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert ["ViT-S/16, batch 1024, 4 x v5e", "does not fit: needs 19.5 of 15.75 GiB"] == [
        cell.strip(" |") for cell in rows[4] if cell.strip(" |")
    ]
    assert ["ViT-S/16, batch 256, 4 x v5e", "all-reduce", "51", "1,234 bf16, 2 f32, < 0.001 s32"] in rows
    assert ["ViT-S/16, batch 256, 4 x v5e", "2", "0", "0", "645 of 646"] in rows
    assert [f"`{NAME}`", "11", "50", "25.0%", "3", "1,000"] in rows
    assert ["v5e", "197", "819", "16", "1.5"] in rows and "| h100 | 989 | 3352 | 79.1 |  |" in page
    coco = time_range(figures(), "v5e:2x2", SEEN["COCO, 300 epochs"])
    assert rows[-2][:2] == ["ViT-S/16, batch 256, 4 x v5e", coco] and len(rows[-2]) == 3
    assert page.endswith("## Measured\n\nNo accelerator has been measured yet.\n") and "{" not in page
    assert measured_section(page) == measured_section("") == MEASURED
    pasted = page.replace(MEASURED, "### A card\n\n| step | 1 s |")
    kept = measured_section(pasted)
    assert kept == "### A card\n\n| step | 1 s |"


def test_the_page_of_the_site_is_what_the_program_writes():
    page = (Path(__file__).resolve().parents[3] / "docs" / "scaling.md").read_text()
    assert page.startswith(PAGE.partition("{steps}")[0])


def test_estimates_are_cycles_or_the_longer_of_bytes_and_products():
    costs = [Cost("few bytes", 2, 300, 1000, 40), Cost("many bytes", 1, 200, 5000, 10)]
    counts = {"flops": 50, "traffic": 6000, "launches": 3, "loops": [2], "assumed": 0}
    counts |= {"sorts": 1, "doubles": 0, "host": 0, "aliased": 7}
    work = Work(costs=costs, exchanges={"all-gather": Exchange(3, {"f32": 12})}, **counts)
    chip = CHIPS["v5e"]._replace(clock=100.0)
    told = summarize(work, chip)
    assert told["seconds"] == 5 and [line[0] for line in told["largest"]] == ["few bytes", "many bytes"]
    told = summarize(work, CHIPS["h100"]._replace(bandwidth=1000.0, peak=10.0))
    assert told["seconds"] == 4 + 5 and [line[0] for line in told["largest"]] == ["many bytes", "few bytes"]
    assert told["exchanges"] == {"all-gather": (3, {"f32": 12})}
    assert {name: told[name] for name in counts} == counts


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (19.50G) exceeds available HBM (15.75G)\nmore",
            "does not fit: needs 19.5 of 15.75 GiB",
        ),
        ("RESOURCE_EXHAUSTED: no room\nmore", "does not fit: RESOURCE_EXHAUSTED: no room"),
        ("INTERNAL: a bug\nmore", "INTERNAL: a bug"),
    ],
)
def test_failures_say_what_is_short(message, expected):
    assert describe_failure(RuntimeError(message)) == expected


def test_unknown_chips_are_named():
    with pytest.raises(ValueError, match="v9:2x2: choose one of v5e:SIDES, v5p:SIDES, v6e:SIDES, h100:SIDES"):
        chip_of("v9:2x2")
