"""Atomic columns: found where they are, as strong as they are, and said to change as often as they do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdenoise.columns.finding import Columns, ColumnSearch
from tdenoise.columns.states import find_states
from tdenoise.columns.traces import Traces, TraceSums
from tdenoise.columns.tracking import Tracks

SIGMA = 2.6


def scene(positions, heights, shape=(72, 80), sigma=SIGMA):
    rows, columns = np.indices(shape)
    image = np.ones(shape)
    for (r, c), height in zip(positions, heights, strict=True):
        image += height * np.exp(-0.5 * ((rows - r) ** 2 + (columns - c) ** 2) / sigma**2)
    return image


LATTICE = np.array([(r, c) for r in np.arange(14, 64, 11.3) for c in np.arange(13, 70, 12.7)])


@pytest.mark.parametrize("sign", [1, -1])
def test_columns_are_found_where_they_are_bright_or_dark(sign):
    image = scene(LATTICE, np.full(len(LATTICE), 0.4 * sign))
    found = ColumnSearch(image).columns()
    assert found.bright == (sign > 0)
    apart = np.hypot(*(found.positions[:, None] - LATTICE[None]).transpose(2, 0, 1))
    assert len(found.positions) == len(LATTICE) and apart.min(axis=0).max() < 0.5
    assert 0.8 * SIGMA < found.sigma_px < 1.25 * SIGMA


def test_a_column_that_is_there_for_one_stretch_only_is_found():
    static, visitor = LATTICE[1:], LATTICE[:1]
    search = ColumnSearch(scene(static, np.full(len(static), 0.4)))
    n_before = len(search.columns().positions)
    search.add(scene(np.concatenate([static, visitor]), np.full(len(LATTICE), 0.4)))
    assert len(search.columns().positions) == n_before + 1


def test_a_flat_image_holds_no_columns_and_no_columns_have_no_states():
    assert len(ColumnSearch(np.ones((64, 64))).columns().positions) == 0
    states = find_states(Traces(np.empty((9, 0)), np.empty((9, 0))))
    assert states.changes == [] and states.expected.shape == (9, 0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bright=st.booleans(), gap=st.floats(7.0, 14.0))
def test_intensities_are_those_of_the_columns_whatever_their_neighbours_and_the_drift(seed, bright, gap):
    rng = np.random.default_rng(seed)
    positions = np.array([(20.0, 20.0), (20.0, 20.0 + gap), (20.0 + gap, 20.0), (45.0, 50.0)])
    heights = rng.uniform(0, 0.6, (6, 4))
    sums = TraceSums(Columns(positions, SIGMA, bright), 6)
    for k in range(6):
        corner = rng.uniform(-2, 2, 2)
        image = scene(positions - corner, heights[k] * (1 if bright else -1))
        sums.add(k, image, image, image, positions - corner)
    # Neighbours are freed from each other at the scene's positions, so a shift within a pixel leaves a little.
    np.testing.assert_allclose(sums.traces().intensity, heights, atol=0.03)


def test_the_stated_error_is_that_of_the_noise():
    rng = np.random.default_rng(5)
    columns = Columns(LATTICE, SIGMA, True)
    clean = 2 * scene(LATTICE, np.full(len(LATTICE), 0.4))
    sums = TraceSums(columns, 200)
    for k in range(200):
        sums.add(k, rng.poisson(clean), clean, clean, LATTICE)
    traces = sums.traces()
    pulls = (traces.intensity - 0.8) / traces.error
    assert abs(pulls.std() - 1) < 0.05 and abs(pulls.mean()) < 0.05


def test_pixels_that_tell_nothing_and_columns_that_leave_the_field_are_no_zeros():
    columns = Columns(np.array([(20.0, 20.0), (40.0, 40.0)]), SIGMA, True)
    image = scene(columns.positions, [0.4, 0.4], (60, 60))
    sums = TraceSums(columns, 2)
    holed = image.copy()
    holed[18:21, 19] = np.nan
    sums.add(0, holed, image, image, columns.positions)
    sums.add(1, image[:, :48], image[:, :48], image[:, :48], columns.positions - [15.0, 0.0])
    intensity = sums.traces().intensity
    np.testing.assert_allclose(intensity[0], 0.4, atol=1e-3)
    assert np.isnan(intensity[1, 0])


def test_columns_are_followed_where_they_turn_and_drift_although_nobody_measured_it():
    rng, true = np.random.default_rng(1), {}
    tracks, middle = Tracks(Columns(LATTICE, SIGMA, True), 60), np.array([36.0, 40.0])
    for k in range(60):
        angle, drift = np.deg2rad(2.0 * (k > 30)), np.array([0.12 * k, -0.05 * k])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        true[k] = (LATTICE - middle) @ turn.T + middle + drift
        heights = np.where(rng.uniform(size=len(LATTICE)) < 0.1, 0.0, 0.4)
        tracks.add(k, scene(true[k], heights) + rng.normal(0, 0.02, (72, 80)), np.zeros(2))
    for k in (10, 50, 59):
        assert np.median(np.abs(tracks.places()[k] - true[k])) < 0.3


def made_up(rng, n, n_frames, index, dwell, levels=(0.0, 1.0)):
    """Traces of columns that jump between levels, of unit noise times 1 / index; and when they jump."""
    state = rng.integers(len(levels), size=n)
    truth, jumps = np.empty((n_frames, n)), [[] for _ in range(n)]
    for t in range(n_frames):
        hop = (rng.uniform(size=n) < 1 / dwell) if t else np.zeros(n, bool)
        new = np.where(hop, (state + rng.integers(1, len(levels), size=n)) % len(levels), state)
        for c in np.flatnonzero(hop):
            jumps[c].append((t, np.sign(levels[new[c]] - levels[state[c]])))
        state = new
        truth[t] = np.array(levels)[state]
    error = np.full((n_frames, n), 1 / index)
    # All are on a level, so that what they do together is no change.
    return Traces(2 + truth + rng.normal(size=truth.shape) / index, error), jumps


@pytest.mark.parametrize(("index", "levels"), [(2.0, (0.0, 1.0)), (3.0, (0.0, 0.5, 1.0))])
def test_of_changes_said_with_a_probability_so_many_are_true(index, levels):
    traces, jumps = made_up(np.random.default_rng(3), 60, 200, index, 30, levels)
    said, true = [], []
    for c in find_states(traces).changes:
        said.append(c.probability)
        true.append(
            any(
                c.earliest - 2 <= t <= c.latest + 2 and sign * (c.after - c.before) > 0
                for t, sign in jumps[c.column]
            )
        )
    said, true = np.array(said), np.array(true)
    sure = said >= 0.9
    assert sure.sum() > 100 and true[sure].mean() > 0.93
    likely = (said >= 0.4) & ~sure
    assert abs(true[likely].mean() - said[likely].mean()) < 3 * np.sqrt(0.25 / likely.sum()) + 0.05


def test_columns_that_stay_or_wander_slowly_have_no_changes():
    rng = np.random.default_rng(8)
    n_frames, n = 300, 40
    slow = 0.4 * np.sin(2 * np.pi * (np.arange(n_frames)[:, None] / 600 + rng.uniform(size=n)))
    slow[:, : n // 2] = 0
    error = np.full((n_frames, n), 0.5)
    traces = Traces(3 + slow + 0.5 * rng.normal(size=slow.shape), error)
    assert sum(c.probability for c in find_states(traces).changes) < 1


def test_frames_without_a_column_change_nothing_but_what_they_would_have_told():
    traces, _ = made_up(np.random.default_rng(4), 12, 120, 4.0, 40)
    holed = traces.intensity.copy()
    holed[50:55] = np.nan
    holed[:, 3] = np.nan
    states = find_states(Traces(holed, traces.error))
    assert states.jumps[3] == 0 and np.isfinite(states.expected).all()
    assert not any(c.column == 3 for c in states.changes)
    whole = {(c.column, c.frame) for c in find_states(traces).changes if c.probability > 0.99}
    kept = {(c.column, c.frame) for c in states.changes if c.probability > 0.9}
    away = {(c, k) for c, k in whole if c != 3 and not 45 <= k <= 60}
    assert len(away & kept) >= 0.9 * len(away) and away


def test_brighter_and_darker_frames_of_all_columns_together_are_no_changes():
    rng = np.random.default_rng(2)
    together = np.where(np.arange(200) < 100, 1.0, 0.8)[:, None]
    heights = rng.uniform(1, 2, 30)
    error = np.full((200, 30), 0.3)
    traces = Traces(together * heights + 0.3 * rng.normal(size=(200, 30)), error)
    assert sum(c.probability for c in find_states(traces).changes) < 2


@pytest.mark.parametrize(("n", "n_changing"), [(1, 1), (2, 1), (3, 2), (12, 8), (20, 11), (40, 4)])
def test_what_some_columns_do_is_not_told_of_the_others(n, n_changing):
    rng = np.random.default_rng(n)
    truth = np.ones((200, n))
    for c in range(n_changing):
        truth[20 + 160 * c // n_changing :, c] = 0.6
    error = np.full((200, n), 0.05)
    sure = [
        c
        for c in find_states(Traces(truth + 0.05 * rng.normal(size=truth.shape), error)).changes
        if c.probability > 0.9
    ]
    assert {c.column for c in sure} <= set(range(n_changing)) and len(sure) >= 0.7 * n_changing
    assert all(abs(c.before - 1) < 0.1 and abs(c.after - 0.6) < 0.1 for c in sure)


def test_the_same_traces_have_the_same_states():
    traces, _ = made_up(np.random.default_rng(1), 10, 80, 3.0, 20)
    assert find_states(traces).changes == find_states(traces).changes
