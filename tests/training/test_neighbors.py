"""The queue of centroids and the loss of nearest neighbors, against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.losses import NeighborsConfig, ObjectiveConfig
from croc_jax.models import HeadConfig, make_head
from croc_jax.training import neighbors as neighbors_module
from croc_jax.training.dense_loss import TeacherTargets
from croc_jax.training.neighbor_loss import neighbor_distillation
from croc_jax.training.neighbors import Neighbors, check_queue, find_neighbors, init_queue
from croc_jax.training.run_config import MeshConfig
from croc_jax.training.sharding import make_mesh

BATCH, HEADS, CLUSTERS, WIDTH = 8, 2, 3, 6
# A batch has 48 clusters, of which about 29 are valid: the third one overwrites what the first has left.
QUEUE = 64


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def rounded(rows):
    return np.asarray(jnp.asarray(rows, jnp.bfloat16).astype(jnp.float32), np.float64)


class Reference:
    """The queue as a list, newest last."""

    def __init__(self, length):
        self.slots, self.length = [], length

    def step(self, centroids, valid):
        """Returns each valid cluster's neighbors [n v d] and whether they pass [n v]; then takes the clusters."""
        rows = rounded(np.moveaxis(centroids, 1, 3)[valid])
        neighbors, passes = np.zeros(rows.shape), np.zeros(rows.shape[:2], bool)
        if self.slots:
            queue = np.stack(self.slots)
            for view in (0, 1):
                nearest = np.argmax(unit(rows[:, view]) @ unit(queue[:, view]).T, axis=1)
                neighbors[:, view] = queue[nearest, view]
                back = np.argmax(unit(queue[nearest, 1 - view]) @ unit(rows[:, 1 - view]).T, axis=1)
                passes[:, view] = back == np.arange(len(rows))
        self.slots = [*self.slots, *rows][-self.length :]
        return neighbors, passes


