"""A small training step, compiled for four TPUs that are not there: what is in the program, and what is not."""

import math

import jax
import pytest
from programs.compiling import lower_step
from programs.program import read_program
from programs.targets import find_devices

from croc_jax.clustering import ClusteringConfig
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.models import BackboneConfig, HeadConfig
from croc_jax.training.config import Recipe, ScheduleConfig
from croc_jax.training.run_config import MeshConfig, RuntimeConfig
from croc_jax.training.sharding import FSDP_AXIS

pytest.importorskip("libtpu", reason="the compiler for TPUs; `make tpu` installs it")

DEPTH = 2
ROUNDS = 3
RECIPE = Recipe(
    backbone=BackboneConfig(variant="vit_tiny", width=128, depth=DEPTH, num_heads=2),
    head=HeadConfig(hidden_dim=128, bottleneck_dim=128, num_prototypes=512, num_prototypes_dense=256),
    # From 4 clusters down to 2.
    clustering=ClusteringConfig(k_start=ROUNDS + 1, k_max=ROUNDS + 1),
    data=DataConfig(views=ViewsConfig(crop_size=64)),
    schedule=ScheduleConfig(batch_size=16),
    runtime=RuntimeConfig(mesh=MeshConfig(fsdp=2)),
)


@pytest.fixture(scope="module")
def step():
    return lower_step(RECIPE, "v5e:2x2")


@pytest.fixture(scope="module")
def work(step):
    return read_program(step.lowered.compile().as_text())


@pytest.fixture
def sizes(step):
    """Bytes of the student's parameters in float32: those that devices split between them, and the others."""
    split = whole = 0
    for leaf in jax.tree.leaves(step.state.student):
        if FSDP_AXIS in leaf.sharding.spec:
            split += 4 * math.prod(leaf.shape)
        else:
            whole += 4 * math.prod(leaf.shape)
    return split, whole


def test_the_devices_are_those_of_the_name():
    assert [(device.platform, device.device_kind) for device in find_devices("v5e:2x2")] == [("tpu", "TPU v5 lite")] * 4


def test_nothing_in_the_program_is_double_or_waits_for_the_host(work):
    assert work.doubles == work.host == 0
    # One finds the clusters that both views show.
    assert work.sorts == 1


def test_the_state_is_updated_in_place(step, work):
    assert work.aliased == len(jax.tree.leaves(step.state))


def test_loops_are_those_of_the_method(work):
    # Rounds of the clustering, Sinkhorn's iterations in each, and chunks of clusters, whose number images decide.
    assert ROUNDS in work.loops and ROUNDS * RECIPE.clustering.sinkhorn_iterations in work.loops
    assert work.assumed == 1


def test_gradients_are_summed_up_in_float32(work):
    summed, scattered = work.exchanges["all-reduce"], work.exchanges["reduce-scatter"]
    # Integers are counts of images and random numbers.
    assert {kind for kind in summed.sizes if kind.startswith(("f", "b"))} == {"f32"}
    assert set(scattered.sizes) == {"f32"}


def test_devices_sum_up_their_part_of_split_parameters(work, sizes):
    split, whole = sizes
    others = set(work.exchanges) - {"all-gather", "all-reduce", "reduce-scatter"}
    assert sum(sum(work.exchanges[kind].sizes.values()) for kind in others) < 0.01 * split
    # Nearly all: the compiler sums up small gradients whole.
    assert work.exchanges["reduce-scatter"].sizes["f32"] > 0.85 * split
    # Then both pairs of devices sum up their halves, and all what is whole everywhere: norms, biases, centers.
    assert whole < work.exchanges["all-reduce"].sizes["f32"] < 0.8 * split + whole


def test_parameters_are_fetched_for_each_pass(work, sizes):
    split, _ = sizes
    gathered = work.exchanges["all-gather"]
    # The teacher's and the student's, and the blocks' once more for the backward pass; most of them in bfloat16.
    assert set(gathered.sizes) <= {"bf16", "f32"}
    assert split <= sum(gathered.sizes.values()) <= 3 * split
    assert gathered.sizes["bf16"] > gathered.sizes["f32"]


def test_the_devices_talk_a_few_times_a_layer(work):
    counts = {kind: exchange.count for kind, exchange in work.exchanges.items()}
    # Four matrices a block in each of three passes, and those of both heads.
    assert counts["all-gather"] <= 12 * DEPTH + 20
    # The extremes of the cost in each round, a few sums a layer, and those of losses, centers and numbers to log.
    assert counts["all-reduce"] <= 2 * ROUNDS + 4 * DEPTH + 16
