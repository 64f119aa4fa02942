"""From a raw movie to a denoised Zarr store: readers, stores, plans, steps and the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray

    from .python.denoise import Measured as Measured
    from .python.denoise import denoise as denoise
    from .python.steps import Made as Made
    from .python.steps import Ran as Ran
    from .python.steps import Verified as Verified
    from .python.steps import apply as apply
    from .python.steps import evaluate as evaluate
    from .python.steps import events as events
    from .python.steps import export as export
    from .python.steps import ingest as ingest
    from .python.steps import report as report
    from .python.steps import run as run
    from .python.steps import study as study
    from .python.steps import train as train
    from .python.steps import verify as verify

# What is imported when it is first asked for: torch takes a second, and workers need none of it.
_DENOISE = ("denoise", "Measured")
_STEPS = ("ingest", "train", "apply", "run", "evaluate", "report", "events", "export", "study", "verify")
_MADE = ("Made", "Ran", "Verified")


def open(path: str | Path) -> xarray.Dataset:
    """Open a movie store or a denoised store, with one Dask chunk per shard.

    ``xarray.open_zarr(path)`` opens the same data; its Dask chunks are Zarr's small inner chunks, which makes
    large graphs, and a shard that is lost reads as its fill value. Here every shard that is read is compared with
    the record of what was written, and a store that is replaced meanwhile (``--force``) cannot be read any more:
    open it again.

    Parameters
    ----------
    path : str or Path
        A finished store; or the folder of a run, for its denoised store.

    Returns
    -------
    xarray.Dataset
        ``counts(t, y, x)``, or ``denoised(t, y, x)`` and, if written, ``variance(t, y, x)``, lazily loaded; and
        the small arrays beside it. ``to_netcdf`` writes it: the attribute ``tdenoise``, which is nested in the store,
        is JSON text here, and ``ome``, which tells viewers of the Zarr store, is left out.

    Raises
    ------
    InputError
        If it is damaged; also later, when a shard is read that is not the one that was written.
    """
    from .python.opening import open_lazily

    return open_lazily(path)


class _Step:
    """A step as a function, which is also the way to the modules of the room that has its name."""

    def __init__(self, function: Any, room: str) -> None:
        self.__wrapped__ = function
        self.__name__, self.__doc__, self.__module__ = function.__name__, function.__doc__, __name__
        self.__signature__ = function.__signature__
        self._room = room

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self.__wrapped__(*arguments, **settings)

    def __reduce__(self) -> str:
        return str(self.__name__)  # of this module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self._room not in sys.modules:
            raise AttributeError(name)
        return getattr(sys.modules[self._room], name)

    def __repr__(self) -> str:
        return f"<function {__name__}.{self.__name__}>"


class _Front(ModuleType):
    """This package: an import of a room, such as `apply`, must not take the place of the step of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _STEPS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _DENOISE:
        from .python import denoise as module
    elif name in (*_STEPS, *_MADE):
        from .python import steps as module  # type: ignore[no-redef, unused-ignore]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(module, name)
    found = _Step(found, f"{__name__}.{name}") if name in _STEPS else found
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({"open", *_DENOISE, *_STEPS, *_MADE} | {n for n in globals() if n.startswith("__")})


sys.modules[__name__].__class__ = _Front
if "xarray" in sys.modules:  # else it comes with the engine
    from .python import accessor as _accessor  # noqa: F401
