"""A workdir belongs to one configuration and one set of images, once a run has begun in it."""

import dataclasses
import json

import pytest

from croc_jax.data.config import DataConfig
from croc_jax.data.sources.identity import ImageSet
from croc_jax.runtime import workdir as workdir_module
from croc_jax.runtime.lock import WorkdirError, lock_workdir, unlock_workdir
from croc_jax.runtime.workdir import (
    Plan,
    Start,
    claim_workdir,
    differing_fields,
    init_workdir,
    leaving_nothing,
    plan_start,
    read_recipe,
)
from croc_jax.training.config import (
    HARMLESS,
    PATHS,
    InitConfig,
    Recipe,
    RuntimeConfig,
    ScheduleConfig,
    decides_numbers,
    flatten,
    recipe_to_dict,
)

RECIPE = Recipe(seed=3, data=DataConfig(folders=("photos",)))
IMAGES = ImageSet(24, "abc", (("a.png", 1), ("b.png", 2)))
MORE = ImageSet(40, "def", (("a.png", 1), ("b.png", 2), ("c.png", 3)))
START = Start(recipe=RECIPE, images=IMAGES, steps_per_epoch=3)
FILES = ["config.json", "images.json", "lock", "starts.jsonl"]


@pytest.fixture
def begun(tmp_path):
    """The workdir of a run that has logged and saved six steps."""
    claim_workdir(tmp_path, START)
    make_progress(tmp_path)
    return tmp_path


def make_progress(workdir):
    (workdir / "checkpoints" / "6").mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 1, "epoch": 1 / 3}) + "\n")


def change(**groups):
    return dataclasses.replace(START, recipe=dataclasses.replace(RECIPE, **groups))


def starts(workdir):
    return [json.loads(line) for line in (workdir / "starts.jsonl").read_text().splitlines()]


def test_configuration_images_and_versions_are_written_and_may_come_back(tmp_path):
    workdir = tmp_path / "runs" / "new"
    for _ in range(2):
        assert plan_start(workdir, START) == Plan(True, 0, 3, [])
        claim_workdir(workdir, START)
        assert read_recipe(workdir / "config.json") == RECIPE
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(recipe_to_dict(RECIPE)))
    noted = {"count": 24, "digest": "abc", "steps_per_epoch": 3, "entries": [["a.png", 1], ["b.png", 2]]}
    assert json.loads((workdir / "images.json").read_text()) == noted
    (start,) = starts(workdir)
    assert start["step"] == 0 and start["images"] == {"count": 24, "digest": "abc"} and start["processes"] == 1
    assert start["versions"].keys() >= {"jax", "croc_jax"} and start["devices"].endswith(" cpu")
    assert sorted(file.name for file in workdir.iterdir()) == FILES


def test_a_run_that_has_begun_refuses_another_configuration_with_old_and_new_values(begun):
    for use in (plan_start, claim_workdir):
        with pytest.raises(WorkdirError) as refusal:
            use(begun, change(seed=4, schedule=ScheduleConfig(epochs=7)))
        message = str(refusal.value)
        assert "\n  seed: 3 there, 4 now" in message and "\n  schedule.epochs: 300 there, 7 now" in message
        assert "batch_size" not in message and str(begun) in message
    assert read_recipe(begun / "config.json") == RECIPE and len(starts(begun)) == 1


@pytest.mark.parametrize("progress", ["checkpoints/6", "metrics.jsonl", ""])
def test_only_a_logged_step_or_a_saved_state_binds_a_workdir(tmp_path, progress):
    claim_workdir(tmp_path, START)
    (tmp_path / "skipped-1.txt").write_text("of other images")
    # What an interrupted save, or a start without a step, leaves.
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text('{"ste')
    if progress == "metrics.jsonl":
        (tmp_path / progress).write_text('{"step": 1, "epoch": 0.3}\n')
    elif progress:
        (tmp_path / progress).mkdir()
    other = dataclasses.replace(change(seed=4), images=MORE, steps_per_epoch=5)
    if progress:
        with pytest.raises(WorkdirError, match="another configuration"):
            claim_workdir(tmp_path, other)
    else:
        assert plan_start(tmp_path, other) == Plan(True, 0, 5, [])
        claim_workdir(tmp_path, other)
        assert read_recipe(tmp_path / "config.json").seed == 4 and not (tmp_path / "skipped-1.txt").exists()
        assert [start["images"]["count"] for start in starts(tmp_path)] == [40]


