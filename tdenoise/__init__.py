"""Self-supervised denoising of electron microscopy movies: functions on arrays, no files, no clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdenoise_pipeline import denoise as denoise  # type: ignore[import-not-found, unused-ignore]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The one way up, and only when it is gone: to denoise a movie takes what ingest and apply do.
    if name == "denoise":
        import tdenoise_pipeline

        return tdenoise_pipeline.denoise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["__doc__", "__file__", "__name__", "__version__", "denoise"]
