"""The ideal observer: right on small cases, as good as it says, and the tables are those of its simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdenoise.evaluation import ideal_observer


@settings(max_examples=30, deadline=None)
@given(
    n_frames=st.integers(1, 5),
    n_states=st.integers(1, 3),
    rate=st.floats(0.01, 0.4),
    seed=st.integers(0, 2**32 - 1),
)
def test_forward_backward_is_the_sum_over_all_paths(n_frames, n_states, rate, seed):
    evidence = np.random.default_rng(seed).normal(0, 3, (n_frames, n_states))
    moves = np.full((n_states, n_states), rate / max(1, n_states - 1))
    np.fill_diagonal(moves, 1 - rate if n_states > 1 else 1)
    shares = np.zeros((n_frames, n_states))
    for path in itertools.product(range(n_states), repeat=n_frames):
        weight = math.exp(sum(evidence[k, s] for k, s in enumerate(path)))
        weight *= math.prod(moves[a, b] for a, b in itertools.pairwise(path))
        for k, s in enumerate(path):
            shares[k, s] += weight
    expected = shares / shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ideal_observer.forward_backward(evidence, rate), expected, atol=1e-12)


def test_forward_backward_survives_evidence_beyond_the_range_of_floats():
    sure = ideal_observer.forward_backward(np.array([[0.0, 2000.0], [0.0, 0.0], [-5000.0, 0.0]]))
    assert np.isfinite(sure).all() and sure[:, 1].min() > 0.99


def test_probabilities_of_the_observer_are_calibrated():
    rng = np.random.default_rng(0)
    changes = rng.uniform(size=(2000, 80)) < ideal_observer.SWITCH_RATE
    changes[:, 0] = rng.uniform(size=len(changes)) < 0.5
    states = np.cumsum(changes, axis=1) % 2
    evidence = states - 0.5 + rng.normal(size=states.shape)  # d' = 1
    sure = ideal_observer.forward_backward(np.stack([0 * evidence, evidence], axis=-1))[..., 1]
    for low in np.arange(0, 1, 0.1):
        chosen = (sure >= low) & (sure < low + 0.1)
        assert states[chosen].mean() == pytest.approx(sure[chosen].mean(), abs=0.02)


def test_detection_index_is_that_of_simulated_frames():
    rng = np.random.default_rng(1)
    one, other = rng.uniform(0.8, 1.2, (2, 40))
    index = ideal_observer.detection_index(one, other, 3.0)
    ratios = [rng.poisson(3 * x, (40_000, 40)) @ np.log(other / one) for x in (one, other)]
    spread = math.sqrt((ratios[0].var() + ratios[1].var()) / 2)
    assert index == pytest.approx((ratios[1].mean() - ratios[0].mean()) / spread, rel=0.02)
    assert ideal_observer.detection_index(other, one, 3.0) == pytest.approx(index)
    assert ideal_observer.detection_index(one, other, 12.0) == pytest.approx(2 * index)
    assert ideal_observer.detection_index(one, one, 3.0) == 0


# One and two frames from the change, computed independently.
REFERENCE = {
    0.5: (0.47, 0.43),
    0.7: (0.46, 0.39),
    1.0: (0.41, 0.31),
    1.44: (0.34, 0.20),
    2.0: (0.24, 0.10),
    2.9: (0.11, 0.02),
}


@pytest.mark.parametrize("index", REFERENCE)
def test_wrong_side_of_a_step_is_that_of_the_reference(index):
    found = [float(ideal_observer.observer_error(index, distance)) for distance in (1, 2)]
    np.testing.assert_allclose(found, REFERENCE[index], atol=0.01)


def test_wrong_side_falls_with_distance_and_with_the_index():
    table = np.array(
        [ideal_observer.observer_error(np.linspace(0, 8, 50), distance) for distance in range(1, 7)]
    )
    assert np.diff(table, axis=0).max() < 2e-3 and np.diff(table, axis=1).max() < 2e-3
    assert table[0, 0] == 0.5 and table.min() >= 0
    mixed = ideal_observer.observer_error(1.44, 1, mixed_frame=True)
    assert ideal_observer.observer_error(1.44, 2) < mixed < ideal_observer.observer_error(1.44, 1)
    with pytest.raises(ValueError, match="7 frames"):
        ideal_observer.observer_error(1.0, 7)


def test_table_of_visits_is_that_of_the_simulation():
    for dwell, index in ideal_observer.TOLD_INDICES.items():
        share = ideal_observer.told_share(index, dwell, 3000, seed=5)
        assert share == pytest.approx(ideal_observer.TOLD_SHARE, abs=0.025)
    error = ideal_observer.observer_error(ideal_observer.DATED_INDEX, 1)
    assert error == pytest.approx(ideal_observer.DATED_ERROR, abs=5e-3)


def test_shorter_visits_need_larger_steps():
    assert ideal_observer.told_index(1) > ideal_observer.told_index(2.5) > ideal_observer.told_index(64)
    assert ideal_observer.told_dwell(6.0) == 1 and ideal_observer.told_dwell(0.3) is None
    for index in (0.6, 1.0, 2.0, 4.0):
        dwell = ideal_observer.told_dwell(index)
        assert ideal_observer.told_index(dwell) <= index < ideal_observer.told_index(dwell - 1)
    with pytest.raises(ValueError, match="65"):
        ideal_observer.told_index(65)
