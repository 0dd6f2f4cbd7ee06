"""The method with masked patches in float64 NumPy, differentiated by autograd.

It shares no code with the package but the clusters of tokens and the schedules, which official numbers cover.
"""

import autograd.numpy as np
import numpy
from autograd import value_and_grad
from autograd.scipy.special import erf


def unit(x):
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True))


def softmax(x):
    x = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return x / np.sum(x, axis=-1, keepdims=True)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def linear(params, x):
    return np.dot(x, params["kernel"]) + params["bias"]


def layer_norm(params, x):
    x = x - np.mean(x, axis=-1, keepdims=True)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def encode(params, images, *, patch_size, num_heads, masked=None, token=None):
    """Returns [CLS] and patches `[b v ...]`, and the values of the last block `[b v h n+1 dh]`."""
    batch, views, size, _, channels = images.shape
    side = size // patch_size
    patches = images.reshape(-1, side, patch_size, side, patch_size, channels)
    patches = patches.transpose((0, 1, 3, 2, 4, 5)).reshape(batch * views, side**2, -1)
    x = linear(params["patch_embedding"]["projection"], patches)
    if masked is not None:
        hidden = masked.reshape(batch * views, -1, 1)
        x = x * (1 - hidden) + hidden * token
    cls = np.tile(params["cls_token"], (len(x), 1, 1))
    x = np.concatenate([cls, x], axis=1) + params["position_embedding"]
    width = x.shape[-1]
    for index in range(sum(name.startswith("block_") for name in params)):
        block = params[f"block_{index}"]
        qkv = linear(block["attention"]["qkv"], layer_norm(block["norm_1"], x))
        qkv = qkv.reshape(*x.shape[:2], 3, num_heads, width // num_heads).transpose((2, 0, 3, 1, 4))
        scores = np.matmul(qkv[0], np.swapaxes(qkv[1], -1, -2)) / np.sqrt(width // num_heads)
        mixed = np.matmul(softmax(scores), qkv[2]).transpose((0, 2, 1, 3)).reshape(x.shape)
        x = x + linear(block["attention"]["projection"], mixed)
        x = x + linear(block["mlp_2"], gelu(linear(block["mlp_1"], layer_norm(block["norm_2"], x))))
    x, values = layer_norm(params["norm"], x), qkv[2]
    return (
        x[:, 0].reshape(batch, views, width),
        x[:, 1:].reshape(batch, views, -1, width),
        values.reshape(batch, views, *values.shape[1:]),
    )


def project(params, layer, x):
    x = gelu(linear(params["mlp_2"], gelu(linear(params["mlp_1"], x))))
    last = params[layer]
    return np.dot(unit(linear(params["mlp_3"], x)), np.transpose(last["scale"] * unit(last["direction"])))


def cross_entropy(student, answer):
    """Returns the cross-entropy of logits over their temperature with probabilities."""
    peak = np.max(student, axis=-1)
    log_sum = np.log(np.sum(np.exp(student - peak[..., None]), axis=-1)) + peak
    return log_sum - np.sum(answer * student, axis=-1)


def centroids(patches, cls, assignments):
    found = np.einsum("bvhnk,bvnd->bvhkd", assignments, patches)
    norms = np.sqrt(np.maximum(np.sum(found**2, axis=-1, keepdims=True), 1e-24))
    return found / norms * np.mean(np.sqrt(np.sum(cls**2, axis=-1)))


class Trainer:
    """Student, teacher, centers and moments of AdamW."""

    def __init__(self, params, *, weights, temps, momentum, network):
        wide = map_tree(lambda leaf: numpy.asarray(leaf, numpy.float64), params)
        self.student, self.teacher, self.network = wide, wide, network
        self.weights = weights
        self.temps, self.momentum, self.count = temps, momentum, 0
        self.first = self.second = map_tree(numpy.zeros_like, wide)
        layers = {"global": "last_layer", "dense": "last_layer_dense", "masked": "last_layer_masked"}
        self.centers = {name: numpy.zeros(len(wide["head"][layer]["direction"])) for name, layer in layers.items()}

    def step(self, images, masks, cluster, *, teacher_temp, lr, decay, ema, clip):
        """Trains one step on images `[b v H W c]`; `cluster` maps values to assignments; returns the losses."""
        cls, patches, values = encode(self.teacher["backbone"], images, **self.network)
        assignments = cluster(values)
        rows = centroids(patches, cls, assignments)
        shown = assignments * ~masks.masked[:, :, None, :, None]
        valid = (shown > 0).any(axis=3).all(axis=1)
        head = self.teacher["head"]
        layers = {"global": ("last_layer", cls), "dense": ("last_layer_dense", rows)}
        layers["masked"] = "last_layer_masked", patches
        logits = {name: project(head, *layer) for name, layer in layers.items()}
        answers = {name: softmax((logits[name] - self.centers[name]) / teacher_temp) for name in logits}
        both = numpy.broadcast_to(valid[:, None], rows.shape[:-1])

        def losses(params):
            options = {**self.network, "masked": masks.masked, "token": params["mask_token"]}
            cls, patches, _ = encode(params["backbone"], images, **options)
            inputs = cls, centroids(patches, cls, shown), patches
            names = "last_layer", "last_layer_dense", "last_layer_masked"
            logits = [project(params["head"], *layer) / self.temps for layer in zip(names, inputs, strict=True)]
            per_image = masks.masked.sum(axis=2, keepdims=True)
            shares = masks.masked / numpy.maximum(per_image, 1) / per_image.size
            return {
                "global": np.mean(cross_entropy(logits[0][:, ::-1], answers["global"])),
                "dense": np.sum(both * cross_entropy(logits[1][:, ::-1], answers["dense"])) / both.sum(),
                "masked": np.sum(shares * cross_entropy(logits[2], answers["masked"])),
            }

        def total(params):
            return sum(self.weights[name] * value for name, value in losses(params).items())

        values, (_, gradient) = losses(self.student), value_and_grad(total)(self.student)
        self._update(gradient, lr=lr, decay=decay, clip=clip)
        self.teacher = map_tree(lambda old, new: ema * old + (1 - ema) * new, self.teacher, self.student)
        seen = {"global": logits["global"], "dense": logits["dense"][both], "masked": logits["masked"][masks.masked]}
        for name, center in self.centers.items():
            mean = seen[name].reshape(-1, len(center)).mean(axis=0)
            self.centers[name] = self.momentum * center + (1 - self.momentum) * mean
        return {name: float(value) for name, value in values.items()}

    def _update(self, gradient, *, lr, decay, clip):
        """AdamW, with each tensor's gradient clipped; the scale of weight normalization stays at 1."""
        self.count += 1
        gradient = map_tree(lambda g: g * min(1.0, clip / (numpy.sqrt(numpy.sum(g**2)) + 1e-6)), gradient)
        self.first = map_tree(lambda m, g: 0.9 * m + 0.1 * g, self.first, gradient)
        self.second = map_tree(lambda v, g: 0.999 * v + 0.001 * g**2, self.second, gradient)
        one, two = 1 - 0.9**self.count, 1 - 0.999**self.count

        def move(param, first, second):
            update = first / one / (numpy.sqrt(second / two) + 1e-8)
            return param - lr * (update + (decay * param if param.ndim >= 2 else 0))

        moved = map_tree(move, self.student, self.first, self.second)
        for name, layer in moved["head"].items():
            if name.startswith("last_layer"):
                layer["scale"] = self.student["head"][name]["scale"]
        self.student = moved


def map_tree(function, tree, *others):
    if isinstance(tree, dict):
        return {name: map_tree(function, tree[name], *(other[name] for other in others)) for name in tree}
    return function(tree, *others)
