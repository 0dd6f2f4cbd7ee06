"""Filters of weights for RGB images become the first filters of a network for other channels."""

import numpy as np

from croc_jax.checkpoints.manifest import flatten_tree
from croc_jax.checkpoints.param_mapping import PATCHES, STEM, Params, nest

_RGB = 3


def spread_filters(params: Params, *, channels: int, rgb_channels: tuple[int, ...]) -> Params:
    """Returns a backbone for images of other channels; nothing but its first kernel is new.

    Args:
        params: parameters of a backbone for RGB images.
        channels: channels of the images that it is to take.
        rgb_channels: the channels that get the filters of red, green and blue, the sum of them where one is named
            twice, while all others start at zero. Empty for all channels alike: each gets the mean of the three
            filters times 3 / channels, so that a gray value in all of them gives what it gives as red, green and blue.
    """
    flat = flatten_tree(params)
    path = PATCHES if PATCHES in flat else STEM
    kernel = np.asarray(flat[path])
    # Of a transformer, values of all channels of a pixel lie side by side.
    filters = kernel.reshape(-1, _RGB, kernel.shape[-1])
    shape = (len(filters) * channels, -1) if path == PATCHES else (*kernel.shape[:2], channels, -1)
    # [3 c]: what of red, green and blue each channel gets. The mean of three, times 3 / c, is their sum divided by c.
    shares = np.eye(channels)[list(rgb_channels)] if rgb_channels else np.full((_RGB, channels), 1 / channels)
    spread = np.einsum("nrd,rc->ncd", filters, shares).astype(kernel.dtype)
    return nest({**flat, path: spread.reshape(shape)})
