"""Rows survive what a kill or a crash of the host leaves of their files, up to the last whole batch."""

import numpy as np
import pytest

from croc_jax.evaluation import row_log
from croc_jax.evaluation.row_log import RowLog, RowSpec, Skipped

SPECS = {"index": RowSpec(np.int64), "cls": RowSpec(np.float32, (3,))}
INDEX = np.arange(7)
CLS = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
# Items done, rows, and items without a row, after each batch.
ENDS, SKIPPED = (3, 5, 8), ([], [Skipped("b", "cut")], [])
ROWS = (3, 4, 7)


def open_log(folder):
    return RowLog(folder, folder / "journal.jsonl", SPECS)


def append(log, batch):
    part = slice(([0, *ROWS])[batch], ROWS[batch])
    log.append({"index": INDEX[part], "cls": CLS[part]}, num_done=ENDS[batch], skipped=SKIPPED[batch])


def read(folder):
    """Returns items done, and rows, after another start."""
    with open_log(folder) as log:
        arrays = log.arrays()
        np.testing.assert_array_equal(arrays["index"], INDEX[: log.num_rows])
        np.testing.assert_array_equal(arrays["cls"], CLS[: log.num_rows])
        known = [one for end, found in zip(ENDS, SKIPPED, strict=True) for one in found if end <= log.num_done]
        assert log.skipped == known
        return log.num_done, log.num_rows


def cut(file, size):
    file.write_bytes(file.read_bytes()[:size])


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


# What is left of three batches, of which the disk surely held so many; and how many are there after another start.
DAMAGES = {
    "nothing": (lambda folder: None, 0, 3),
    "a torn line": (lambda folder: cut(folder / "journal.jsonl", -3), 0, 2),
    "lines of zeros": (lambda folder: (folder / "journal.jsonl").write_bytes(b"\0" * 99), 0, 0),
    "an array that is short": (lambda folder: cut(folder / "cls.npy", -1), 3, 2),
    "an array that is gone": (lambda folder: (folder / "index.npy").unlink(), 3, 0),
    "rows of the last batch that the disk never got": (lambda folder: flip(folder / "cls.npy", -5), 0, 2),
    "rows of the second": (lambda folder: flip(folder / "index.npy", 128 + 8 * 3), 1, 1),
    "rows of no batch": (lambda folder: (folder / "cls.npy").open("ab").write(b"x" * 40), 0, 3),
}


@pytest.mark.parametrize(("damage", "num_synced", "left"), DAMAGES.values(), ids=DAMAGES)
def test_whole_batches_are_left(tmp_path, monkeypatch, damage, num_synced, left):
    with open_log(tmp_path) as log:
        for batch in range(3):
            monkeypatch.setattr(row_log, "SECONDS_BETWEEN_SYNCS", 0.0 if batch < num_synced else 1e9)
            append(log, batch)
    damage(tmp_path)
    assert read(tmp_path) == ((0, 0) if left == 0 else (ENDS[left - 1], ROWS[left - 1]))
    with open_log(tmp_path) as log:
        for batch in range(left, 3):
            append(log, batch)
        log.seal()
    np.testing.assert_array_equal(np.load(tmp_path / "cls.npy", mmap_mode="r"), CLS)
    assert np.load(tmp_path / "index.npy").tolist() == INDEX.tolist()
    assert read(tmp_path) == (8, 7), "also after an end in between"


def test_there_are_no_rows_before_the_end(tmp_path):
    with open_log(tmp_path) as log:
        append(log, 0)
        assert np.load(tmp_path / "cls.npy").shape == (0, 3)


def test_rows_of_another_shape_are_refused(tmp_path):
    with open_log(tmp_path) as log:
        for count, width, words in ((2, 4, r"cls \(2, 4\): expected 2 rows of \(3,\)"), (3, 3, "expected 2 rows")):
            with pytest.raises(ValueError, match=words):
                log.append({"index": INDEX[:2], "cls": np.zeros((count, width))}, num_done=2)
        append(log, 0)
    assert read(tmp_path) == (3, 3)
