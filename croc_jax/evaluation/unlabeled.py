"""Scores without labels, of the features of two crops of a few training images."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real
from scipy.linalg import svdvals

from croc_jax.data.config import DataConfig
from croc_jax.data.photometric import normalize
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources.base import ImageSource
from croc_jax.evaluation.features import Params, check_finite
from croc_jax.evaluation.kmeans import fit_kmeans
from croc_jax.models import Backbone
from croc_jax.unit import unit

SCORE_LABELS = {
    "unlabeled_retrieval": "retrieval of the other crop",
    "unlabeled_compactness": "k-means compactness",
    "unlabeled_rank": "effective rank",
}
NUM_IMAGES, NUM_TOKENS, NUM_CLUSTERS = 256, 16, 32
# Crops stay in host memory for the whole run.
_MAX_BYTES = 2**28
_BATCH, _THREADS, _SEED = 32, 4, 0
# Less variance than this is rounding.
_NOTHING = 1e-9

Views = Real[np.ndarray, "b v H W c"]


def load_crops(source: ImageSource, data: DataConfig) -> Views:
    """Returns two crops of some images, drawn with a seed of their own: the same at every call.

    Args:
        source: the training images.
        data: format of their pixels, and size and distribution of the crops.

    Raises:
        OSError: for a fault of the machine.
        UnreadableImagesError: if many are unreadable, one after another.
    """
    crops = make_dataset(source, views=data.views, pixels=data.pixels, batch_size=1, seed=_SEED)
    count = min(NUM_IMAGES, len(source), max(2, _MAX_BYTES // crops.batch_bytes))
    with ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate(list(pool.map(lambda index: crops.batches[index]["views"], range(count))))


def make_unlabeled_scores(backbone: Backbone) -> Callable[[Params, Views], dict[str, float]]:
    """Returns a function of the parameters of a backbone, and of crops, to the scores of `SCORE_LABELS`.

    The compiled function encodes batches of one size, and is compiled at the first call.
    """

    @jax.jit
    def encode(params: Params, images: Array) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
        pixels = normalize(images, backbone.image_mean, backbone.image_std, backbone.pixels)
        features = backbone.apply({"params": params}, pixels)
        # As many tokens of each crop as tell, at places spread over it.
        count = features.patches.shape[1]
        places = np.unique(np.linspace(0, count - 1, min(NUM_TOKENS, count)).round().astype(int))
        tokens = features.cls, features.patches[:, places]
        return tuple(one.astype(jnp.float32) for one in tokens)

    def score(params: Params, views: Views) -> dict[str, float]:
        images = views.reshape(-1, *views.shape[2:])
        size = min(_BATCH, len(images))
        padded = np.concatenate([images, np.zeros((-len(images) % size, *images.shape[1:]), images.dtype)])
        parts = [jax.device_get(encode(params, part)) for part in np.split(padded, len(padded) // size)]
        cls, patches = (np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True))
        for tokens in (cls, patches):
            check_finite(jnp.asarray(tokens), "training images")
        found = retrieve_views(cls.reshape(len(views), 2, -1)), compactness(patches), effective_rank(cls)
        return dict(zip(SCORE_LABELS, found, strict=True))

    return score


def retrieve_views(tokens: Float[np.ndarray, "b v d"]) -> float:
    """Returns how often, in percent, the most similar crop among the other crops of all images is of the same image.

    Similarity is the cosine; of equal ones the first image counts, so that features that are all the same score as
    a guess does.

    Args:
        tokens: one vector for each of two crops of an image.
    """
    first, second = np.moveaxis(np.asarray(unit(jnp.asarray(tokens))), 1, 0)
    similarities, own = first @ second.T, np.arange(len(tokens))
    hits = [np.mean(np.argmax(table, axis=1) == own) for table in (similarities, similarities.T)]
    return 100 * float(np.mean(hits))


def compactness(tokens: Float[np.ndarray, "b n d"]) -> float:
    """Returns the share of the variance of tokens, in percent, that lies between the clusters of k-means.

    Tokens are scaled to unit length first. Clusters without variance inside them score 100; tokens without
    variance, 0.

    Args:
        tokens: tokens of some crops.
    """
    flat = np.asarray(unit(jnp.asarray(tokens.reshape(-1, tokens.shape[-1]))))
    total = float(np.sum((flat - flat.mean(axis=0, dtype=np.float64)) ** 2))
    if total <= _NOTHING * len(flat):
        return 0.0
    fit = fit_kmeans(flat, max(1, min(NUM_CLUSTERS, len(flat) // 4)), seed=_SEED)
    return 100 * max(0.0, 1 - fit.inertia / total)


def effective_rank(tokens: Float[np.ndarray, "n d"]) -> float:
    """Returns the exponential of the entropy of the singular values, divided by their sum: from 1 to min(n, d).

    It is RankMe of Garrido et al. (ICML 2023), which follows the accuracy of linear probes without labels.

    Args:
        tokens: one vector an image.
    """
    values = np.asarray(svdvals(tokens.astype(np.float64)))
    shares = values[values > _NOTHING * values.max(initial=0.0)] / max(values.sum(), np.finfo(float).tiny)
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0
