"""``.tdenoise`` of every xarray object: what can be done with the movie in it."""

from __future__ import annotations

from typing import Any

import xarray


@xarray.register_dataarray_accessor("tdenoise")  # type: ignore[no-untyped-call]
@xarray.register_dataset_accessor("tdenoise")  # type: ignore[no-untyped-call]
class Accessor:
    """What tdenoise can do with a movie.

    Parameters
    ----------
    movie : xarray.DataArray or xarray.Dataset
    """

    def __init__(self, movie: xarray.DataArray | xarray.Dataset) -> None:
        self._movie = movie

    def denoise(self, *arguments: Any, **settings: Any) -> Any:
        """Denoise the movie; see `tdenoise_pipeline.denoise` for all arguments.

        Returns
        -------
        xarray.DataArray or xarray.Dataset
            The same kind, with the same coordinates.
        """
        from .denoise import denoise  # torch takes a second

        return denoise(self._movie, *arguments, **settings)
