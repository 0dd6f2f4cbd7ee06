"""Objects are the ids of the first mask; 255 is void, and masks that no score can come from are refused."""

import numpy as np
import pytest

from croc_jax.data.labeled.object_masks import find_objects, read_mask
from tests.data.tiny_sets import save

REFUSED = {
    "holds 0 and 255, and 255 is void, not an object: save objects as 1": [0, 255],
    "holds 0, 60, 190 and 255, and 255 is void": [0, 60, 255, 255, 255, 190],
    "holds only 255, and 255 is void": [255],
    "holds only 0, so no object: number objects from 1": [0],
    "holds 0, 1, 2, 3, 4, 5, 6 ... 149, 149 objects: these are gray values": range(150),
}


@pytest.mark.parametrize("message", REFUSED)
def test_masks_without_objects_are_refused(tmp_path, message):
    save(tmp_path / "0.png", np.resize(np.array(REFUSED[message]), (15, 10)))
    with pytest.raises(ValueError) as caught:
        find_objects(tmp_path / "0.png")
    assert str(caught.value).startswith(f"{tmp_path / '0.png'} {message}")


@pytest.mark.parametrize("ids", [[1], [1, 3], [38, 75, 113], [1, 2, 254]])
def test_objects_are_the_ids_whatever_their_numbers(tmp_path, ids):
    held = np.resize(np.array([0, *ids, 255, 255]), (15, 10))
    save(tmp_path / "0.png", held, palette=len(ids) == 3)
    assert find_objects(tmp_path / "0.png") == ids
    np.testing.assert_array_equal(read_mask(tmp_path / "0.png"), np.where(held == 255, 0, held))
