"""Training on images of other formats, from file to features: it learns, on any devices, from where it stopped."""

import jax
import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from croc_jax.checkpoints import Checkpointer
from croc_jax.clustering import ClusteringConfig
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.data.normalization import normalize
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources.registry import open_data
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig, HeadConfig
from croc_jax.training.config import OptimizerConfig, Recipe, ScheduleConfig
from croc_jax.training.forward import make_networks
from croc_jax.training.sharding import make_mesh, shard_batch
from croc_jax.training.state import abstract_state, fresh_state
from croc_jax.training.step import make_train_step
from tests.data.channel_sets import SETS, draw_set, write_set

# They compile two steps for each format.
pytestmark = pytest.mark.slow
EPOCHS, IMAGES = 3, 256


def make_recipe(of, sources):
    pixels = of.pixels
    data = DataConfig(
        sources=sources, channels=pixels.channels, dtype=pixels.dtype, range=pixels.range, photometric=of.photometric,
        views=ViewsConfig(crop_size=24, scale=(0.4, 1.0)),
    )  # fmt: skip
    backbone = BackboneConfig(
        variant="vit_tiny", width=48, depth=2, num_heads=3, patch_size=8, drop_path_rate=0.0, dtype="float32",
        image_mean=(0.5,) * pixels.channels, image_std=(0.25,) * pixels.channels,
    )  # fmt: skip
    return Recipe(
        backbone=backbone,
        head=HeadConfig(hidden_dim=64, bottleneck_dim=32, num_prototypes=32, num_prototypes_dense=32),
        clustering=ClusteringConfig(k_start=4, k_max=4),
        objective=ObjectiveConfig(warmup_teacher_temp=0.03, teacher_temp=0.03, warmup_teacher_temp_epochs=0),
        optimizer=OptimizerConfig(base_lr=0.032, warmup_epochs=2, teacher_momentum=0.95, weight_decay_end=0.1),
        data=data,
        schedule=ScheduleConfig(epochs=EPOCHS, batch_size=16),
    )


class Run:
    """A run in this process, from a source of images to states and losses."""

    def __init__(self, recipe, num_devices=1):
        self.recipe, self.mesh = recipe, make_mesh(jax.devices()[:num_devices])
        self.dataset = make_dataset(
            open_data(recipe.data), views=recipe.data.views, pixels=recipe.data.pixels,
            batch_size=recipe.schedule.batch_size, seed=recipe.seed,
        )  # fmt: skip
        self.settings = {"steps_per_epoch": self.dataset.steps_per_epoch, "mesh": self.mesh}
        self.step = make_train_step(recipe, **self.settings)

    def start(self):
        return fresh_state(self.recipe, **self.settings)

    def train(self, state, steps):
        losses = []
        with self.dataset.iterate(int(state.step), num_workers=0, num_threads=1) as batches:
            for _ in range(steps):
                state, metrics = self.step(state, shard_batch(next(batches), self.mesh))
                losses.append(float(metrics["loss"]))
        return state, losses

    def separation(self, state, of):
        """The silhouette of the classes of other images in the teacher's [CLS] features."""
        images, labels = draw_set(of, 128, seed=1000, size=24)
        backbone = make_networks(self.recipe).backbone
        images = normalize(images, backbone.image_mean, backbone.image_std, of.pixels)
        features = jax.jit(backbone.apply)({"params": state.teacher["backbone"]}, images)
        return silhouette_score(np.asarray(features.cls), labels, metric="cosine")


@pytest.fixture(
    scope="module",
    params=[("13 bands of 16 bits", "arrayrecord"), ("4 channels of 8 bits", "tar"), ("gray float", "folder")],
    ids=lambda param: param[0],
)
def case(request, tmp_path_factory):
    """A set, a run on it, and its steps from start to end."""
    name, kind = request.param
    of, folder = SETS[name], tmp_path_factory.mktemp("set")
    sources = write_set(folder, of, draw_set(of, IMAGES)[0])
    run = Run(make_recipe(of, sources[kind]))
    first = run.separation(run.start(), of)
    state, losses = run.train(run.start(), EPOCHS * run.dataset.steps_per_epoch)
    return of, run, first, jax.device_get(state), losses


def test_the_loss_falls_and_classes_separate(case):
    of, run, first, state, losses = case
    epoch = run.dataset.steps_per_epoch
    assert np.mean(losses[-epoch:]) < 0.7 * np.mean(losses[:epoch])
    # Of at most 1, half of what random weights lack.
    assert 1 - run.separation(state, of) < 0.5 * (1 - first) and first < 0.9
    assert run.step._cache_size() == 1


def test_a_resumed_run_is_the_same_bit_for_bit(case, tmp_path):
    _, run, _, _, losses = case
    before, _ = run.train(run.start(), 5)
    checkpointer = Checkpointer(tmp_path, run.recipe)
    checkpointer.save(5, before, wait=True)
    whole, expected = run.train(before, 4)
    state = checkpointer.restore_latest(abstract_state(run.recipe, **run.settings))
    checkpointer.close()
    resumed, found = run.train(state, 4)
    assert found == expected == losses[5:9]
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_eight_devices_give_the_same_losses(case):
    _, run, _, _, losses = case
    many = Run(run.recipe, num_devices=8)
    _, found = many.train(many.start(), 5)
    np.testing.assert_allclose(found, losses[:5], rtol=1e-5)
