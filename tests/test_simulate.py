"""The simulator: its statistics are those it claims, and its truth describes its movie."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdenoise.simulation.nanoparticle import ADATOM, CHANGING_SURFACE, Simulation, simulate, truth_arrays
from tdenoise.simulation.particle import SimulationSettings

BUSY = SimulationSettings(n_frames=48, height=96, width=112, dose=2.0, seed=3, dwell_frames=(3.0, 20.0))


@pytest.fixture(scope="module")
def movie() -> Simulation:
    return simulate(BUSY)


def with_settings(**changes: object) -> SimulationSettings:
    return dataclasses.replace(BUSY, **changes)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_movie(movie):
    again = simulate(BUSY)
    for name, array in truth_arrays(movie).items():
        np.testing.assert_array_equal(truth_arrays(again)[name], array, err_msg=name)


def test_another_seed_gives_another_movie(movie):
    other = simulate(with_settings(seed=4))
    assert not np.array_equal(other.clean, movie.clean)
    assert not np.array_equal(other.counts[:, movie.vacuum_mask], movie.counts[:, movie.vacuum_mask])


def test_another_dose_shows_the_same_scene(movie):
    np.testing.assert_array_equal(simulate(with_settings(dose=0.5)).clean, movie.clean)


def test_counts_are_the_stated_draw_from_the_stored_clean_movie(movie):
    stored, noise = truth_arrays(movie)["clean"], movie.attrs["noise"][0]
    drawn = np.random.default_rng(noise["seed"]).poisson(noise["dose"] * stored.astype(np.float64))
    np.testing.assert_array_equal(movie.counts, drawn)


def test_vacuum_counts_are_poisson_at_the_dose(movie):
    vacuum = movie.counts[:, movie.vacuum_mask].astype(np.float64)
    assert abs(vacuum.mean() - BUSY.dose) < 5 * np.sqrt(BUSY.dose / vacuum.size)
    assert abs(vacuum.var() / vacuum.mean() - 1) < 5 * np.sqrt(
        2 / vacuum.size + 1 / (BUSY.dose * vacuum.size)
    )


def test_vacuum_is_exactly_one_and_a_good_part_of_the_field(movie):
    assert np.all(movie.clean[:, movie.vacuum_mask] == 1)
    assert 0.2 < movie.vacuum_mask.mean() < 0.6


def test_contrast_is_that_of_the_benchmark_movies():
    clean = simulate(SimulationSettings(n_frames=16, height=192, width=192)).clean
    assert 0.5 < clean.max() - clean.min() < 0.75
    assert clean.min() > 0.75 and clean.max() < 1.6


def test_no_detail_is_finer_than_a_tenth_of_a_nanometre(movie):
    # Windowed, so that the field's edges do not count as detail.
    window = np.outer(*(np.hanning(n) for n in movie.clean.shape[1:]))
    power = np.abs(np.fft.fft2((movie.clean[0] - 1) * window)) ** 2
    rows, cols = (np.fft.fftfreq(n, BUSY.pixel_size_nm) for n in movie.clean.shape[1:])
    fine = np.hypot(rows[:, None], cols) > 1 / 0.09
    assert power[fine].sum() < 1e-3 * power.sum()


def test_columns_are_bright_where_col_pos_says(movie):
    """The first frame is brightest within a pixel of each inner column."""
    for column in np.flatnonzero(movie.col_kind == 0):
        row, col = np.rint(movie.col_pos[0, column]).astype(int)
        around = movie.clean[0, row - 4 : row + 5, col - 4 : col + 5]
        peak = np.array(np.unravel_index(around.argmax(), around.shape)) + (row - 4, col - 4)
        assert np.abs(peak - movie.col_pos[0, column]).max() < 1.01


def test_exposures_average_the_events_that_fall_into_them(movie):
    """Occupancy is rebuilt from the events by another route: fine sampling in time."""
    assert len(movie.events) > 20
    fine = 200
    times = (np.arange(BUSY.n_frames * fine) + 0.5) / fine
    for column in np.unique(movie.events[:, 1]).astype(int):
        rows = movie.events[movie.events[:, 1] == column]
        np.testing.assert_array_equal(rows[1:, 2], rows[:-1, 3])  # each event starts where the last one ended
        levels = np.concatenate([rows[:1, 2], rows[:, 3]])
        sampled = levels[np.searchsorted(rows[:, 0], times)].reshape(-1, fine).mean(axis=1)
        np.testing.assert_allclose(movie.col_occ[:, column], sampled, atol=0.06)


def test_an_event_in_mid_exposure_shows_in_part():
    still = with_settings(drift_share=0.0, rotation_sd_deg=(0.0, 0.0, 0.0), hop_fraction=0.0)
    movie = simulate(dataclasses.replace(still, n_frames=400, dwell_frames=(6.0, 60.0)))
    frames, changes = np.unique(movie.events[:, 0].astype(int), return_counts=True)
    checked = 0
    for time, column, *_ in movie.events:
        frame, column = int(time), int(column)
        row, col = np.rint(movie.col_pos[0, column]).astype(int)
        alone = changes[np.abs(frames - frame) <= 1].sum() == 1
        if alone and 0 < frame < 399 and 0 <= row < BUSY.height and 0 <= col < BUSY.width:
            before, during, after = movie.clean[frame - 1 : frame + 2, row, col].astype(np.float64)
            assert (during - before) / (after - before) == pytest.approx(1 - time % 1, abs=0.02)
            checked += 1
    assert checked > 20


def test_columns_that_never_change_have_no_events_and_stay_full(movie):
    static = movie.col_kind < CHANGING_SURFACE
    assert not static[movie.events[:, 1].astype(int)].any()
    assert np.all(movie.col_occ[:, static] == movie.col_n_full[static])
    assert np.isnan(movie.col_dwell[static]).all() and np.isfinite(movie.col_dwell[~static]).all()
    assert set(np.unique(movie.col_kind[~static])) == {CHANGING_SURFACE, ADATOM}


def test_columns_hold_no_atoms_half_or_all_of_them(movie):
    full = movie.col_n_full[movie.events[:, 1].astype(int)]
    for atoms in movie.events[:, 2:].T:
        assert np.all((atoms == 0) | (atoms == full // 2) | (atoms == full))


def test_a_hop_is_two_columns_changing_oppositely_at_one_time(movie):
    times, counts = np.unique(movie.events[:, 0], return_counts=True)
    assert set(counts) == {1, 2}
    for time in times[counts == 2]:
        (_, one, *first), (_, other, *second) = movie.events[movie.events[:, 0] == time]
        assert one != other
        assert (first[1] - first[0]) * (second[1] - second[0]) < 0


def test_dwell_times_are_mostly_two_to_sixty_frames():
    movie = simulate(SimulationSettings(n_frames=2000, height=40, width=64, seed=1))
    gaps = np.concatenate(
        [np.diff(movie.events[movie.events[:, 1] == c, 0]) for c in range(len(movie.col_kind))]
    )
    assert len(gaps) > 100
    assert np.mean((gaps >= 2) & (gaps <= 60)) > 0.75


def test_drift_is_slow_and_bounded():
    settings_ = SimulationSettings(n_frames=600, height=64, width=48, seed=5, drift_share=0.1)
    drift = simulate(settings_).drift_px
    assert np.abs(np.diff(drift, axis=0)).max() <= 0.3 + 1e-6
    assert np.abs(drift).max() <= 4.8
    assert np.ptp(drift, axis=0).min() > 1


def test_rotations_turn_the_particle_to_their_targets():
    movie = simulate(SimulationSettings(n_frames=200, height=96, width=96, seed=2))
    assert len(movie.rotations) >= 3
    start, duration, *target = movie.rotations[0]
    assert 2 <= duration <= 8
    assert np.all(movie.angles_deg[: int(start)] == 0)
    np.testing.assert_allclose(movie.angles_deg[int(start + duration) + 1], target, atol=1e-5)
    # Distances are kept: it turns, it does not stretch.
    spans = np.linalg.norm(movie.col_pos - movie.col_pos[:, :1], axis=-1)
    np.testing.assert_allclose(spans, np.broadcast_to(spans[0], spans.shape), atol=1e-3)


def test_state_numbers_frames_by_their_occupancy(movie):
    pure = np.flatnonzero(movie.state_purity == 1)
    for state in np.unique(movie.state[pure]):
        same = movie.col_occ[pure[movie.state[pure] == state]]
        assert np.all(same == same[0])
    assert movie.state[0] == 0 or movie.state_purity[0] < 1
    assert np.all(movie.state_purity > 0) and np.all(movie.state_purity <= 1)


def test_masks_are_disjoint_and_mark_the_changes(movie):
    total = movie.vacuum_mask.astype(int) + movie.particle_mask + movie.support_mask
    assert total.max() == 1
    assert not np.any(movie.changing_mask & movie.vacuum_mask)
    still = simulate(with_settings(drift_share=0.0, rotation_sd_deg=(0.0, 0.0, 0.0)))
    spread = np.ptp(still.clean, axis=0)
    assert spread[still.changing_mask].mean() > 20 * spread[~still.changing_mask].mean()


def test_hot_pixels_glow_where_stated_and_nowhere_else(movie):
    hot = simulate(with_settings(hot_pixels=7))
    rows, cols = hot.hot_pixels.T
    assert len(hot.hot_pixels) == 7
    assert hot.counts[:, rows, cols].mean(axis=0).min() > 10 * BUSY.dose
    others = np.ones(hot.clean.shape[1:], bool)
    others[rows, cols] = False
    np.testing.assert_array_equal(hot.counts[:, others], movie.counts[:, others])


def test_gain_scales_counts_pixel_by_pixel():
    settings_ = with_settings(gain=0.1, counts_per_electron=12.0, n_frames=200, changing_share=0.0)
    movie = simulate(settings_)
    assert movie.counts.dtype == np.float32
    assert movie.gain_map.mean() == pytest.approx(12.0, rel=0.01)
    assert movie.gain_map.std() / movie.gain_map.mean() == pytest.approx(0.1, rel=0.05)
    measured = movie.counts[:, movie.vacuum_mask].mean(axis=0) / settings_.dose
    assert np.corrcoef(measured, movie.gain_map[movie.vacuum_mask])[0, 1] > 0.85


def test_whole_counts_per_electron_keep_integers(movie):
    camera = simulate(with_settings(counts_per_electron=100.0))
    assert camera.counts.dtype == np.uint16
    np.testing.assert_array_equal(camera.counts, 100 * movie.counts.astype(int))


def test_detector_blur_correlates_the_noise_of_neighbours_and_keeps_the_dose(movie):
    def neighbour_correlation(counts):
        top = counts[:, :10].astype(np.float64) - counts[:, :10].mean()
        return np.mean(top[:, :, 1:] * top[:, :, :-1]) / top.var()

    blurred = simulate(with_settings(blur_px=0.7))
    assert abs(neighbour_correlation(movie.counts)) < 0.02
    assert neighbour_correlation(blurred.counts) == pytest.approx(np.exp(-1 / (4 * 0.7**2)), abs=0.06)
    assert blurred.counts.mean() == pytest.approx(movie.counts.mean(), rel=1e-5)


def test_truth_arrays_have_the_names_and_shapes_of_the_benchmark(movie):
    arrays = truth_arrays(movie)
    t, h, w = movie.clean.shape
    n, k, m = len(movie.col_kind), len(movie.events), len(movie.rotations)
    expected = {
        "clean": ((t, h, w), np.float16), "counts_dose2p0": ((t, h, w), np.uint8),
        "vacuum_mask": ((h, w), bool), "particle_mask": ((h, w), bool),
        "support_mask": ((h, w), bool), "changing_mask": ((h, w), bool),
        "col_pos": ((t, n, 2), np.float32), "col_occ": ((t, n), np.float16), "col_n_full": ((n,), np.int16),
        "col_kind": ((n,), np.int8), "col_dwell": ((n,), np.float32), "events": ((k, 4), np.float32),
        "rotations": ((m, 5), np.float32), "angles_deg": ((t, 3), np.float32),
        "drift_px": ((t, 2), np.float32),
        "state": ((t,), np.int32), "state_purity": ((t,), np.float32),
    }  # fmt: skip
    attrs = json.loads(str(arrays.pop("attrs")))
    assert {name: (a.shape, a.dtype) for name, a in arrays.items()} == expected
    np.testing.assert_array_equal(arrays["clean"], movie.clean)  # float16 loses nothing
    assert attrs["pixel_size_nm"] == attrs["px_nm"] == BUSY.pixel_size_nm
    assert attrs["frame_time_s"] == BUSY.frame_time_s
    assert [(e["key"], e["dose"]) for e in attrs["noise"]] == [("counts_dose2p0", 2.0)]


def test_impossible_settings_are_refused():
    for wrong in (
        {"height": 8},
        {"dose": 0.0},
        {"n_frames": 0},
        {"gain": -1.0},
        {"dwell_frames": (9.0, 3.0)},
    ):
        with pytest.raises(ValueError):
            with_settings(**wrong)


@settings(max_examples=15, deadline=None)
@given(
    n_frames=st.integers(3, 7),
    height=st.integers(40, 97),
    width=st.integers(40, 97),
    pixel_size_nm=st.sampled_from([0.01, 0.014, 0.03]),
    seed=st.integers(0, 1000),
)
def test_any_size_has_columns_and_flat_vacuum(n_frames, height, width, pixel_size_nm, seed):
    movie = simulate(
        SimulationSettings(
            n_frames=n_frames, height=height, width=width, pixel_size_nm=pixel_size_nm, seed=seed
        )
    )
    assert movie.counts.shape == movie.clean.shape == (n_frames, height, width)
    assert len(movie.col_kind) >= 1
    assert movie.vacuum_mask.any() and np.all(movie.clean[:, movie.vacuum_mask] == 1)
    assert np.all(movie.clean > 0)
    assert movie.clean.max() > 1.1
    assert np.all((movie.events[:, 0] >= 0) & (movie.events[:, 0] < n_frames))
