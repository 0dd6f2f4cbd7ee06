"""Scores along a run: from flags to rows, and the same as those of launch/evaluate.py on the checkpoint."""

import dataclasses
import itertools
import json
import shutil
from types import SimpleNamespace

import jax
import pytest

from croc_jax.checkpoints import Checkpointer
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import FolderSource
from croc_jax.evaluation.interval import SECONDS
from croc_jax.evaluation.online import OnlineEvaluator
from croc_jax.training.loop import RunLength
from croc_jax.training.run_config import EvaluationConfig, MeshConfig
from croc_jax.training.sharding import make_mesh, state_shardings
from tests.launch.program import run_program
from tests.training.tiny import first_state, tiny_recipe

SETTINGS = {
    "linear": ("linear.image_size=(16, 16)", "linear.train_size=(4, 4)", "linear.epochs=2"),
    "knn": ("knn.image_size=16", "knn.resize=16", "knn.neighbors=(3,)"),
}


@pytest.fixture
def evaluations(monkeypatch):
    monkeypatch.syspath_prepend("launch")
    import evaluations

    return evaluations


# The same of one protocol, in less time, is in tests/evaluation/test_online.py.
@pytest.mark.slow
def test_scores_along_a_run_are_those_of_its_checkpoint(evaluations, data, tmp_path):
    # Two classes of the same images.
    for split, kind in itertools.product(("train", "val"), ("one", "other")):
        (tmp_path / "classes" / split / kind).mkdir(parents=True)
        for index in range(4):
            to = tmp_path / "classes" / split / kind / f"{index}.png"
            shutil.copy(data / "images" / split / f"{2 * index % 8 if split == 'train' else index}.png", to)
    roots = {"linear": data, "knn": tmp_path / "classes"}
    recipe = tiny_recipe(
        evaluation=EvaluationConfig(
            protocols=("configs/eval/linear.py", f"configs/eval/knn.py@{roots['knn']}"),
            root=str(data),
            overrides=(*SETTINGS["linear"], *SETTINGS["knn"]),
            unlabeled=False,
            every_epochs=2,
            best="linear_miou",
        )
    )
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=8))
    start = first_state(recipe)
    state = jax.device_put(start, state_shardings(start, mesh))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.teacher["backbone"]))
    source = FolderSource(data / "images" / "train")
    dataset = make_dataset(source, views=recipe.data.views, batch_size=8, seed=0)
    evaluator = evaluations.open_evaluator(recipe, dataset)
    saver, lines = Checkpointer(tmp_path, recipe), []
    hooks = evaluations.RunEvaluation(
        recipe, evaluator, RunLength(10, 2, 8), saver, compile_seconds=1.0, log=lines.append
    )
    assert [step for step in range(2, 11, 2) if hooks.is_due(step)] == [4, 8, 10]
    row = hooks.evaluate(4, state)
    assert saver.should_save(4)
    saver.save(4, state, wait=True)
    saver.close()
    assert list(row) == [SECONDS, "linear_miou", "knn_top1", "knn_top5"]
    assert lines[0].startswith(f"evaluation of step 4: linear_miou {row['linear_miou']:.4g}, ")
    best = json.loads((tmp_path / "best.json").read_text())
    assert best == {"score": "linear_miou", "value": row["linear_miou"], "step": 4, "checkpoint": "checkpoints/4"}

    for name, settings in SETTINGS.items():
        output, own = tmp_path / name, [f"--config.{text}" for text in (f"dataset.root={roots[name]}", *settings)]
        given = [f"--config=configs/eval/{name}.py", f"--checkpoint={tmp_path / best['checkpoint']}"]
        run_program("evaluate", *given, f"--output={output}", *own)
        results = json.loads((output / "results.json").read_text())
        scores = {key.removeprefix(f"{name}_"): value for key, value in row.items() if key.startswith(name)}
        assert scores and scores == {key: results[key] for key in scores} and results["step"] == 4


def test_a_lack_of_memory_costs_scores_and_no_run(evaluations):
    def fail(params):
        raise jax.errors.JaxRuntimeError(errors.pop())

    errors, lines = ["INTERNAL: broken", "RESOURCE_EXHAUSTED: Out of memory"], []
    evaluator, saver = OnlineEvaluator(fail, ()), SimpleNamespace(note_scores=lambda step, scores: None)
    hooks = evaluations.RunEvaluation(
        tiny_recipe(), evaluator, RunLength(10, 2, 8), saver, compile_seconds=1.0, log=lines.append
    )
    state = SimpleNamespace(teacher={"backbone": {}})
    assert list(hooks.evaluate(2, state)) == [SECONDS]
    assert lines[0].startswith("warning: evaluation of step 2: out of memory, so no scores; --config.evaluation.")
    assert lines[1].startswith("evaluation of step 2: no scores; took ")
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        hooks.evaluate(4, state)