def test_settings_that_change_no_number_may_change_and_are_noted(begun):
    changed = change(runtime=RuntimeConfig(num_workers=4), data=DataConfig(folders=("photos",), max_bad_fraction=1.0))
    assert differing_fields(RECIPE, changed.recipe) == {}
    assert plan_start(begun, changed) == Plan(False, 6, 3, [])
    claim_workdir(begun, changed)
    assert read_recipe(begun / "config.json") == changed.recipe
    first, second = starts(begun)
    assert "changed" not in first and second["step"] == 6
    assert second["changed"] == {"runtime.num_workers": [-1, 4], "data.max_bad_fraction": [0.01, 1.0]}


def test_the_table_of_settings_that_change_no_number():
    names = set(flatten(recipe_to_dict(RECIPE)))
    harmless = {name for name in names if not decides_numbers(name)}
    groups = {name for name in names if name.startswith(("evaluation.", "runtime."))}
    assert harmless - groups == set(HARMLESS) - {"evaluation", "runtime"}
    assert {"seed", "schedule.epochs", "data.weights", "data.views.crop_size", "backbone.dtype"} <= names - harmless


def test_the_same_images_in_another_place_are_accepted_in_one_line(begun):
    moved = change(data=DataConfig(sources=("tar:scratch/*.tar",)))
    (note,) = plan_start(begun, moved).notes
    assert note == (
        "data.folders was ('photos',), is (); data.sources was (), is ('tar:scratch/*.tar',); the same images"
    )
    claim_workdir(begun, moved)
    assert plan_start(begun, moved).notes == []


def test_initial_weights_may_move_but_not_appear(begun):
    weighed = change(init_from=InitConfig(source="a.pth"))
    with pytest.raises(WorkdirError, match=r"init_from.source: '' there, 'a.pth' now"):
        plan_start(begun, weighed)
    init_workdir(begun, weighed.recipe)
    (note,) = plan_start(begun, change(init_from=InitConfig(source="b.pth"))).notes
    assert note == "init_from.source was 'a.pth', is 'b.pth'; the same images"


def test_other_images_end_a_start_unless_accepted_and_the_epochs_stay(begun):
    other = dataclasses.replace(START, images=MORE, steps_per_epoch=5)
    with pytest.raises(WorkdirError, match=r"24 images then, 40 now \(1 new: 'c.png'\). Restore .*accept_changed_imag"):
        plan_start(begun, other)
    other = dataclasses.replace(other, accept_changed_images=True)
    plan = plan_start(begun, other)
    assert plan[:3] == (False, 6, 3) and "(3 steps each), and draws from those of now" in plan.notes[0]
    claim_workdir(begun, other)
    # From then on they are the run's, and so are its epochs.
    other = dataclasses.replace(other, accept_changed_images=False)
    assert plan_start(begun, other) == Plan(False, 6, 3, [])
    assert [start["images"]["count"] for start in starts(begun)] == [24, 40]
    with pytest.raises(WorkdirError, match="40 images then, 24 now"):
        plan_start(begun, START)


def test_an_older_workdir_says_that_it_cannot_compare_and_notes_the_images(tmp_path):
    init_workdir(tmp_path, RECIPE)
    make_progress(tmp_path)
    (note,) = plan_start(tmp_path, START).notes
    assert note == "the images could not be compared: this workdir does not state what they were"
    # What the log tells of them is compared.
    more = dataclasses.replace(START, images=MORE, steps_per_epoch=5)
    with pytest.raises(WorkdirError, match="3 steps an epoch then, 5 now"):
        plan_start(tmp_path, more)
    assert plan_start(tmp_path, dataclasses.replace(more, accept_changed_images=True)).steps_per_epoch == 3
    # And what its checkpoints tell.
    saved = dataclasses.replace(START, saved_images={"count": 23, "digest": "ab"})
    with pytest.raises(WorkdirError, match="23 images then, 24 now"):
        plan_start(tmp_path, saved)
    claim_workdir(tmp_path, START)
    assert plan_start(tmp_path, saved) == Plan(False, 6, 3, [])


