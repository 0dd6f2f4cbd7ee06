"""Images of other formats, from any source: the same batches, of the values that are stored."""

import numpy as np
import pytest

from croc_jax.data.config import ViewsConfig
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import open_sources
from tests.data.channel_sets import SETS, draw_set, write_set

SIZE = 12
# The whole image at its own size.
WHOLE = ViewsConfig(crop_size=SIZE, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_probability=0.0)


@pytest.mark.parametrize("name", SETS)
def test_sources_give_the_same_batches_of_stored_values(tmp_path, name):
    of = SETS[name]
    images, _ = draw_set(of, 8, size=SIZE)
    assert images.dtype == of.pixels.dtype and len(np.unique(images)) > 100
    for kind, sources in write_set(tmp_path, of, images).items():
        dataset = make_dataset(open_sources(sources), views=WHOLE, pixels=of.pixels, batch_size=4, seed=3)
        assert dataset.batch_bytes == 4 * 2 * images[0].nbytes
        with dataset.iterate(num_workers=0, num_threads=0) as batches:
            views = np.concatenate([next(batches)["views"] for _ in range(2)])
        assert views.dtype == images.dtype, kind
        if kind == "folder":
            first = views
            # Each image once, as it is stored.
            order = [
                int(np.argmin([np.abs(one - image.astype(float)).sum() for image in images])) for one in views[:, 0]
            ]
            assert sorted(order) == list(range(8))
            np.testing.assert_array_equal(views, images[order][:, None].repeat(2, 1))
        np.testing.assert_array_equal(views, first)
