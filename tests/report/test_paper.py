"""The paper's tables agree with what the paper says about them."""

import numpy as np
import pytest

from croc_jax.report.paper import TABLES

# As printed.
AVERAGES = {
    1: (43.0, 46.8, 48.8, 55.3, 51.7, 53.1, 52.6, 55.3, 35.5, 56.3, 53.3, 58.3, 63.1),
    3: (10.6, 9.5, 12.5, 18.0, 16.8, 16.5, 12.4, 13.7, 8.1, 12.0, 17.8, 19.9, 5.3),
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"table{table.number}")
def test_every_row_has_a_score_a_column(table):
    assert len(table.protocols) == len(table.datasets)
    assert all(len(row.scores) == len(table.datasets) for row in table.rows)
    assert [table.number for table in TABLES] == [1, 2, 3, 4, 5, 6]
    if table.number in AVERAGES:
        means = [np.mean(row.scores) for row in table.rows]
        np.testing.assert_allclose(means, AVERAGES[table.number], atol=0.07)


def test_the_common_setting_of_the_ablations_has_one_result():
    rows = [
        next(row for row in table.rows if row.label == label)
        for table, label in zip(TABLES[3:], ("3", "12", "keys"), strict=True)
    ]
    assert rows[0].scores == rows[1].scores == rows[2].scores
