"""Pictures of movies: what is drawn is what was measured, and nothing covers it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from small import counts
from stores import denoised_store, movie_store
from tdenoise_pipeline.errors import UsageError
from tdenoise_pipeline.pictures import contrast, video
from tdenoise_pipeline.pictures.panels import Footage, follow, shrink
from tdenoise_pipeline.pictures.rendering import plan_sheet, render
from tdenoise_pipeline.pictures.sheet import Sheet, montage
from tdenoise_pipeline.store.blocks import Region


def shades(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def inside(sheet: np.ndarray, panel: np.ndarray) -> tuple[int, int]:
    """Where a panel lies on a sheet, whole."""
    height, width = panel.shape
    rows, columns = (range(n - m + 1) for n, m in zip(sheet.shape, panel.shape, strict=True))
    found = [
        (y, x) for y in rows for x in columns if sheet[y, x] == panel[0, 0]
        and np.array_equal(sheet[y : y + height, x : x + width], panel)
    ]  # fmt: skip
    (place,) = found
    return place


def test_titles_scale_bar_and_time_hide_nothing() -> None:
    made = Sheet((350, 340), ("raw", "denoised"), 0.02, "nm")
    panels = [shades((350, 340), seed) for seed in (1, 2)]
    sheet = made.draw(panels, "12.34 s")
    assert sheet.shape == made.shape
    (top, left), (other_top, other_left) = (inside(sheet, panel) for panel in panels)
    assert top == other_top and other_left > left + 340
    around = sheet.copy()
    around[top : top + 350, left : left + 340] = around[top : top + 350, other_left : other_left + 340] = 255
    assert (around[:top] < 128).any() and (
        around[top + 350 :] < 128
    ).any()  # titles above, bar and time below
    assert (around[top : top + 350] == 255).all()
    later = made.draw(panels, "12.36 s")
    changed = np.argwhere(sheet != later)
    assert len(changed) and (changed[:, 0] >= top + 350).all()


@pytest.mark.parametrize(
    ("panel", "pixel"), [((100, 80), 0.0141), ((400, 400), 0.3), ((999, 640), 25.0), ((1200, 1000), 0.05)]
)
def test_the_scale_bar_is_as_long_as_it_says(panel: tuple[int, int], pixel: float) -> None:
    made = Sheet(panel, ("",), pixel, "nm", clock=False, at_most=(700, 700))
    below = made.draw([np.full([n // made.averaged for n in panel], 255, np.uint8)])
    rows = np.argwhere((below == 0).sum(axis=1) > 20)[:, 0]
    bar = np.flatnonzero((below[rows] == 0).all(axis=0))
    length = (
        np.diff(np.flatnonzero(np.diff(bar) > 1), prepend=-1)[0] if (np.diff(bar) > 1).any() else len(bar)
    )
    shown = length * pixel * made.averaged / made.enlarged
    mantissa = shown / 10 ** np.floor(np.log10(shown))
    step = pixel * made.averaged / made.enlarged / shown  # one pixel of the sheet
    assert min(abs(mantissa / whole - 1) for whole in (1, 2, 5, 10)) <= step


def test_small_frames_are_enlarged_and_large_ones_averaged_by_whole_numbers() -> None:
    small, large = Sheet((96, 50), ("",)), Sheet((4096, 4096), ("a", "b"), at_most=(2304, 4096), even=True)
    assert (small.enlarged, small.averaged) == (4, 1)
    assert (large.enlarged, large.averaged) == (1, 3)
    height, width = large.shape
    assert height <= 2304 and width <= 4096 and height % 2 == width % 2 == 0
    bare = Sheet((96, 50), ("",), scale_bar=False, clock=False)
    assert np.array_equal(bare.draw([shades((96, 50))]), shades((96, 50)).repeat(4, 0).repeat(4, 1))


def test_averaging_is_of_counts_and_not_of_shades(tmp_path: Path) -> None:
    frames = np.zeros((3, 8, 8), np.uint8)
    frames[:, ::2, ::2] = 40  # a quarter of the pixels: shown white, they would count less
    movie = movie_store(tmp_path / "movie.zarr", frames + counts((3, 8, 8)) % 2)
    footage = Footage(movie, None, Region((0, 3), (0, 8), (0, 8)))
    made = plan_sheet(footage, ["raw"], scale_bar=False, clock=False)
    made = Sheet((8, 8), ("",), scale_bar=False, clock=False, at_most=(4 * made.enlarged, 4 * made.enlarged))
    assert made.averaged == 2
    (_, picture), *_ = render(footage, ["raw"], made, (0.0, 20.0)).pictures()
    expected = np.rint(shrink(movie.array[0].astype(float), 2) / 20 * 255)
    assert np.array_equal(picture[:: made.enlarged, :: made.enlarged], expected.clip(0, 255))


def test_pixels_without_a_number_are_hatched_and_not_filled() -> None:
    frame = np.full((32, 32), 5.0)
    frame[:, 16:] = np.nan
    shown = contrast.grey(frame, contrast.Limits(0, 10))
    assert (shown[:, :16] == 128).all()
    assert set(np.unique(shown[:, 16:]).tolist()) == {96, 224}
    assert len({tuple(row) for row in shown[:8, 16:].tolist()}) == 8  # lines that run aslant


def test_limits_of_a_movie_without_contrast_differ(tmp_path: Path) -> None:
    flat = np.full((8, 16, 16), 3, np.uint8)
    flat[0, 0, 0] = 4
    movie = movie_store(tmp_path / "movie.zarr", flat)
    footage = Footage(movie, None, Region((0, 8), (0, 16), (0, 16)))
    assert contrast.measure(footage, ["raw"])["raw"] == contrast.Limits(3, 4)


def test_limits_see_every_column(tmp_path: Path) -> None:
    """Samples at a distance that divides the width would come from some columns only."""
    frames = counts((4, 512, 512)) % 2
    frames[:, :, 1::2] += 100
    movie = movie_store(tmp_path / "movie.zarr", frames.astype(np.uint8))
    footage = Footage(movie, None, Region((0, 4), (0, 512), (0, 512)))
    found = contrast.measure(footage, ["raw"])["raw"]
    assert found.low <= 1 and found.high >= 100


def test_footage_of_any_part_is_that_of_the_whole(tmp_path: Path) -> None:
    movie = movie_store(tmp_path / "movie.zarr", counts((30, 20, 24)))
    smooth = np.random.default_rng(1).random((30, 20, 24)).astype(np.float32)
    denoised = denoised_store(tmp_path / "denoised.zarr", movie, smooth)
    smooth = denoised.array[:]
    panels = ["raw", "mean9", "denoised", "difference"]
    whole = dict(Footage(movie, denoised, Region((0, 30), (0, 20), (0, 24))).frames(panels))
    part = dict(Footage(movie, denoised, Region((7, 27), (3, 18), (5, 6))).frames(panels))
    assert list(part) == list(range(7, 27)) and list(whole) == list(range(30))
    for k, shown in part.items():
        assert list(shown) == panels
        for name, frame in shown.items():
            assert np.array_equal(frame, whole[k][name][3:18, 5:6]), (k, name)
        assert np.array_equal(whole[k]["denoised"], smooth[k])


def test_following_a_scene_keeps_what_all_frames_show() -> None:
    moved = np.array([[0.0, 0.0], [1.4, -0.6], [2.6, -2.2], [-1.0, 3.0]])
    region, shifts = follow(moved, Region((0, 3), (0, 20), (0, 30)), (4, 20, 30))
    assert shifts.tolist() == [[0, 0], [1, -1], [3, -2], [-1, 3]]
    assert region == Region((0, 3), (0, 17), (2, 30))
    # Frames that are averaged with those shown count, too.
    region, _ = follow(moved, Region((0, 3), (0, 20), (0, 30)), (4, 20, 30), averaged=True)
    assert region == Region((0, 3), (1, 17), (2, 27))
    with pytest.raises(UsageError, match="no part of it is in all of these frames"):
        follow(moved, Region((0, 3), (18, 20), (0, 30)), (4, 20, 30))


def test_a_montage_leaves_paper_where_there_is_no_sheet() -> None:
    sheets = [np.full((2, 3), n, np.uint8) for n in (1, 2, 3)]
    made = montage(sheets, 2)
    assert made.shape == (4, 6) and made[3, 5] == 255 and made[3, 0] == 3


def test_a_video_needs_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(ValueError, match="needs a picture"):
        video.write_h264(tmp_path / "a.mp4", [], Fraction(25))
