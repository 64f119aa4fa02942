"""The counts have the last word: what is given back to a draft, and how a run that is killed meanwhile goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from small import TINY, counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.apply.given_back import MAPS, Given
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.inputs.model_fit import movie_drift
from tdenoise_pipeline.settings.config import ApplyConfig, VerifyConfig
from tdenoise_pipeline.store import store
from tdenoise_pipeline.workflow.repair import repair as mend

from tdenoise.inference import last_word
from tdenoise.inference.evidence import Evidence, GivenBack, corners
from tdenoise.inference.last_word import (
    STRETCH,
    NoiseOfShown,
    give_back,
    give_back_briefly,
    give_back_what_stands_out,
)

LATER = STRETCH + 6  # frames of the last stretch of the movie


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A movie and a model whose weights are random: the counts refute all that it says.

    Something is there in the second of two stretches only.
    """
    folder = tmp_path_factory.mktemp("sources")
    y, x = np.ogrid[:48, :64]
    column = 6.0 * np.exp(-((y - 24) ** 2 + (x - 30) ** 2) / (2 * 2.5**2))
    appearing = np.random.default_rng(5).poisson(column, (LATER, 48, 64))
    movie = counts((STRETCH + LATER, 48, 64))
    movie[STRETCH:] += appearing.astype(movie.dtype)
    return movie_store(folder, movie), model_folder(folder / "model")


