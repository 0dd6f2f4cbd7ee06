"""The order of images and the random numbers of crops stay what they are, whatever version of grain draws them."""

import pytest

from croc_jax.data import pipeline
from croc_jax.data.config import ViewsConfig
from croc_jax.data.pipeline import make_dataset

# Images of the first three batches and of the first one of the second epoch, and numbers drawn for the first. Resumed
# in another order, a run would read some images twice and others never.
EXPECTED = {
    0: (
        [[233, 815, 962, 246], [407, 428, 821, 490], [945, 144, 370, 380], [83, 742, 850, 328]],
        [486668, 660942, 974536, 271511],
    ),
    7: (
        [[661, 759, 214, 871], [246, 525, 818, 474], [562, 496, 713, 124], [727, 657, 202, 539]],
        [694178, 970412, 812414, 974084],
    ),
}


@pytest.mark.parametrize("seed", EXPECTED)
def test_batches_of_a_seed_are_the_same_in_every_version(monkeypatch, seed):
    monkeypatch.setattr(
        pipeline,
        "_load_views",
        lambda index, generator, **_: {"index": int(index), "drawn": int(generator.integers(10**6))},
    )
    dataset = make_dataset(range(1000), views=ViewsConfig(), batch_size=4, seed=seed)
    batches = [dataset.batches[step] for step in (0, 1, 2, dataset.steps_per_epoch)]
    order, drawn = EXPECTED[seed]
    assert [batch["index"].tolist() for batch in batches] == order
    assert batches[0]["drawn"].tolist() == drawn
