"""Events: smearing, detection and strength of columns, right on cases with a known answer."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from tdenoise.evaluation import change_detection, events
from tdenoise.evaluation.events import OFFSETS
from tdenoise.evaluation.ideal_observer import detection_index, observer_error
from tdenoise.evaluation.metrics import bootstrap_ratio
from tdenoise.simulation.nanoparticle import simulate, truth_arrays
from tdenoise.simulation.particle import SimulationSettings


@pytest.fixture(scope="module")
def still_movie():
    """Columns change, nothing moves: steps and nothing else."""
    movie = simulate(
        SimulationSettings(
            n_frames=400, height=112, width=112, seed=2, drift_share=0.0, rotation_sd_deg=(0.0, 0.0, 0.0)
        )
    )
    return movie.clean, truth_arrays(movie)


def one_column(states, *times, n_frames=41, size=31):
    """A square column that changes at some times, with the exposure of the frame of a change shared."""
    occupancy = np.full(n_frames, float(states[0]))
    for time, (before, after) in zip(times, pairwise(states), strict=True):
        k = math.floor(time)
        occupancy[k] = before * (time - k) + after * (k + 1 - time)
        occupancy[k + 1 :] = after
    shape = np.zeros((size, size))
    shape[size // 2 - 3 : size // 2 + 4, size // 2 - 3 : size // 2 + 4] = 0.1
    clean = 1 + occupancy[:, None, None] * shape
    truth = {
        "events": np.array([[time, 0, *states[i : i + 2]] for i, time in enumerate(times)]),
        "col_pos": np.full((n_frames, 1, 2), float(size // 2)),
        "col_occ": occupancy[:, None],
        "col_n_full": np.array([4]),
    }
    return clean.astype(np.float32), truth


# Bleed


def test_the_clean_movie_does_not_bleed(still_movie):
    clean, truth = still_movie
    result = events.bleed(clean, clean, truth)
    assert result.n_events > 20
    assert set(result.values) == {0.0}


@pytest.mark.parametrize("states", [(0, 3), (3, 0)])
def test_a_prediction_blind_to_a_step_bleeds_by_a_half_on_both_sides(states):
    clean, truth = one_column(states, 20.25)
    middle = np.broadcast_to((clean[0] + clean[-1]) / 2, clean.shape)
    result = events.bleed(middle, clean, truth)
    assert result.n_events == 1
    np.testing.assert_allclose(result.values, 0.5, atol=1e-6)


@pytest.mark.parametrize("time", [20.0, 20.25, 20.9])
def test_frame_of_the_change_is_left_out_and_zero_is_the_first_after_it(time):
    clean, truth = one_column((0, 3), time)
    late = clean.copy()
    late[21] = clean[0]  # the first frame wholly after the change still shows the old state
    np.testing.assert_allclose(
        events.bleed(late, clean, truth).values, [0, 0, 0, 0, 1, 0, 0, 0, 0], atol=1e-6
    )
    wrong = clean.copy()
    wrong[20] = 100
    assert set(events.bleed(wrong, clean, truth).values) == {0.0}


def test_moving_average_bleeds_as_theory_says(still_movie):
    clean, truth = still_movie
    average = uniform_filter1d(clean, 9, axis=0)
    result = events.bleed(average, clean, truth, (-2, -1, 0, 1), isolation_frames=7)
    # In the last frame before the change the window holds 3.5 of 9 frames from after it, on average.
    np.testing.assert_allclose(result.values, np.array([2.5, 3.5, 3.5, 2.5]) / 9, atol=0.05)
    interval = bootstrap_ratio(result.numerators[1], result.denominators)
    assert interval.estimate == pytest.approx(result.values[1]) and interval.low < 3.5 / 9 < interval.high


def test_bleed_reads_frames_from_a_function(still_movie):
    clean, truth = still_movie
    smooth = uniform_filter1d(clean, 5, axis=0)
    in_memory = events.bleed(smooth, clean, truth)
    on_disk = events.bleed(lambda k: smooth[k], lambda k: clean[k].astype(np.float16), truth)
    assert on_disk.values == pytest.approx(in_memory.values, abs=1e-3)
    assert on_disk.n_events == in_memory.n_events


def test_bleed_uses_isolated_events_well_inside_the_movie():
    clean = np.random.default_rng(0).uniform(0.9, 1.1, (44, 31, 31))
    inside, edge = [15.0, 15.0], [2.0, 15.0]
    truth = {
        "col_pos": np.tile([inside, edge, inside], (44, 1, 1)),
        "events": np.array([
            [0.5, 0, 0, 2],  # too early
            [10.0, 0, 2, 1], [15.9, 0, 1, 0],  # too near to each other
            [24.0, 0, 0, 2],  # good, though another column hops at the same time
            [24.0, 1, 2, 0],  # its disc leaves the field
            [30.2, 2, 2, 0], [36.0, 2, 0, 2],  # good, both
            [42.5, 0, 2, 1],  # too late
        ]),
    }  # fmt: skip
    found = events.isolated_changes(truth, clean.shape)
    assert [(c.frame, c.column) for c in found] == [(24, 0), (30, 2), (36, 2)]
    assert events.bleed(clean, clean, truth).n_events == 3
    with pytest.raises(ValueError, match="isolation"):
        events.bleed(clean, clean, truth, isolation_frames=4)


def test_bleed_without_events_is_nan():
    truth = {"events": np.zeros((0, 4), np.float32), "col_pos": np.zeros((15, 0, 2), np.float32)}
    for result in (
        events.bleed(np.ones((15, 9, 9)), np.ones((15, 9, 9)), truth),
        events.bleed_limit(np.ones((15, 9, 9)), truth, 1.0),
    ):
        assert result.n_events == 0 and np.isnan(result.values).all()


def test_limit_of_one_change_is_that_of_its_images_and_dose():
    clean, truth = one_column((0, 1), 20.5)
    pixels = events.isolated_changes(truth, clean.shape)[0].pixels
    result = events.bleed_limit(clean, truth, dose=3.0)
    index = detection_index(clean[10][pixels], clean[30][pixels], 3.0)
    assert 0.5 < index < 3
    expected = [observer_error(index, d) for d in (4, 3, 2, 1, 1, 2, 3, 4, 5)]
    np.testing.assert_allclose(result.values, expected)
    assert events.bleed_limit(clean, truth, dose=300.0).values[4] < 1e-3


def test_limit_with_the_frame_of_the_change_is_what_the_observer_reaches():
    rng, dose = np.random.default_rng(3), 3.0
    clean, truth = one_column((0, 1), 20.5)
    limit = events.bleed_limit(clean, truth, dose, mixed_frame=True)
    errors = []
    for time in rng.uniform(20, 21, 300):
        clean, truth = one_column((0, 1), time)
        column = change_detection.changing_columns(clean, truth)
        counts = rng.poisson(dose * clean)
        seen = (
            change_detection.observed_states(counts, clean, column, truth, dose)[:, 0]
            - truth["col_occ"][:, 0]
        )
        change = events.isolated_changes(truth, clean.shape)[0]
        errors.append([seen[change.at(o)] * (1 if o < 0 else -1) for o in OFFSETS])
    np.testing.assert_allclose(np.mean(errors, axis=0), limit.values, atol=0.05)


# States


def test_score_of_the_clean_movie_is_the_state(still_movie):
    clean, truth = still_movie
    columns = change_detection.changing_columns(clean, truth)
    assert len(columns) > 3
    scores = change_detection.state_scores(clean, clean, columns, truth)
    for column, found in zip(columns, scores.T, strict=True):
        occupancy = truth["col_occ"][:, column.number]
        for level, mark in zip(column.levels, column.marks, strict=True):
            np.testing.assert_allclose(found[occupancy == level], mark, atol=0.05)
    result = change_detection.detection(scores, columns, truth, clean.shape)
    assert (result.auc, result.delay, result.missed) == (1.0, 0.0, 0.0)


def test_detection_of_noise_is_chance(still_movie):
    clean, truth = still_movie
    columns = change_detection.changing_columns(clean, truth)
    noise = np.random.default_rng(0).normal(0.5, 1, (len(clean), len(columns)))
    result = change_detection.detection(noise, columns, truth, clean.shape)
    assert result.auc == pytest.approx(0.5, abs=0.05)
    assert result.delay > 1
    nothing = change_detection.detection(np.full_like(noise, 0.5), columns, truth, clean.shape)
    assert nothing.auc == 0.5 and nothing.missed == 1 and math.isnan(nothing.delay)


def test_late_prediction_has_its_delay(still_movie):
    clean, truth = still_movie
    columns = change_detection.changing_columns(clean, truth)
    scores = change_detection.state_scores(clean, clean, columns, truth)
    result = change_detection.detection(np.roll(scores, 2, axis=0), columns, truth, clean.shape)
    # Two frames later the frame of the change itself has arrived, half of the time with more of the new state.
    assert result.delay == pytest.approx(1.5, abs=0.3) and result.missed < 0.2


def test_bleed_of_scores_is_that_of_a_movie_with_these_states():
    clean, truth = one_column((0, 1, 0), 20.5, 32.5)
    columns = change_detection.changing_columns(clean, truth)
    rng = np.random.default_rng(4)
    scores = rng.uniform(-0.5, 1.5, (len(clean), 1))
    (column,) = columns
    empty, full = (clean[truth["col_occ"][:, 0] == level][0] for level in column.levels)
    movie = empty + scores[:, :, None] * (full - empty)
    expected = events.bleed(movie, clean, truth)
    found = change_detection.bleed_of_scores(scores, columns, truth, clean.shape)
    assert found.n_events == expected.n_events == 2
    np.testing.assert_allclose(found.values, expected.values, atol=1e-6)
    exact = truth["col_occ"].astype(float)
    none = change_detection.bleed_of_scores(exact, columns, truth, clean.shape).values
    np.testing.assert_allclose(none, 0, atol=1e-12)


def test_the_observer_is_worse_where_a_column_changes_again_soon():
    rng, dose = np.random.default_rng(6), 1.5
    reached = []
    for times in ((30.5,), (24.0, 30.5, 37.0)):
        clean, truth = one_column((0, 1, 0, 1)[: len(times) + 1], *times)
        columns = change_detection.changing_columns(clean, truth)
        values = []
        for _ in range(200):
            counts = rng.poisson(dose * clean)
            scores = change_detection.observed_states(counts, clean, columns, truth, dose)
            values.append(change_detection.bleed_of_scores(scores, columns, truth, clean.shape).values)
        reached.append(np.mean(values, axis=0))
    assert reached[1][2] > reached[0][2] + 0.03  # two frames before


def test_area_under_the_curve_is_that_of_all_pairs():
    clean, truth = one_column((0, 1), 20.5)
    columns = change_detection.changing_columns(clean, truth)
    scores = np.random.default_rng(1).integers(0, 3, (41, 1)) + (np.arange(41) > 20)[:, None] * 1.0
    result = change_detection.detection(scores, columns, truth, clean.shape)
    pairs = [(a, b) for a in scores[:20, 0] for b in scores[21:, 0]]
    assert result.n_pairs == len(pairs) == 400
    assert result.auc == np.mean([(b > a) + 0.5 * (b == a) for a, b in pairs])


def test_no_filter_tells_states_as_well_as_the_observer(still_movie):
    clean, truth = still_movie
    counts = np.random.default_rng(5).poisson(2.0 * clean)
    columns = change_detection.changing_columns(clean, truth)
    seen = change_detection.observed_states(counts, clean, columns, truth, 2.0)
    limit = change_detection.detection(seen, columns, truth, clean.shape)
    for sigma in (0.5, 1.0, 2.0, 4.0):
        smooth = gaussian_filter1d(counts / 2.0, sigma, axis=0)
        scores = change_detection.state_scores(smooth, clean, columns, truth)
        found = change_detection.detection(scores, columns, truth, clean.shape)
        assert found.auc < limit.auc + 0.005
    assert limit.auc > 0.8


def test_frame_with_a_change_inside_belongs_to_neither_state():
    clean, truth = one_column((0, 2), 20.5)
    (column,) = change_detection.changing_columns(clean, truth)
    assert column.levels.tolist() == [0, 2] and column.marks == pytest.approx([0, 1])
    centre = column.images.shape[1] // 2
    np.testing.assert_allclose(column.images[:, centre, centre], [1.0, 1.2], atol=1e-4)


# Steady columns


def test_part_occupied_columns_have_the_contrast_that_is_left_of_them():
    clean, truth = one_column((0, 2), 20.5)
    assert change_detection.part_occupied(clean, clean, truth).ratio == pytest.approx(1)
    result = change_detection.part_occupied(7 + 0.4 * clean, clean, truth)  # the background plays no part
    assert result.ratio == pytest.approx(0.4, rel=1e-4) == result.columns[0]
    assert result.n_frames == 41 - 21 - 2 * events.ISOLATION_FRAMES
    full = {**truth, "col_n_full": np.array([2])}
    assert math.isnan(change_detection.part_occupied(clean, clean, full).ratio)
