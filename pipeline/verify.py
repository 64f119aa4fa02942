"""Verify: is a store whole, and does it hold what was written?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr

from . import budget, memory, store
from .blocks import Region
from .config import VerifyConfig
from .control import Control
from .errors import VerificationError


def verify(config: VerifyConfig, control: Control | None = None) -> dict[str, Any]:
    """Check every shard of a movie store or a denoised store.

    By its index (presence, size, checksum of the index), or with ``deep`` by decoding it and comparing the
    content with the hash recorded when it was written.

    Parameters
    ----------
    config : VerifyConfig
    control : Control, optional

    Returns
    -------
    dict
        ``store``, ``n_shards``, ``deep``.

    Raises
    ------
    VerificationError
        If anything is missing, cut, changed or in the wrong place; names the first damaged frames.
    """
    control = control or Control()
    kind = store.read_attributes(config.store)["kind"]
    opened = store.open_store(config.store, store.MOVIE if kind == "movie" else store.DENOISED)
    if links := store.links_in(config.store):
        raise VerificationError(
            f"{links[0]}: is a symbolic link, so what it leads to is not part of the store. Copy the file itself."
        )
    _check_small_arrays(opened)
    n_shards = _verify_array(opened, config.deep, control)
    if opened.attributes.get(store.VARIANCE) is not None:
        n_shards += _verify_array(store.open_store(config.store, store.VARIANCE), config.deep, control)
    return {"store": str(config.store), "n_shards": n_shards, "deep": config.deep}


def _verify_array(opened: store.Store, deep: bool, control: Control) -> int:
    """Check every shard of one array; their number."""
    try:
        hashes = store.recorded_hashes(opened)
    except (OSError, KeyError, ValueError) as error:
        raise VerificationError(f"{opened.path}: its record of hashes is damaged ({error}).") from None
    if store.content_id(opened.name, opened.array, hashes) != opened.id:
        raise VerificationError(f"{opened.path}: its record of hashes was changed.")
    whole = Region(*((0, n) for n in opened.shape))
    regions = list(store.shards_in(whole, opened.geometry.shard))
    damage: list[tuple[Region, str]] = []

    def check(region: Region) -> tuple[Region, str | None]:
        return region, _damage(opened, region, hashes, deep)

    n_threads = memory.verify_threads(opened) if deep else budget.n_cores()
    with ThreadPoolExecutor(n_threads) as pool:
        for number, (region, problem) in enumerate(pool.map(check, regions), start=1):
            control.progress("verify", number, len(regions))
            if problem is not None:
                damage.append((region, problem))
    if damage:
        raise VerificationError(_in_words(opened, damage, len(regions)))
    return len(regions)


def _check_small_arrays(opened: store.Store) -> None:
    """Compare coordinates, maps and the like with their recorded hashes; they are read either way."""
    group = zarr.open_group(opened.path, mode="r")
    for name, digest in opened.attributes.get("arrays", {}).items():
        try:
            problem = (
                None if store.content_hash(group[name][:]) == digest else "holds other data than was written"
            )
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            problem = f"cannot be read ({error})"
        if problem is not None:
            raise VerificationError(
                f"{opened.path}: its array {name!r} {problem}. With --force, {_remedy(opened)}."
            )


def _damage(opened: store.Store, region: Region, hashes: dict[str, str], deep: bool) -> str | None:
    shard, chunk = opened.geometry.shard, opened.geometry.chunk
    starts = (region.frames[0], region.rows[0], region.columns[0])
    index = [str(s // n) for s, n in zip(starts, shard, strict=True)]
    used = int(np.prod([-(-n // c) for n, c in zip(region.shape, chunk, strict=True)]))
    problem = store.shard_damage(opened.path.joinpath(opened.name, "c", *index), shard, chunk, used)
    if problem is not None or not deep:
        return problem
    try:
        content = opened.array[region.slices]
    except (OSError, ValueError, RuntimeError) as error:
        return f"cannot be decoded ({error})"
    return (
        None
        if store.content_hash(content) == hashes[".".join(index)]
        else "holds other data than was written"
    )


def _in_words(opened: store.Store, damage: list[tuple[Region, str]], total: int) -> str:
    region, problem = damage[0]
    more = "" if len(damage) == 1 else f" (the first of {len(damage)})"
    return (
        f"{opened.path}: {len(damage)} of {total} shards of {opened.name!r} are damaged. The one of frames "
        f"{region.frames[0]} to "
        f"{region.frames[1] - 1}, rows {region.rows[0]} to {region.rows[1] - 1}, columns {region.columns[0]} to "
        f"{region.columns[1] - 1} {problem}{more}. With --force, {_remedy(opened)}."
    )


def _remedy(opened: store.Store) -> str:
    return "ingest the raw movie again" if opened.name == store.MOVIE else "apply the model again"