def draw(seed):
    """Returns centroids around a few directions, similar in both views, and which are valid."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(0).normal(size=(40, WIDTH))[rng.integers(0, 40, (BATCH, HEADS, CLUSTERS))]
    centroids = kinds[:, None] + 0.4 * rng.normal(size=(BATCH, 2, HEADS, CLUSTERS, WIDTH))
    return (3 * centroids).astype(np.float32), rng.random((BATCH, HEADS, CLUSTERS)) < 0.6


# 63 slots do not divide over 8 devices, each of which then holds them all.
@pytest.mark.parametrize(("devices", "length"), [(1, QUEUE), (8, QUEUE), (8, QUEUE - 1)])
def test_neighbors_are_those_of_a_list(devices, length, monkeypatch):
    # On one device, seven queries at a time.
    monkeypatch.setattr(neighbors_module, "_COSINES", 2 * QUEUE * 7)
    mesh = make_mesh(jax.devices()[:devices], MeshConfig(fsdp=2 if devices > 1 else 1))
    search = jax.jit(lambda *args: find_neighbors(*args, dtype=jnp.float32, mesh=mesh))
    queue, reference = init_queue(NeighborsConfig(queue=length), WIDTH), Reference(length)
    for seed in range(5):
        centroids, valid = draw(seed)
        found, queue = search(queue, centroids, valid)
        neighbors, passes = reference.step(centroids, valid)
        np.testing.assert_array_equal(np.moveaxis(found.passes, 1, 3)[valid], passes)
        assert not np.moveaxis(found.passes, 1, 3)[~valid].any()
        if seed:
            assert 0.1 < passes.mean() < 0.9
            np.testing.assert_array_equal(np.moveaxis(found.centroids, 1, 3)[valid], neighbors)
    assert int(queue.count) == queue.centroids.shape[1] == reference.length
    held = np.moveaxis(np.asarray(queue.centroids, np.float64), 0, 1)
    np.testing.assert_array_equal(np.roll(held, -int(queue.end), axis=0), reference.slots)


HEAD = make_head(
    HeadConfig(hidden_dim=8, bottleneck_dim=4, num_prototypes=9, num_prototypes_dense=7), dtype=jnp.float32
)
TEMPS = {"teacher_temp": 4.0, "student_temp": 6.0}


def project(params, rows):
    """The head in float64."""
    erf = np.vectorize(math.erf)
    for name in ("mlp_1", "mlp_2", "mlp_3"):
        rows = rows @ params[name]["kernel"] + params[name]["bias"]
        rows = rows if name == "mlp_3" else rows * (0.5 + 0.5 * erf(rows / np.sqrt(2)))
    last = params["last_layer_dense"]
    return unit(rows) @ (last["scale"] * unit(last["direction"])).T


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def reference_loss(params, student, teacher_params, teacher, valid, center, neighbors, passes):
    """Returns the dense loss and that of neighbors."""
    logs = np.log(softmax(project(params, student) / TEMPS["student_temp"]))
    answer = lambda rows: softmax((project(teacher_params, rows) - center) / TEMPS["teacher_temp"])  # noqa: E731
    crossed = lambda rows: -np.sum(answer(rows) * logs[:, ::-1], axis=-1)  # noqa: E731
    both = np.broadcast_to(valid[:, None], passes.shape)
    return crossed(teacher)[both].mean(), crossed(neighbors)[passes].sum() / passes[:, 0].sum() / 2


def test_the_loss_and_its_gradients_with_the_count_of_the_first_direction():
    keys = jax.random.split(jax.random.key(1), 8)
    # Weights of the size that training gives them: from smaller ones, the loss is too steep for slopes.
    params, teacher_params = (
        jax.tree.map(lambda leaf: 20 * leaf, HEAD.init(key, jnp.zeros((1, WIDTH)))["params"]) for key in keys[:2]
    )
    shape = BATCH, 2, HEADS, CLUSTERS, WIDTH
    student, teacher, neighbors = (jax.random.normal(key, shape) for key in keys[2:5])
    valid = jax.random.uniform(keys[5], (BATCH, HEADS, CLUSTERS)) < 0.5
    passes = (jax.random.uniform(keys[6], shape[:-1]) < 0.4) & valid[:, None]
    center = jax.random.normal(keys[7], (7,))
    targets = TeacherTargets(teacher_params, center, **TEMPS)

    def run(params, student):
        options = {"ratio": 0.5, "shared_count": True, "num_microbatches": 2}
        sums = neighbor_distillation(
            HEAD, params, student, teacher, valid, targets, Neighbors(neighbors, passes), **options
        )
        return sums.loss, sums

    gradients, sums = jax.jit(jax.grad(run, (0, 1), has_aux=True))(params, student)
    wide = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)  # noqa: E731
    fixed = (wide(teacher_params), wide(teacher), *map(np.asarray, (valid, center, neighbors, passes)))
    dense, neighbor = reference_loss(wide(params), wide(student), *fixed)
    found, expected = [sums.dense.loss, sums.neighbors, sums.loss], [dense, neighbor, dense + 0.5 * neighbor]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(sums.share, passes.sum() / valid.sum() / 2, rtol=1e-6)

    # Slopes in random directions.
    rng, start = np.random.default_rng(0), (wide(params), wide(student))
    for _ in range(3):
        toward = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), start)
        toward[0]["last_layer"] = jax.tree.map(np.zeros_like, toward[0]["last_layer"])
        ends = []
        for step in (1e-5, -1e-5):
            moved = jax.tree.map(lambda leaf, delta, step=step: leaf + step * delta, start, toward)
            dense, neighbor = reference_loss(*moved, *fixed)
            ends.append(dense + 0.5 * neighbor)
        slope = sum(np.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (gradients, toward)), strict=True))
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-4)


def test_impossible_queues_are_named():
    with pytest.raises(ValueError, match="weight=-1.0: must be 0 or more"):
        NeighborsConfig(weight=-1.0)
    with pytest.raises(ValueError, match="neighbors.weight=1.0 with alpha=0"):
        ObjectiveConfig(alpha=0.0, neighbors=NeighborsConfig(weight=1.0))
    with pytest.raises(ValueError, match=r"neighbors\.queue=63: a batch can have 64 clusters"):
        check_queue(NeighborsConfig(queue=63), batch_clusters=64)
    check_queue(NeighborsConfig(queue=64), batch_clusters=64)
