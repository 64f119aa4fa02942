"""The moving picture of README and documents, made from what `make demo` leaves: `make picture`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 128  # rows and columns that are shown, from the middle [pixels]
ZOOM = 2
GAP = 8  # between the panels [pixels]
TITLE = 18  # height of the line above them [pixels]
LEAD = 4  # the mean is over the frames up to so far away


def panels(counts: NDArray[np.float64], denoised: NDArray[np.float64], t: int) -> list[NDArray[np.float64]]:
    """The raw frame, the mean of the frames around it, and the denoised frame."""
    around = counts[max(t - LEAD, 0) : t + LEAD + 1]
    return [counts[t], around.mean(axis=0), denoised[t]]


def grey(image: NDArray[np.float64], low: float, high: float) -> Image.Image:
    """A panel as large as it is shown."""
    top, left = (image.shape[0] - SIZE) // 2, (image.shape[1] - SIZE) // 2
    cut = image[top : top + SIZE, left : left + SIZE]
    shades = np.clip((cut - low) / (high - low), 0, 1) * 255
    return Image.fromarray(shades.astype(np.uint8)).resize(
        (SIZE * ZOOM, SIZE * ZOOM), Image.Resampling.NEAREST
    )


def main() -> None:
    """Write an animated WebP."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("result", type=Path, help="folder that `run` wrote")
    options.add_argument("output", type=Path, help="WebP file to write")
    options.add_argument("--n-frames", type=int, default=40)
    options.add_argument("--frame-ms", type=int, default=80, help="how long each is shown [ms]")
    chosen = options.parse_args()
    counts = xarray.open_zarr(chosen.result / "movie.zarr")["counts"].values.astype(float)
    denoised = xarray.open_zarr(chosen.result / "denoised.zarr")["denoised"].values.astype(float)
    first = (len(counts) - chosen.n_frames) // 2
    # One scale for the means and the denoised frames; single counts reach much further.
    low, high = np.percentile(denoised, [0.1, 99.9])
    scales = [(0.0, float(np.percentile(counts, 99.9))), (low, high), (low, high)]
    names = ["raw counts, 2 electrons per pixel", f"mean of {2 * LEAD + 1} frames", "tdenoise"]
    width = 3 * SIZE * ZOOM + 2 * GAP
    frames = []
    for t in range(first, first + chosen.n_frames):
        sheet = Image.new("L", (width, SIZE * ZOOM + TITLE), 255)
        draw = ImageDraw.Draw(sheet)
        for number, (image, scale) in enumerate(zip(panels(counts, denoised, t), scales, strict=True)):
            left = number * (SIZE * ZOOM + GAP)
            draw.text((left + 2, 3), names[number], fill=0)
            sheet.paste(grey(image, *scale), (left, TITLE))
        frames.append(sheet.convert("RGB"))
    frames[0].save(
        chosen.output,
        save_all=True,
        append_images=frames[1:],
        duration=chosen.frame_ms,
        loop=0,
        quality=30,
        method=6,
    )
    print(f"{chosen.output}: {chosen.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