def config(sources: tuple[Path, Path], output: Path, **settings: object) -> ApplyConfig:
    chosen = {"ensemble": 1, "share": "0/1", "lossless": True, **settings}
    return ApplyConfig(movie=sources[0], model=sources[1], output=output, **chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The movie denoised in blocks of whole frames."""
    output = tmp_path_factory.mktemp("whole") / "d.zarr"
    apply(config(sources, output))
    return output


def test_what_is_given_back_follows_from_draft_and_counts(
    sources: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    apply(config(sources, tmp_path / "draft.zarr", draft_only=True))
    draft = xr.open_zarr(tmp_path / "draft.zarr")["denoised"].values
    result, recorded = xr.open_zarr(whole), xr.open_zarr(sources[0])["counts"].values
    drift = movie_drift(store.open_store(sources[0], store.MOVIE), TINY)
    assert drift is not None  # so it is summed as the scene moves
    places, scene = corners(drift, len(draft), draft.shape[1:])
    levels = xr.open_zarr(sources[0])["frame_level"].values
    assert np.ptp(levels) > 0.01

    def summed(frames: slice) -> Evidence:
        sums = Evidence.empty(scene)
        parts = zip(recorded[frames], draft[frames], levels[frames], places[frames], strict=True)
        for y, f, level, place in parts:
            sums.add(y, f, level, tuple(place))
        return sums

    def changed(given: GivenBack, shown: np.ndarray, frames: slice) -> np.ndarray:
        parts = zip(recorded[frames], shown[frames], levels[frames], places[frames], strict=True)
        return np.stack([given.to_frame(y, f, level, tuple(place)) for y, f, level, place in parts])

    given = give_back(summed(slice(None)))
    expected = changed(given, draft, slice(None))
    for stretch in (slice(0, STRETCH), slice(STRETCH, None)):
        besides = give_back_what_stands_out(summed(stretch).after(given), n_looks=2)
        expected[stretch] = changed(besides, expected, stretch)
    told = result["given_back"].attrs
    assert told["noise_factor"] > 1 and told["noise_offset"] == 0  # what was removed is more than noise
    for first in range(0, len(draft), 32):
        frames = slice(first, first + 32)
        noise = NoiseOfShown(told["noise_factor"], 0.0)
        n_looks = float(len(draft))
        give_back_briefly(
            recorded[frames],
            expected[frames],
            levels[frames, None, None],
            places[frames],
            noise,
            n_looks=n_looks,
        )
    np.testing.assert_allclose(result["denoised"].values, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(result["given_back"].values, given.mean, rtol=1e-3, atol=1e-4)
    # Before, the mean of what was removed was anything; now it is nearly noise.
    before, after = (np.abs((recorded - f).mean(axis=0)).mean() for f in (draft, result["denoised"].values))
    noise = np.sqrt(2 / np.pi * recorded.mean() / len(recorded))
    assert before > 2 * noise and after < 1.4 * noise
    # What is there in one stretch only is shown there, as the counts have it.
    there = np.ix_(range(22, 27), range(28, 33))
    for stretch in (slice(0, STRETCH), slice(STRETCH, None)):
        shown, counted = (
            m[stretch].mean(axis=0)[there].mean() for m in (result["denoised"].values, recorded)
        )
        assert abs(shown - counted) < 0.1 * counted


def test_tiles_are_given_back_what_the_whole_is(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is there for a few frames only is looked for within a shard, so near its border it may differ.
    monkeypatch.setattr(last_word, "BRIEF", ())
    apply(config(sources, tmp_path / "whole.zarr"))
    apply(config(sources, tmp_path / "d.zarr", tile=32))
    paths = tmp_path / "d.zarr", tmp_path / "whole.zarr"
    found, expected = (xr.open_zarr(path)["denoised"].values for path in paths)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("point", ["given_back.known", "shard.checked", "given_back.marked", "finish.hashes"])
def test_a_run_that_is_killed_while_it_gives_back_goes_on_to_the_same_bytes(
    point: str, sources: tuple[Path, Path], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "d.zarr"
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", "apply", str(sources[0]), "-o", str(output)]
    command += ["--model", str(sources[1]), "--ensemble", "1", "--share", "0/1", "--lossless", "-q"]
    monkeypatch.setenv("TDENOISE_CRASH", point)
    assert subprocess.run(command, capture_output=True).returncode not in (0, 1, 2)
    monkeypatch.delenv("TDENOISE_CRASH")
    assert not output.exists()
    apply(config(sources, output))
    files = [p.relative_to(whole) for p in sorted((whole / "denoised").rglob("*")) if p.is_file()]
    assert len(files) > 3 and all((output / f).read_bytes() == (whole / f).read_bytes() for f in files)
    verify(VerifyConfig(store=output, deep=True))
    assert [p.name for p in tmp_path.iterdir()] == ["d.zarr"]


def test_a_repair_gives_back_what_was_given_back_before(
    sources: tuple[Path, Path], whole: Path, tmp_path: Path, workers: str
) -> None:
    output = tmp_path / "d.zarr"
    apply(config(sources, output, share=None, workers=workers))
    before = xr.open_zarr(output)["denoised"].values
    victim = next(p for p in sorted((output / "denoised" / "c").rglob("*")) if p.is_file())
    sound = victim.read_bytes()
    victim.write_bytes(sound[:-30])
    repair = VerifyConfig(
        store=output, repair=True, movie=sources[0], model=sources[1], workers=workers, deep=True
    )
    assert mend(repair)["repaired"] == 1
    np.testing.assert_array_equal(xr.open_zarr(output)["denoised"].values, before)
    # Without the maps nothing fits together, and all is made anew: it is the same again.
    assert (output / "given_back_later").is_dir()
    (output / "given_back_later" / "c" / "1" / "0" / "0").unlink()
    assert mend(repair)["repaired"] >= 1
    np.testing.assert_array_equal(xr.open_zarr(output)["denoised"].values, before)


def test_a_draft_is_left_as_it_is(sources: tuple[Path, Path], tmp_path: Path) -> None:
    made = apply(config(sources, tmp_path / "d.zarr", draft_only=True))
    assert made["settings"]["gives_back"] is False
    assert Given.read(tmp_path / "d.zarr") is None
    assert not set(MAPS) & set(store.open_store(tmp_path / "d.zarr", store.DENOISED).attributes["arrays"])


def test_frames_that_were_not_recorded_change_no_other_and_are_marked(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    """A blank, a repeated and a NaN frame; the level of the beam is 30 % lower in the second half."""
    rng = np.random.default_rng(0)
    frames = counts((60, 48, 64), dose=6.0).astype(np.float32)
    frames[30:] = rng.binomial(frames[30:].astype(int), 0.7)
    spoilt = frames.copy()
    spoilt[10], spoilt[21], spoilt[40, 5, 7] = 0, spoilt[20], np.nan
    results = {}
    for name, raw in (("sound", frames), ("spoilt", spoilt)):
        movie = movie_store(tmp_path / name, raw)
        apply(config((movie, sources[1]), tmp_path / f"{name}.zarr", draft_only=True))
        results[name] = xr.open_zarr(tmp_path / f"{name}.zarr")
    valid = results["spoilt"]["frame_valid"].values
    assert np.flatnonzero(~valid).tolist() == [10, 21, 40]
    assert results["sound"]["frame_valid"].values.all()
    levels = results["sound"]["frame_level"].values
    assert 0.66 < levels[35:].mean() / levels[:25].mean() < 0.74
    sound, found = (results[name]["denoised"].values for name in ("sound", "spoilt"))
    assert np.isfinite(found).all()
    # Far from them nothing changes but the scale that is measured; the window of this model is three frames.
    far = [t for t in range(60) if min(abs(t - s) for s in (10, 21, 40)) > 3]
    np.testing.assert_allclose(found[far], sound[far], rtol=0.02, atol=0.05)
    with xr.open_zarr(tmp_path / "spoilt.zarr") as opened:
        assert "frame_level" in opened["denoised"].coords and "frame_valid" in opened["denoised"].coords


def test_a_stretch_without_any_frame_is_nan_and_said_to_be_lost(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    frames = counts((60, 48, 64)).astype(np.float32)
    frames[20:40] = np.nan  # the model sees three frames on each side
    movie = movie_store(tmp_path, frames)
    apply(config((movie, sources[1]), tmp_path / "d.zarr"))
    result = xr.open_zarr(tmp_path / "d.zarr")["denoised"]
    lost = np.isnan(result.values).all(axis=(1, 2))
    assert 10 <= lost.sum() <= 20 and not result["frame_valid"].values[lost].any()
    assert np.isfinite(result.values[~lost]).all()
    verify(VerifyConfig(store=tmp_path / "d.zarr", deep=True))
