"""Probes on denoisers whose faults are known."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d, uniform_filter1d

from tdenoise.evaluation import probes
from tdenoise.evaluation.residuals import spot_power

SHAPE = (40, 64, 64)
DOSE = 3.0
SPOTS = np.array([[0.0, 0.125], [0.125, 0.0625]])


def raw(counts, share):
    """The denoiser that does nothing."""
    return counts.astype(float)


def counts():
    return np.random.default_rng(0).poisson(DOSE, SHAPE)


def level():
    return np.full(SHAPE[1:], DOSE)


# Vacuum


def test_honest_filter_invents_no_lattice():
    result = probes.vacuum_probe(raw, SHAPE, DOSE, SPOTS)
    assert result.std == pytest.approx(1 / math.sqrt(DOSE), rel=0.02)
    assert result.spot_ratio == pytest.approx(1, abs=3 * result.spot_sd) and result.fringes == 0
    smooth = probes.vacuum_probe(lambda y, share: gaussian_filter(y * 1.0, 2), SHAPE, DOSE, SPOTS)
    assert smooth.std < 0.1 and smooth.fringes == 0


def test_invented_lattice_has_its_amplitude():
    columns = np.arange(SHAPE[2])

    def inventor(counts, share):
        lattice = DOSE * (1 + 0.02 * np.cos(2 * np.pi * columns / 8))
        return lattice + 0.01 * gaussian_filter(counts * 1.0, (0, 1, 1))

    result = probes.vacuum_probe(inventor, SHAPE, DOSE, SPOTS[:1])
    assert result.fringes == pytest.approx(0.02 / math.sqrt(2), rel=0.05)  # its standard deviation
    assert result.spot_ratio > 100


def test_without_a_lattice_only_the_noise_left_is_known():
    result = probes.vacuum_probe(raw, SHAPE, DOSE, np.zeros((0, 2)))
    assert result.std > 0 and math.isnan(result.spot_ratio) and math.isnan(result.fringes)


def test_spots_are_found_in_fields_of_any_size():
    for shape in ((64, 64), (48, 96), (63, 80)):
        rows, columns = np.indices(shape)
        for spot in SPOTS:
            wave = np.cos(2 * np.pi * (rows * spot[0] + columns * spot[1]))
            at, around, n_near = spot_power(np.abs(np.fft.rfft2(wave)) ** 2, spot[None], shape)
            assert at > 10 * around and n_near <= 9


# Atoms


def test_atoms_in_raw_counts_keep_their_strength_and_the_detection_their_noise_allows():
    sites = probes.flat_sites(level(), 8.0, 12)
    found = probes.adatom_probe(raw, counts(), raw(counts(), 1.0), sites, (0.3, 2.0, -0.8), 2.0, dwell=8)
    for probe in found:
        assert probe.n_sites == len(sites) >= 9
        assert probe.recovered == pytest.approx(1, abs=0.25)
    assert found[0].index < found[2].index < found[1].index
    assert found[1].auc > 0.95 and found[0].auc < 0.95


def test_average_over_the_movie_dilutes_a_short_visit():
    def average(y, share):
        return np.broadcast_to(y.mean(axis=0), SHAPE)

    (probe,) = probes.adatom_probe(
        average, counts(), raw(counts(), 1.0), np.array([[20, 20], [44, 40]]), (2.0,), 2.0, 10
    )
    assert probe.recovered == pytest.approx(10 / 40, abs=0.08)


def test_denoiser_that_knows_no_change_finds_none():
    (probe,) = probes.adatom_probe(
        lambda y, share: np.full(SHAPE, DOSE),
        counts(),
        np.full(SHAPE, DOSE),
        np.array([[20, 20]]),
        (1.0,),
        2.0,
        8,
    )
    assert (probe.recovered, probe.auc) == (0, 0.5)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_flash_bleeds_as_the_filter_in_time(sigma):
    def smooth(y, share):
        return gaussian_filter1d(y * 1.0, sigma, axis=0)

    result = probes.flash_probe(
        smooth, counts(), smooth(counts(), 1.0), np.array([[20, 20], [44, 40]]), 8.0, 2.0
    )
    kernel = gaussian_filter1d(np.eye(41)[20], sigma)[16:25]
    np.testing.assert_allclose(result.response, kernel, atol=0.05)
    assert result.offsets == (-4, -3, -2, -1, 0, 1, 2, 3, 4)


def test_flash_in_a_moving_average_lasts_as_long_as_the_window():
    def average(y, share):
        return uniform_filter1d(y * 1.0, 5, axis=0)

    box = probes.flash_probe(average, counts(), average(counts(), 1.0), np.array([[30, 30]]), 8.0, 2.0)
    np.testing.assert_allclose(box.response, [0, 0, *[0.2] * 5, 0, 0], atol=0.05)


def following(movie, drift, reach):
    """Mean over some frames around each, shifted to where the scene is there."""
    return np.stack(
        [
            probes.level_at(movie[t - reach : t + reach + 1], reach, drift[t - reach : t + reach + 1])
            if reach <= t < len(movie) - reach
            else movie[t]
            for t in range(len(movie))
        ]
    )


def test_the_level_of_a_frame_is_that_of_the_scene_where_it_is_then():
    scene = np.random.default_rng(0).normal(size=(40, 50))
    drift = np.stack([np.arange(6), -2 * np.arange(6)], axis=-1).astype(float)
    movie = np.stack([np.roll(scene, d.astype(int), axis=(0, 1)) for d in drift])
    for frame in (0, 3):
        inside = slice(6, -6), slice(12, -12)
        np.testing.assert_allclose(probes.level_at(movie, frame, drift)[inside], movie[frame][inside])


def test_the_level_follows_the_scene_however_far_it_goes():
    scene = np.random.default_rng(0).normal(size=(40, 120))
    drift = np.stack([np.zeros(24), 2.0 * np.arange(24)], axis=-1)
    movie = np.stack([np.roll(scene, d.astype(int), axis=(0, 1)) for d in drift])
    inside = slice(None), slice(50, -50)
    for frame in (0, 12, 23):
        np.testing.assert_allclose(probes.level_at(movie, frame, drift)[inside], movie[frame][inside])


def test_what_is_always_seen_has_no_pixel_that_another_stands_in_for():
    scene = np.random.default_rng(0).normal(size=(90, 90))
    drift = np.stack([np.arange(-8, 4), 0.7 * np.arange(12)], axis=-1)
    movie = np.stack([scene[30 - a : 60 - a, 30 - b : 62 - b] for a, b in np.rint(drift).astype(int)])
    for frame in (0, 11):  # from where the drift is a whole number
        seen = probes.always_seen((30, 32), frame, drift - drift[frame])
        assert [s.stop - s.start for s in seen] == [30 - 11, 32 - 8]
        level = probes.level_at(movie, frame, np.rint(drift))
        np.testing.assert_allclose(level[seen], movie[frame][seen])
    assert probes.always_seen((30, 32), 0) == (slice(0, 30), slice(0, 32))
    gone = probes.always_seen((30, 32), 6, 4.0 * drift)
    assert scene[:30, :32][gone].size == 0


def test_atoms_move_with_the_scene():
    drift = np.stack([0.5 * np.arange(40), -0.25 * np.arange(40)], axis=-1)

    def average(y, share):
        return following(y * 1.0, drift, 2)

    sites = np.array([[30, 30], [20, 44]])
    reference = average(counts(), 1.0)
    box = probes.flash_probe(average, counts(), reference, sites, 8.0, 2.0, drift=drift)
    np.testing.assert_allclose(box.response, [0, 0, *[0.2] * 5, 0, 0], atol=0.05)
    (stays,) = probes.adatom_probe(average, counts(), reference, sites, (2.0,), 2.0, 12, drift=drift)
    assert stays.recovered == pytest.approx(1, abs=0.15)
    # An atom that stays on its pixel while the scene moves is smeared by a denoiser that follows the scene.
    (smeared,) = probes.adatom_probe(average, counts(), reference, sites, (2.0,), 1.0, 12)
    (sharp,) = probes.adatom_probe(average, counts(), reference, sites, (2.0,), 1.0, 12, drift=drift)
    assert smeared.recovered < sharp.recovered


def test_sites_that_leave_the_field_are_not_counted():
    drift = np.stack([np.zeros(40), 2.0 * np.arange(40)], axis=-1)
    reference = raw(counts(), 1.0)
    # In the middle frame, 20: the first stays, the others are over an edge within four frames, or at once.
    sites = np.array([[30, 32], [30, 54], [30, 9], [2, 32], [61, 32]])
    (probe,) = probes.adatom_probe(raw, counts(), reference, sites, (2.0,), 2.0, 8, drift=drift)
    assert probe.n_sites == 1 and probe.recovered == pytest.approx(1, abs=0.4)
    assert np.isfinite([probe.recovered, probe.auc, probe.index]).all()
    (alone,) = probes.adatom_probe(raw, counts(), reference, sites[:1], (2.0,), 2.0, 8, drift=drift)
    assert probe == alone
    flash = probes.flash_probe(raw, counts(), reference, sites, 8.0, 2.0, drift=drift)
    assert flash == probes.flash_probe(raw, counts(), reference, sites[:1], 8.0, 2.0, drift=drift)
    np.testing.assert_allclose(flash.response, [0, 0, 0, 0, 1, 0, 0, 0, 0], atol=0.2)


def test_without_a_site_that_stays_there_is_no_probe():
    drift = np.stack([np.zeros(40), 2.0 * np.arange(40)], axis=-1)
    given = raw, counts(), raw(counts(), 1.0), np.array([[30, 60], [30, 2]])
    assert probes.adatom_probe(*given, (2.0, -0.5), 2.0, 8, drift=drift) == []
    assert probes.flash_probe(*given, 8.0, 2.0, drift=drift) is None


def test_what_is_put_in_has_the_statistics_of_the_other_scene():
    rng = np.random.default_rng(1)
    for change in (0.5, -0.5):
        made = probes._changed(counts(), level(), np.full(SHAPE[1:], change), rng)
        assert made.mean() == pytest.approx(DOSE * (1 + change), rel=0.02)
        assert made.var() / made.mean() == pytest.approx(1, abs=0.02)


def test_flat_sites_are_in_the_vacuum_and_apart():
    frame = np.ones((96, 96))
    frame[48:] += 0.3 * np.sin(np.arange(96) / 2)
    sites = probes.flat_sites(frame, 12.0, 4)
    assert len(sites) == 4 and sites[:, 0].max() < 40
    apart = np.hypot(*(sites[:, None] - sites[None]).transpose(2, 0, 1))
    assert apart[~np.eye(4, dtype=bool)].min() >= 24
    assert len(probes.flat_sites(np.ones((10, 10)), 12.0, 4)) == 0