def test_pictures_that_cannot_be_written_cost_no_run_and_parts_come_in_turn(evaluations, tmp_path):
    def record(params, *, step, epoch):
        recorded.append((step, epoch))
        raise OSError(28, "No space left on device")

    recorded, lines, dataset = [], [], SimpleNamespace(source=None)
    recipe = tiny_recipe(evaluation=EvaluationConfig(pictures_every_epochs=2))
    pictures = evaluations.RunPictures(recipe, dataset, RunLength(10, 2, 8), tmp_path, log=lines.append)
    pictures._recorder = SimpleNamespace(prepare=lambda params: None, record=record)
    scores = SimpleNamespace(is_due=lambda step: step == 8, evaluate=lambda step, state: {SECONDS: 1.0, "x": 2.0})
    in_turn, state = evaluations.InTurn(scores, pictures), SimpleNamespace(teacher={"backbone": {}})
    assert [step for step in range(0, 11, 2) if in_turn.is_due(step)] == [0, 4, 8, 10]
    assert in_turn.is_due(8) and in_turn.evaluate(8, state) == {SECONDS: 1.0, "x": 2.0}
    assert in_turn.is_due(10) and in_turn.evaluate(10, state) == {}
    assert recorded == [(8, 4.0), (10, 5.0)]
    assert lines[0] == "warning: no pictures of step 8: [Errno 28] No space left on device"


def test_the_short_form_fills_the_settings(evaluations):
    short = {"knn.neighbors": (5, 1), "dataset.root": "x"}
    config = evaluations.with_protocol(EvaluationConfig(), "configs/eval/knn.py", short, every_epochs=3)
    assert config == EvaluationConfig(
        protocols=("configs/eval/knn.py",), overrides=("knn.neighbors=(5, 1)", "dataset.root=x"), every_epochs=3
    )
    (knn,) = evaluations.read_protocols(config).values()
    assert knn["knn"]["neighbors"] == (5, 1) and knn["dataset"]["root"] == "x"
    given = dataclasses.replace(config, every_epochs=7, protocols=())
    assert evaluations.with_protocol(given, "knn.py", {}, every_epochs=3).every_epochs == 7


def test_each_protocol_may_have_its_own_data(evaluations):
    config = EvaluationConfig(protocols=("configs/eval/linear.py:demo@voc:A", "configs/eval/knn.py"), root="B")
    found = evaluations.read_protocols(config)
    assert {name: one["dataset"]["root"] for name, one in found.items()} == {"linear-demo": "voc:A", "knn": "B"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocols": ("nope.py",), "root": "x"}, "--config.evaluation.protocols=nope.py: there is no such file"),
        ({"protocols": ("configs/eval/knn.py",)}, "--config.evaluation.root is empty: name the labeled data of knn"),
        ({"root": "x"}, "--config.evaluation.protocols is empty: name a file"),
        (
            {"protocols": ("configs/eval/knn.py",), "root": "x", "overrides": ("knn.neighbor=3",)},
            "unknown field neighbor in --config.evaluation.overrides=knn.neighbor=3; did you mean neighbors?",
        ),
        ({"protocols": ("configs/eval/knn.py",), "root": "nowhere"}, "evaluation of knn: no folder nowhere/train"),
        ({"protocols": ("configs/eval/knn.py",), "root": "{}", "overrides": ("which=student",)}, "which='student'"),
        ({"best": "knn_top1"}, "evaluation.best='knn_top1': choose one of unlabeled_retrieval, "),
        ({"best": "knn_top1", "unlabeled": False}, "evaluation.best='knn_top1': .* nothing is evaluated"),
    ],
)
def test_mistakes_end_a_run_before_its_first_step(evaluations, data, settings, words):
    recipe = tiny_recipe(evaluation=EvaluationConfig(**settings | {"root": settings.get("root", "").format(data)}))
    dataset = make_dataset(FolderSource(data / "images"), views=recipe.data.views, batch_size=4, seed=0)
    with pytest.raises(ValueError, match=words):
        evaluations.open_evaluator(recipe, dataset)
