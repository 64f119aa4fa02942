"""Simulated low-dose movies of a Pt nanoparticle on CeO2, with the truth known.

Physics-lite: the geometry is that of the crystals, the image of an atomic column is a fixed
phase-contrast peak with a dark ring, and the statistics of the detector are exact. It makes a movie in
seconds that is about as hard to denoise as a multislice simulation; it is not a substitute for one where
absolute contrast matters.

Both crystals are seen along [1-10] with [111] up and [11-2] to the right. In that projection an fcc
lattice of constant a has rows a/sqrt(3) apart, columns a*sqrt(6)/4 apart in a row, and each row is shifted
by a third of that (ABC stacking).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy import ndimage

from .particle import (
    ADATOM,
    CHANGING_SURFACE,
    INNER,
    PT_LATTICE_NM,
    SURFACE,
    Array,
    SimulationSettings,
    Structure,
)
from .rendering import (
    CE_PEAK,
    O_PEAK,
    PEAK_REACH,
    PEAK_SIGMA_NM,
    peak_height,
    positions_of,
    render,
    tilt_damping,
)

CEO2_LATTICE_NM = 0.54110


@dataclass(frozen=True)
class Simulation:
    """A simulated movie and everything that is true about it.

    Shapes: T frames, H x W pixels, N Pt columns, K events, M rotations. Positions are (row, column) in
    pixels with pixel centres at whole numbers. Event times are in frames: frame k is the exposure from k
    to k + 1, and event rows with one time are one hop.
    """

    settings: SimulationSettings
    counts: Array  # (T, H, W) what the detector gave: uint8 or uint16; float32 with gain or blur
    clean: Array  # (T, H, W) float32, noise-free and unblurred, vacuum = 1; float16 holds it exactly
    vacuum_mask: Array  # (H, W) bool, no atom within reach in any frame: clean is 1 there
    particle_mask: Array  # (H, W) bool, inside the unchanging particle in every frame
    support_mask: Array  # (H, W) bool, inside the support in every frame
    changing_mask: Array  # (H, W) bool, near a column whose occupancy changes
    col_pos: Array  # (T, N, 2) float32
    col_occ: Array  # (T, N) float16, atoms averaged over the exposure
    col_n_full: Array  # (N,) int16
    col_kind: Array  # (N,) int8: inner, surface, changing surface, adatom
    col_dwell: Array  # (N,) float32, nominal mean dwell time [frames], NaN if static
    events: Array  # (K, 4) float32: time, column, atoms before, atoms after
    rotations: Array  # (M, 5) float32: start, duration, targets of in-plane angle, tilt x, tilt y [degrees]
    angles_deg: Array  # (T, 3) float32, averaged over the exposure
    drift_px: Array  # (T, 2) float32
    state: Array  # (T,) int32, the occupancy pattern that fills most of the exposure
    state_purity: Array  # (T,) float32, its share of the exposure
    gain_map: Array  # (H, W) float32, counts per electron
    hot_pixels: Array  # (n, 2) int, (row, column)
    attrs: dict[str, Any]  # JSON-ready, as in the benchmark files


def simulate(settings: SimulationSettings) -> Simulation:
    """Simulate a movie: moving atomic columns, Poisson counts, and the truth behind them.

    Occupancy is averaged exactly over each exposure. Drift and rotation are taken at their mean over the
    exposure: they move a column by a small part of its width within a frame. With ``blur_px`` each
    electron's signal is spread over its neighbours after it was counted, so that the noise is correlated
    and the expected frame is the blurred clean frame.

    Parameters
    ----------
    settings : SimulationSettings

    Returns
    -------
    Simulation

    Examples
    --------
    >>> movie = simulate(SimulationSettings(n_frames=4, height=48, width=48))
    >>> movie.counts.shape, movie.counts.dtype.name, float(movie.clean[0, 0, 0])
    ((4, 48, 48), 'uint8', 1.0)
    """
    # The scene, the noise and the camera draw from streams of their own: a change of dose keeps the scene.
    scene_seed, noise_seed, camera_seed = (
        int(s) for s in np.random.SeedSequence(settings.seed).generate_state(3)
    )
    rng = np.random.default_rng(scene_seed)
    structure = _build(settings, rng)
    dwell = _dwell_times(structure.kind, settings, rng)
    initial, events = _draw_events(structure, dwell, settings, rng)
    rotations, angles = _rotations(settings, rng)
    drift = _drift(settings, rng)

    positions = positions_of(structure, angles, drift)
    occupancy = _average(initial, events, settings.n_frames, lambda atoms: atoms)
    peaks = _average(initial, events, settings.n_frames, peak_height) * tilt_damping(structure.n_full, angles)
    clean, masks = render(settings, structure, positions, peaks, drift, np.unique(events[:, 1].astype(int)))
    state, purity = _states(initial, events, settings.n_frames)

    counts, gain_map, hot = _detect(clean, settings, noise_seed, camera_seed)
    return Simulation(
        settings=settings,
        counts=counts,
        clean=clean,
        **masks,
        col_pos=positions.astype(np.float32),
        col_occ=occupancy.astype(np.float16),
        col_n_full=structure.n_full.astype(np.int16),
        col_kind=structure.kind.astype(np.int8),
        col_dwell=dwell.astype(np.float32),
        events=events,
        rotations=rotations,
        angles_deg=angles.astype(np.float32),
        drift_px=drift.astype(np.float32),
        state=state,
        state_purity=purity,
        gain_map=gain_map,
        hot_pixels=hot,
        attrs=_attrs(settings, counts, masks["vacuum_mask"], events, noise_seed),
    )


def truth_arrays(simulation: Simulation) -> dict[str, Array]:
    """The arrays of a benchmark file, ready for ``numpy.savez_compressed``.

    Returns
    -------
    dict of str to ndarray
        ``clean``, ``counts_dose...`` (its full name is in ``attrs["noise"][0]["key"]``), masks, columns,
        events, rotations, drift and ``attrs`` (JSON text).
    """
    apart = {"settings", "counts", "clean", "gain_map", "hot_pixels", "attrs"}
    names = [field.name for field in fields(simulation) if field.name not in apart]
    return {
        "clean": simulation.clean.astype(np.float16),
        simulation.attrs["noise"][0]["key"]: simulation.counts,
        **{name: getattr(simulation, name) for name in names},
        "attrs": np.array(json.dumps(simulation.attrs)),
    }


def _rows_of(lattice_nm: float) -> tuple[float, float]:
    """Distance between (111) rows, and between the columns of a row, seen along [1-10]."""
    return lattice_nm / math.sqrt(3), lattice_nm * math.sqrt(6) / 4


def _build(settings: SimulationSettings, rng: np.random.Generator) -> Structure:
    """Place the columns so that about a third of the field is vacuum, whatever its size."""
    px = settings.pixel_size_nm
    layer, spacing = _rows_of(PT_LATTICE_NM)
    reach_px = PEAK_REACH * PEAK_SIGMA_NM / px
    half_width = max(0.31 * settings.width * px, 0.6 * spacing)
    highest = 0.22 * settings.height + reach_px + settings.drift_range_px  # row of the particle's top
    interface = max(0.8 * settings.height, highest + layer / px)
    n_layers = max(1, min(int((interface - highest) * px / layer), int(2 * half_width / layer)))

    # Side facets {111} and {100}, as the largest x to the right and to the left of the centre.
    up = layer * (np.arange(n_layers) - n_layers / 3)
    slopes = np.array([0.353, 0.707])  # cot of the angle between the facets and the rows
    right = np.minimum(half_width - slopes[0] * up, 1.1 * half_width + slopes[1] * up)
    left = np.minimum(1.1 * half_width - slopes[1] * up, half_width + slopes[0] * up)

    sites: list[tuple[float, float]] = []
    n_full: list[int] = []
    kind: list[int] = []
    for row in range(n_layers):
        shift = (row % 3) * spacing / 3
        first, last = math.ceil((-left[row] - shift) / spacing), math.floor((right[row] - shift) / spacing)
        for i in range(first - 1, last + 2):
            depth = min(i - first, last - i)  # columns to the nearer end of the row; -1 is an adatom site
            sites.append(
                (interface - (row + 1) * layer / px, settings.width / 2 + (shift + i * spacing) / px)
            )
            n_full.append(int(rng.integers(2, 4)) if depth < 0 else min(3 + depth, 12))
            on_surface = depth == 0 or row == n_layers - 1
            kind.append(ADATOM if depth < 0 else SURFACE if on_surface else INNER)
    particle, full, kinds = np.array(sites), np.array(n_full), np.array(kind)

    # Only a share of the surface changes; the first column never does, or the smallest particle could vanish.
    surface = _choose(rng, np.flatnonzero(kinds == SURFACE)[1:], settings.changing_share)
    # An adatom site that never changes is no column at all.
    adatoms = _choose(rng, np.flatnonzero(kinds == ADATOM), settings.changing_share)
    kinds[surface] = CHANGING_SURFACE
    keep = (kinds != ADATOM) | np.isin(np.arange(len(kinds)), adatoms)
    centre = np.array([interface - (n_layers / 3 + 1) * layer / px, settings.width / 2])
    support, support_peak = _build_support(settings, interface)
    return Structure(particle[keep], full[keep], kinds[keep], centre, support, support_peak)


def _choose(rng: np.random.Generator, candidates: Array, share: float) -> Array:
    return rng.choice(candidates, math.ceil(share * len(candidates)), replace=False)


def _build_support(settings: SimulationSettings, interface: float) -> tuple[Array, Array]:
    """Ce and O columns of an oxygen-terminated CeO2 (111) slab that fills the field below the interface."""
    px, margin = (
        settings.pixel_size_nm,
        settings.drift_range_px + PEAK_REACH * PEAK_SIGMA_NM / settings.pixel_size_nm,
    )
    layer, spacing = _rows_of(CEO2_LATTICE_NM)
    n_layers = math.ceil(max(0.0, settings.height + margin - interface) * px / layer) + 1
    n_columns = math.ceil((settings.width + 2 * margin) * px / spacing) + 2
    # One row is begun above the interface for the oxygen below it.
    row, column = np.meshgrid(np.arange(-1, n_layers + 1), np.arange(-1, n_columns), indexing="ij")
    y = interface + (0.15 + row * layer) / px
    x = (column * spacing - (row % 3) * spacing / 3) / px - margin
    oxygen = 0.75 * layer / px  # fluorite: O sits three quarters of a layer above and below each Ce
    places = [(y, x, CE_PEAK), (y - oxygen, x, O_PEAK), (y + oxygen, x, O_PEAK)]
    sites = np.concatenate([np.stack([rows, cols], axis=-1).reshape(-1, 2) for rows, cols, _ in places])
    peak = np.concatenate([np.full(rows.size, height) for rows, _, height in places])
    inside = (sites[:, 0] > interface + 0.05 / px) & (sites[:, 0] < settings.height + margin)
    return sites[inside], peak[inside]


def _dwell_times(kind: Array, settings: SimulationSettings, rng: np.random.Generator) -> Array:
    low, high = np.log(settings.dwell_frames)
    return np.where(kind >= CHANGING_SURFACE, np.exp(rng.uniform(low, high, len(kind))), np.nan)


def _draw_events(
    structure: Structure, dwell: Array, settings: SimulationSettings, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Occupancy at time 0 and all later changes, drawn in continuous time."""
    levels = [np.unique([0, n // 2, n]) for n in structure.n_full]
    atoms = structure.n_full.copy()
    changing: list[int] = np.flatnonzero(np.isfinite(dwell)).tolist()
    for i in changing:
        # A surface column is mostly there at the start, an adatom column mostly not.
        share = [0.1, 0.3, 0.6] if structure.kind[i] == CHANGING_SURFACE else [0.4, 0.3, 0.3]
        atoms[i] = rng.choice(levels[i], p=share[: len(levels[i])] if len(levels[i]) == 3 else None)
    initial = atoms.copy()

    def wait(i: int) -> float:
        return float(rng.uniform(0.5, 1.0) + rng.exponential(max(dwell[i] - 0.75, 0.25)))

    due = {i: wait(i) * rng.uniform(0, 1) for i in changing}
    events: list[tuple[float, int, int, int]] = []
    while due:
        i = min(due, key=due.__getitem__)
        time = float(np.float32(due[i]))  # what is stored is what is averaged
        if time >= settings.n_frames:
            break
        changes = {i: int(rng.choice([n for n in levels[i] if n != atoms[i]]))}
        if rng.uniform() < settings.hop_fraction:
            gains = changes[i] > atoms[i]
            distance = np.linalg.norm(structure.particle[changing] - structure.particle[i], axis=1)
            for j in [changing[place] for place in np.argsort(distance)[1:4]]:
                opposite = [n for n in levels[j] if (n < atoms[j] if gains else n > atoms[j])]
                if opposite:
                    changes[j] = int(rng.choice(opposite))
                    break
        for j, after in changes.items():
            events.append((time, j, int(atoms[j]), after))
            atoms[j] = after
            due[j] = time + wait(j)
    return initial, np.array(events, np.float32).reshape(-1, 4)


def _average(initial: Array, events: Array, n_frames: int, value_of: Callable[[Any], Any]) -> Array:
    """Mean over each exposure of a value that depends on the number of atoms, shape (T, N)."""
    result = np.tile(np.asarray(value_of(initial), np.float64), (n_frames, 1))
    for time, column, before, after in events.astype(np.float64):
        frame, step = int(time), float(value_of(after) - value_of(before))
        result[frame, int(column)] += step * (frame + 1 - time)
        result[frame + 1 :, int(column)] += step
    return result


def _rotations(settings: SimulationSettings, rng: np.random.Generator) -> tuple[Array, Array]:
    """The list of rotations, and the three angles of each frame averaged over its exposure."""
    rows: list[list[float]] = []
    time = float(rng.uniform(0, settings.rotation_every_frames[1]))
    while time < settings.n_frames:
        rows.append([time, rng.uniform(2, 8), *rng.normal(0, settings.rotation_sd_deg)])
        time += max(rows[-1][1], rng.uniform(*settings.rotation_every_frames))
    rotations = np.array(rows, np.float32).reshape(-1, 5)

    substeps = 8
    times = (np.arange(settings.n_frames * substeps) + 0.5) / substeps
    angles = np.zeros((len(times), 3))
    for start, duration, *target in rotations.astype(np.float64):
        angles += np.clip((times - start) / duration, 0, 1)[:, None] * (np.array(target) - angles[-1])
    return rotations, angles.reshape(settings.n_frames, substeps, 3).mean(axis=1)


def _drift(settings: SimulationSettings, rng: np.random.Generator) -> Array:
    """A few slow sine waves: smooth, and bounded in range and in speed by construction."""
    times = np.arange(settings.n_frames) + 0.5
    period = rng.uniform(60, 300, (2, 4))
    weight = rng.uniform(0.3, 1, (2, 4))
    weight *= settings.drift_range_px / weight.sum(axis=1, keepdims=True)
    fastest = (2 * math.pi * weight / period).sum(axis=1, keepdims=True)
    weight *= np.minimum(1, settings.drift_speed_px / np.maximum(fastest, 1e-12))
    phase = rng.uniform(0, 2 * math.pi, (2, 4))
    waves = weight * np.sin(2 * math.pi * times[:, None, None] / period + phase)
    return np.asarray(waves.sum(axis=2))


def _states(initial: Array, events: Array, n_frames: int) -> tuple[Array, Array]:
    """Number of the occupancy pattern that fills most of each exposure, and its share of it."""
    times = np.unique(events[:, 0].astype(np.float64))
    patterns = [initial.copy()]
    for time in times:
        now = patterns[-1].copy()
        rows = events[events[:, 0] == np.float32(time)]
        now[rows[:, 1].astype(int)] = rows[:, 3]
        patterns.append(now)
    known: dict[bytes, int] = {}
    number = [known.setdefault(p.tobytes(), len(known)) for p in patterns]
    edges = np.concatenate([[0.0], times, [float(n_frames)]])
    state, purity = np.zeros(n_frames, np.int32), np.zeros(n_frames, np.float32)
    for k in range(n_frames):
        shares = np.zeros(len(known))
        np.add.at(shares, number, np.clip(np.minimum(edges[1:], k + 1) - np.maximum(edges[:-1], k), 0, None))
        state[k], purity[k] = shares.argmax(), shares.max()
    return state, purity


def _detect(
    clean: Array, settings: SimulationSettings, noise_seed: int, camera_seed: int
) -> tuple[Array, Array, Array]:
    """Counts of the movie, the camera's gain map and the places of its hot pixels."""
    camera = np.random.default_rng(camera_seed)
    shape = clean.shape[1:]
    gain_map = settings.counts_per_electron * (1 + settings.gain * camera.standard_normal(shape)).clip(0.1)
    hot = np.unravel_index(camera.choice(math.prod(shape), settings.hot_pixels, replace=False), shape)

    counts: Array = np.random.default_rng(noise_seed).poisson(settings.dose * clean.astype(np.float64))
    if settings.blur_px:
        counts = ndimage.gaussian_filter(counts.astype(np.float32), (0, settings.blur_px, settings.blur_px))
    if settings.gain or settings.counts_per_electron != 1:
        counts = counts * gain_map
    glow = 30 * max(1.0, settings.dose) * settings.counts_per_electron
    counts[:, hot[0], hot[1]] = camera.poisson(glow, (len(clean), settings.hot_pixels))
    counter = not settings.blur_px and not settings.gain and float(settings.counts_per_electron).is_integer()
    dtype = np.float32 if not counter else np.uint8 if counts.max() < 256 else np.uint16
    return counts.astype(dtype), gain_map.astype(np.float32), np.stack(hot, axis=-1)


def _attrs(
    settings: SimulationSettings, counts: Array, vacuum: Array, events: Array, noise_seed: int
) -> dict[str, Any]:
    written = repr(float(settings.dose)).replace(".", "p")
    expected = "dose * clean"
    if settings.blur_px:
        expected = f"dose * gaussian_filter(clean, {settings.blur_px} px)"
    if settings.gain or settings.counts_per_electron != 1:
        expected += " * gain_map"
    return {
        "name": f"simulated_seed{settings.seed}",
        "px_nm": settings.pixel_size_nm,
        "pixel_size_nm": settings.pixel_size_nm,
        "frame_time_s": settings.frame_time_s,
        "vacuum_level": 1.0,
        "n_events": len(events),
        "vacuum_fraction": round(float(vacuum.mean()), 4),
        "simulation_seed": settings.seed,
        "settings": asdict(settings),
        "noise": [
            {
                "key": f"counts_dose{written}",
                "dose": settings.dose,
                "seed": noise_seed,
                "counts_per_electron": settings.counts_per_electron,
                "expected_value": expected,
                "mean": round(float(counts.mean()), 5),
                "max": float(counts.max()),
            }
        ],
    }
