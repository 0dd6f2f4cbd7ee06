"""A vision transformer in float64 NumPy, on weights under official names: what others are measured against."""

import numpy as np
from scipy.special import erf, softmax


def forward(weights, images, *, num_heads):
    """Returns [CLS] [b d] and patch tokens [b n d] of normalized images [b H W c]."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    batch, height, width, _ = images.shape
    kernel = weights["patch_embed.proj.weight"]
    channels, side = kernel.shape[1:3]
    patches = images.astype(np.float64).reshape(batch, height // side, side, width // side, side, channels)
    tokens = np.einsum("brpcqk,dkpq->brcd", patches, kernel) + weights["patch_embed.proj.bias"]
    tokens = tokens.reshape(batch, -1, tokens.shape[-1])
    cls_token = np.broadcast_to(weights["cls_token"], (batch, 1, tokens.shape[-1]))
    tokens = np.concatenate([cls_token, tokens], axis=1) + weights["pos_embed"]
    block = 0
    while f"blocks.{block}.norm1.weight" in weights:
        part = {name.split(".", 2)[2]: a for name, a in weights.items() if name.startswith(f"blocks.{block}.")}
        tokens = tokens + _attention(_norm(tokens, part, "norm1"), part, num_heads)
        hidden = _linear(_norm(tokens, part, "norm2"), part, "mlp.fc1")
        tokens = tokens + _linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, part, "mlp.fc2")
        block += 1
    tokens = _norm(tokens, weights, "norm")
    return tokens[:, 0], tokens[:, 1:]


def _linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(x, weights, name):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _attention(x, weights, num_heads):
    batch, count, width = x.shape
    qkv = _linear(x, weights, "attn.qkv").reshape(batch, count, 3, num_heads, width // num_heads)
    query, key, value = np.moveaxis(qkv, 2, 0)
    scores = np.einsum("bihd,bjhd->bhij", query, key) / np.sqrt(width // num_heads)
    mixed = np.einsum("bhij,bjhd->bihd", softmax(scores, axis=-1), value)
    return _linear(mixed.reshape(batch, count, width), weights, "attn.proj")
