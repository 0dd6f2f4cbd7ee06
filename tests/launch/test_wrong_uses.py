"""Wrong paths, wrong files, empty folders, and places that cannot be written: one line, status 1, nothing left."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.tiny_weights import official_weights, write
from tests.launch.program import end_program

# What each program needs, by flag; {} is the folder with all of it.
PROGRAMS = {
    "launch/ablations.py": {"workdir": "{}/new"},
    "launch/cluster.py": {"images": "{}/photos", "checkpoint": "{}/vit.safetensors", "output": "{}/new"},
    "launch/convert.py": {"checkpoint": "{}/vit.safetensors", "output": "{}/new/a.safetensors"},
    "launch/demo.py": {"images": "{}/photos", "workdir": "{}/new"},
    "launch/embed.py": {"source": "{}/photos", "checkpoint": "{}/vit.safetensors", "output": "{}/new"},
    "launch/evaluate.py": {
        "checkpoint": "{}/vit.safetensors", "output": "{}/new",
        "config": "configs/eval/linear.py", "config.dataset.root": "{}/data",
    },
    "launch/gallery.py": {"images": "{}/photos", "checkpoint": "{}/vit.safetensors", "output": "{}/new"},
    "launch/prepare.py": {"source": "{}/photos", "output": "{}/new", "workers": "1"},
    "launch/pretrain.py": {
        "config": "configs/demo.py", "config.data.folders": "{}/photos", "workdir": "{}/new", "num_processes": "1",
    },
    "launch/report.py": {"folder": "{}/empty", "output": "{}/new/a.html"},
    "examples/scenes": {"output": "{}/new"},
}  # fmt: skip
OUTPUTS = ("output", "workdir")
# Not a path, in whichever flag.
NO_PATHS = {
    "a URL": ("gs://bucket/x", "gs:// is not read or written here: name a path on a mounted disk"),
    "nothing": ("", "is empty: name a path"),
    "no home": ("~no_such_user/x", "there is no such home folder"),
}
UNWRITABLE = {
    "a file": "{}/letter.html",
    "below a file": "{}/letter.html/x/y.html",
    "a system": "/proc/x/y.html",
}
WRONG_INPUTS = {
    "missing": "{}/nowhere",
    "empty": "{}/empty",
    "a letter": "{}/letter.html",
    "a damaged file": "{}/bad.pth",
}
OPTIONAL = (("launch/demo.py", "images"), ("launch/demo.py", "workdir"), ("launch/gallery.py", "images"))


def cases():
    """Yields name, program, flags that differ from `PROGRAMS`, and what the message holds."""
    for program, given in PROGRAMS.items():
        for flag in given:
            is_output = flag in OUTPUTS
            if is_output or flag in ("images", "checkpoint", "folder"):
                for name, (value, words) in NO_PATHS.items():
                    may_be_empty = (program, flag) in OPTIONAL or (program, flag) == ("launch/report.py", "output")
                    if value or not may_be_empty:
                        yield f"{program} {flag} {name}", program, {flag: value}, f"--{flag}.*{words}"
            writes_here = program not in ("launch/ablations.py", "launch/demo.py", "launch/pretrain.py")
            for name, value in UNWRITABLE.items() if is_output and writes_here else ():
                is_page = program in ("launch/convert.py", "launch/report.py")
                if not (is_page and name == "a file"):  # A file may be written again.
                    yield f"{program} {flag} {name}", program, {flag: value}, f"--{flag}={value}.*cannot write there"
            for name, value in WRONG_INPUTS.items() if flag in ("images", "checkpoint", "folder", "source") else ():
                yield f"{program} {flag} {name}", program, {flag: value}, ".*{}"
    for config, words in (("nope.py", "no such file"), ("configs", "no such file"), ("LICENSE", "IndentationError")):
        for program in ("launch/evaluate.py", "launch/pretrain.py"):
            yield f"{program} {config}", program, {"config": config}, f"--config={config}: .*{words}"
    colors = {"config.data.photometric.hue": "0.1", "config.data.photometric.saturation": "0.3"}
    words = (
        "data.photometric.saturation=0.3, data.photometric.hue=0.1: images of 1 channel have no saturation, no hue; "
        "add --config.data.photometric.saturation=0 --config.data.photometric.hue=0$"
    )
    yield "hue of gray images", "launch/pretrain.py", {"config": "configs/gray16.py"} | colors, words
    for flag, value, words in (
        ("config.data.folders", "s3://b/x", "--config.data.folders=s3://b/x: s3:// is not read or written here"),
        ("config.schedule.epochs", "abc", "--config.schedule.epochs=abc: invalid literal"),
        ("config.schedule.epochs", "-3", "schedule.epochs=-3: must be 1 or more"),
        ("config.schedule.batch_size", "0", "schedule.batch_size=0: must be 1 or more"),
        ("config.optimizer.base_lr", "nan", "optimizer.base_lr=nan: not a number"),
        ("config.schedule.nope", "1", "unknown field nope"),
        ("config.schedule", "1", "--config.schedule=1: "),
        ("nope", "1", "Unknown command line flag 'nope'"),
        ("num_processes", "many", "--num_processes=many: "),
        ("config.data.statistics", "{}/no.json", "data.statistics={}/no.json: there is no such file"),
        ("config.data.statistics", "{}/letter.html", "data.statistics={}/letter.html does not hold statistics"),
        ("config.data.window", "-1", "data.window=-1: must be 0 or more"),
    ):
        yield f"launch/pretrain.py {flag}={value}", "launch/pretrain.py", {flag: value}, words
    for flag, value, words in (
        ("statistics", "{}/a.json", "add one of --output=FOLDER, for shards, and --statistics=FILE.json"),
        ("percentiles", "1,99", "--percentiles has no effect without --statistics"),
        ("dtype", "int8", "--dtype=int8: value should be one of <uint8|uint16|float32>"),
        ("channels", "17", "--channels=17: 17 is not an integer in the range"),
        ("channels", "4", "no image of {0}/photos could be read, such as {0}/photos/\\d.png \\(it holds .*4 channels"),
    ):
        yield f"launch/prepare.py {flag}={value}", "launch/prepare.py", {flag: value}, words
    measured = {"statistics": "{}/new/a.json", "output": None}
    for flag, value, words in (
        ("statistics", "gs://a/b", "--statistics=gs://a/b: gs:// is not read or written here"),
        ("statistics", "{}/photos", "--statistics={}/photos is a folder: name a file"),
        ("statistics", "/proc/x/a.json", "--statistics=/proc/x/a.json: cannot write there"),
        ("percentiles", "1,x", "--percentiles=1,x: expected numbers"),
        ("percentiles", "99,1", "percentiles=.*: give two numbers from 0 to 100"),
        ("range", "9,1", "range=.*: give finite numbers, each low one below its high one"),
        ("short_side", "9", "--short_side has no effect on --statistics"),
    ):
        yield f"statistics {flag}={value}", "launch/prepare.py", measured | {flag: value}, words
    yield "weights to a folder", "launch/convert.py", {"output": "{}/empty"}, "--output={}/empty is a folder"
    yield "a page without suffix", "launch/report.py", {"output": "{}/page"}, "--output={}/page: name a file that ends"
    yield "clusters of nothing", "launch/cluster.py", {"size": "0"}, "--size=0: 0 is not a positive integer"
    yield "shards of other settings", "launch/prepare.py", {"output": "{}/shards"}, "holds ArrayRecord files but no"


CASES = list(cases())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, data):
    """Photos, labeled images, weights, and files that are none of these."""
    folder, rng = tmp_path_factory.mktemp("wrong"), np.random.default_rng(0)
    for name in ("photos", "empty", "shards"):
        (folder / name).mkdir()
    for index in range(3):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / "photos" / f"{index}.png")
    (folder / "data").symlink_to(data)
    (folder / "letter.html").write_text("Dear reader")
    (folder / "shards" / "a.array_record").touch()
    weights = write(folder / "vit.safetensors", official_weights())
    (folder / "bad.pth").write_bytes(weights.read_bytes()[:99])
    return folder


@pytest.mark.parametrize(("program", "changes", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_one_line_and_nothing_left(folder, program, changes, words):
    given = {flag: value.format(folder) for flag, value in (PROGRAMS[program] | changes).items() if value is not None}
    before = sorted(folder.rglob("*"))
    message = end_program(program, *(f"--{flag}={value}" for flag, value in given.items()))
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message, message
    assert re.search(words.format(re.escape(str(folder))), message), message
    assert sorted(folder.rglob("*")) == before


def test_a_version_is_told_without_any_other_flag(capsys):
    assert [end_program(program, "--version") for program in PROGRAMS] == [0] * len(PROGRAMS)
    assert set(capsys.readouterr().out.split("\n")) == {"croc_jax 0.1.0", ""}
