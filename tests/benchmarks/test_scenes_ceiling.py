import itertools

import numpy as np
import pytest

from benchmarks.scenes_ceiling import image_to_text, text_to_image

TRUE_CB = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 1], [1, 1, 1], [0, 1, 1]], dtype=bool)  # 6 captions, 3 pictures
OWN_C = np.array([0, 0, 1, 1, 2, 2])


def orders(picture: int):
    """All rankings of the true captions that a reader who prefers rare ones could draw."""
    count_C = TRUE_CB.sum(axis=1)
    rows = [row for row in range(6) if TRUE_CB[row, picture]]
    return [order for order in itertools.permutations(rows) if list(count_C[list(order)]) == sorted(count_C[list(order)])]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_ceiling_is_the_mean_over_all_rankings_that_luck_could_give(k):
    found = [np.mean([any(OWN_C[row] == picture for row in order[:k]) for order in orders(picture)]) for picture in range(3)]
    assert image_to_text(TRUE_CB, OWN_C, k) == pytest.approx(np.mean(found))
    ranks = [
        np.mean([order.index(OWN_C[row]) < k for order in itertools.permutations(np.flatnonzero(TRUE_CB[row]).tolist())])
        for row in range(6)
    ]
    assert text_to_image(TRUE_CB, k) == pytest.approx(np.mean(ranks))
