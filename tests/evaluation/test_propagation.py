"""Labels follow similar tokens, as a plain float64 loop says."""

import numpy as np
import pytest

from croc_jax.evaluation.propagation import LabelQueue, PropagationConfig, segment


def reference(tokens, sources, labels, config):
    """One frame after another, one token after another."""
    rows, columns, _ = tokens.shape
    result = np.zeros((rows, columns, labels[0].shape[-1]))
    for r in range(rows):
        for c in range(columns):
            found = []
            for frame, soft in zip(sources, labels, strict=True):
                for y in range(rows):
                    for x in range(columns):
                        if not config.neighborhood or max(abs(y - r), abs(x - c)) <= config.neighborhood:
                            cosine = tokens[r, c] @ frame[y, x]
                            cosine /= np.linalg.norm(tokens[r, c]) * np.linalg.norm(frame[y, x])
                            found.append((np.exp(cosine / config.temperature), soft[y, x]))
            found = sorted(found, key=lambda pair: -pair[0])[: config.topk]
            result[r, c] = sum(w * soft for w, soft in found) / sum(w for w, _ in found)
    return result


@pytest.mark.parametrize("neighborhood, last, topk", [(2, 2, 3), (0, 1, 5), (1, 0, 2), (9, 3, 70)])
def test_label_queue_equals_a_plain_loop(neighborhood, last, topk):
    rng = np.random.default_rng(neighborhood)
    config = PropagationConfig(num_last_frames=last, neighborhood=neighborhood, topk=topk, temperature=0.2)
    frames = rng.standard_normal((4, 4, 5, 6))
    soft = [np.eye(3)[rng.integers(0, 3, (4, 5))]]
    queue = LabelQueue(frames[0].astype(np.float32), soft[0].astype(np.float32), config)
    for number in range(1, 4):
        kept = [0, *range(max(1, number - last), number)]
        expected = reference(frames[number], frames[kept], [soft[i] for i in kept], config)
        soft.append(np.asarray(queue.label(frames[number].astype(np.float32))))
        np.testing.assert_allclose(soft[-1], expected, atol=2e-5)


def test_equal_similarities_share_a_place():
    labels = np.eye(4, dtype=np.float32).reshape(2, 2, 4)
    queue = LabelQueue(np.ones((2, 2, 3), np.float32), labels, PropagationConfig(topk=2))
    np.testing.assert_allclose(queue.label(np.ones((2, 2, 3), np.float32)), np.full((2, 2, 4), 0.25), rtol=1e-6)


def test_labels_are_stretched_before_they_compete():
    labels = np.zeros((1, 3, 3), np.float32)
    labels[0, :, 0], labels[0, :, 1] = (0.9, 0.8, 0.6), (0.1, 0.2, 0.4)
    # Stretched, the second label is 1 at the right end, where the first is 0; the third is nowhere.
    np.testing.assert_array_equal(segment(labels, patch_size=1), [[0, 0, 1]])
    assert segment(labels, patch_size=4).shape == (4, 12)
