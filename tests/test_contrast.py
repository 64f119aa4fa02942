"""Columns are found in a frame, and their index is that of what one raw frame shows."""

import numpy as np
import pytest

from tdenoise.evaluation.columns import find_columns, plane_distance
from tdenoise.evaluation.ideal_observer import detection_index


def lattice(sign, contrast=0.3, dose=2.0):
    rows, columns = np.indices((96, 112))
    frame = np.ones(rows.shape)
    sites = [(r, c) for r in range(16, 96, 16) for c in range(16, 112, 16)]
    for row, column in sites:
        frame += sign * contrast * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 2.5**2))
    return dose * frame, sites


@pytest.mark.parametrize("sign", [1, -1])
def test_columns_are_found_where_they_are_bright_or_dark(sign):
    frame, sites = lattice(sign)
    found = find_columns(frame, 16.0)
    assert {tuple(map(int, site)) for site in found.sites} == set(sites)
    assert np.sign(found.contrasts).tolist() == [sign] * len(sites)
    assert np.median(np.abs(found.contrasts)) == pytest.approx(0.3, rel=0.1)


def test_index_is_that_of_the_column_against_its_background():
    frame, _ = lattice(1)
    near = np.hypot(*np.indices((96, 112)) - np.array([48, 48])[:, None, None]) <= 0.3 * 16
    expected = detection_index(np.full(near.sum(), 2.0), frame[near], 1.0)
    assert np.median(find_columns(frame, 16.0).indices) == pytest.approx(expected, rel=0.05)
    fourfold = find_columns(4 * frame, 16.0).indices
    assert np.median(fourfold) == pytest.approx(2 * expected, rel=0.05)


def test_empty_frames_have_no_columns():
    assert len(find_columns(np.ones((64, 64)), 16.0).indices) == 0
    assert len(find_columns(np.zeros((64, 64)), 16.0).indices) == 0
    assert len(find_columns(np.ones((5, 5)), 16.0).indices) == 0
    assert plane_distance(np.zeros((0, 2))) is None