def test_a_setting_that_older_runs_lack_has_its_default(begun):
    settings = recipe_to_dict(RECIPE)
    del settings["clustering"]["cost_scale"]
    (begun / "config.json").write_text(json.dumps(settings))
    claim_workdir(begun, START)
    assert read_recipe(begun / "config.json") == RECIPE


UNUSABLE = [
    "", "{", "[1]", '{"sead": 1}', '{"schedule": {"epochs": "many"}}', 100_000 * "[", f'{{"seed": "{5000 * "0"}"}}',
]  # fmt: skip


@pytest.mark.parametrize("content", UNUSABLE)
def test_a_config_that_is_none_of_a_run_is_refused_by_name(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WorkdirError, match="config.json is no configuration") as caught:
        claim_workdir(tmp_path, START)
    assert len(str(caught.value)) < 1000 and (tmp_path / "config.json").read_text() == content


def test_folders_that_cannot_be_used_are_refused(tmp_path, begun):
    (begun / "config.json").unlink()
    with pytest.raises(WorkdirError, match="no config.json"):
        plan_start(begun, START)
    (tmp_path / "file").write_text("")
    for use in (lock_workdir, lambda folder: claim_workdir(folder, START)):
        with pytest.raises(WorkdirError, match="--workdir=.*file/run cannot be used: .*file is a file, not a folder"):
            use(tmp_path / "file" / "run")


def test_a_start_that_fails_leaves_nothing_of_its_own(tmp_path):
    (tmp_path / "notes.txt").write_text("the user's")
    for workdir in (tmp_path / "runs" / "new", tmp_path):
        with pytest.raises(ValueError, match="wrong"), leaving_nothing(workdir):
            claim_workdir(workdir, START)
            (workdir / "checkpoints").mkdir()
            (workdir / "skipped.txt").write_text("a")
            raise ValueError("wrong")
        assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    # What the message names stays.
    with pytest.raises(ValueError, match="skipped"), leaving_nothing(tmp_path / "new"):
        claim_workdir(tmp_path / "new", START)
        (tmp_path / "new" / "skipped.txt").write_text("a")
        raise ValueError(f"see {tmp_path / 'new' / 'skipped.txt'}")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["skipped.txt"]


def test_nothing_is_removed_after_a_step_or_without_the_lock(tmp_path):
    with pytest.raises(ValueError, match="wrong"), leaving_nothing(tmp_path):
        claim_workdir(tmp_path, START)
        unlock_workdir(tmp_path)
        raise ValueError("wrong")
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    with pytest.raises(ValueError, match="wrong"), leaving_nothing(tmp_path):
        claim_workdir(tmp_path, START)
        make_progress(tmp_path)
        raise ValueError("wrong")
    assert (tmp_path / "checkpoints" / "6").is_dir() and len(starts(tmp_path)) == 1


def test_all_processes_need_the_same_configuration_images_and_disk(tmp_path, monkeypatch):
    others = []
    monkeypatch.setattr(workdir_module, "gather_texts", lambda text: [text, *(others or [text])])

    def tell(recipe, images):
        settings = {name: value for name, value in flatten(recipe_to_dict(recipe)).items() if name not in PATHS}
        others[:] = [json.dumps({"settings": settings, "images": images.brief})]

    tell(dataclasses.replace(RECIPE, seed=4), IMAGES)
    with pytest.raises(WorkdirError, match="^process 1 has another configuration: seed=4 there, 3 in process 0; give"):
        plan_start(tmp_path, START)
    tell(RECIPE, MORE)
    with pytest.raises(
        WorkdirError, match=r"^process 1 finds 40 images \(digest def\), process 0 finds 24 images \(dig"
    ):
        plan_start(tmp_path, START)
    others.clear()
    monkeypatch.setattr(workdir_module.jax, "process_index", lambda: 1)
    monkeypatch.setattr(workdir_module, "_SECONDS_TO_SHOW", 0.0)
    with pytest.raises(WorkdirError, match="--workdir must be on a shared disk"):
        claim_workdir(tmp_path, START)
