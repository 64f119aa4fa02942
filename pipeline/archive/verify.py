"""Verify: is a store whole, and does it hold what was written?"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import xxhash
import zarr

from tdenoise.files.atomic import is_sealed
from tdenoise.files.json_documents import parse_json

from ..errors import VerificationError
from ..resources import budget, memory
from ..settings.result_settings import VerifyConfig
from ..step_control import Control
from ..store import foreign, integrity, store
from ..store.blocks import Region
from ..store.shards import look_at, n_chunks, shard_key, shards_in
from ..store.store_attributes import StoreAttributes

METADATA = "zarr.json"
MOST_MISSING = 10_000  # shards that metadata announce for each one that is there


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a store."""

    what: str  # a sentence without its end
    array: str | None = None  # whose shard it is
    key: str | None = None  # of the shard


@dataclass(frozen=True)
class Findings:
    """What a look at a store found."""

    kind: str  # movie or denoised
    n_shards: int
    damage: list[Damage]
    sound: dict[str, dict[str, str]]  # hashes of the shards of every array that are as they were written
    attributes: dict[str, Any]  # as they were written, from whichever copy is sound


def verify(config: VerifyConfig, control: Control | None = None) -> dict[str, Any]:
    """Check every file of a movie store or a denoised store.

    Shards by their index (presence, size, checksum of the index), or with ``deep`` by decoding them and comparing
    the content with the hash recorded when they were written; all other files by their sha256 either way.

    Parameters
    ----------
    config : VerifyConfig
    control : Control, optional

    Returns
    -------
    dict
        ``store``, ``n_shards``, ``deep``, ``repaired`` (the number of things that were wrong).

    Raises
    ------
    VerificationError
        If anything is missing, cut, changed, too much or in the wrong place; names the first damaged frames.
    """
    control = control or Control()
    if links := foreign.links_in(config.store):
        raise VerificationError(
            f"{links[0]}: is a symbolic link, so its target is not part of the store. Copy the file itself."
        )
    found = inspect(config.store, config.deep, control)
    if found.damage:
        raise VerificationError(in_words(config.store, found))
    return {"store": str(config.store), "n_shards": found.n_shards, "deep": config.deep, "repaired": 0}


def inspect(path: Path, deep: bool, control: Control) -> Findings:
    """Look at every file of a store.

    Raises
    ------
    InputError
        If it is no store of this project at all.
    VerificationError
        If its metadata are damaged so much that nothing else can be said.
    """
    attributes, damage = _attributes(path)
    kind = attributes["kind"]
    name = store.MOVIE if kind == "movie" else store.DENOISED
    changed = _small_files(path, attributes)
    damage += changed.values()
    names = [name, *([store.VARIANCE] if attributes.get(store.VARIANCE) is not None else [])]
    names += attributes.get(store.PYRAMID, {})
    sound: dict[str, dict[str, str]] = {}
    n_shards = 0
    for each in names:
        if any(file == f"{each}/{METADATA}" or file.startswith(f"integrity/{each}/") for file in changed):
            continue  # said already; what they say of shape and hashes cannot be relied on
        try:
            opened = _open(path, each, attributes)
        except integrity.UNREADABLE as error:
            damage.append(Damage(f"the metadata of its array {each!r} are damaged ({error}) (all frames)"))
            continue
        found, n_found, sound[each] = _array(opened, deep, control)
        n_shards += n_found
        damage += found
    damage += [Damage(f"{file} was not written by tdenoise") for file in _foreign(path, attributes)]
    return Findings(kind, n_shards, damage, sound, attributes)


def in_words(path: Path, found: Findings) -> str:
    """What is wrong with a store, the first thing in full."""
    more = "" if len(found.damage) == 1 else f" (the first of {len(found.damage)})"
    source = "--raw RAW" if found.kind == "movie" else "--movie MOVIE.zarr --model MODEL"
    of_shards = [d for d in found.damage if d.key is not None]
    count = ""
    if of_shards:
        count = f"{len(of_shards)} of {found.n_shards} shards of {of_shards[0].array!r} are damaged. "
    return f"{path}: {count}{found.damage[0].what}{more}. To repair it: verify {path.name} --repair {source}."


def _attributes(path: Path) -> tuple[dict[str, Any], list[Damage]]:
    """The ``tdenoise`` attributes of a store; from the copy beside the hashes where those of the root are damaged."""
    file, spare = path / METADATA, path / "integrity" / METADATA
    if not spare.exists() or (file.exists() and is_sealed(file.read_bytes())):
        return store.read_attributes(path), []
    what = f"{METADATA} of its root {'was changed' if file.exists() else 'is missing'}"
    try:
        attributes = parse_json(spare.read_bytes())["attributes"]["tdenoise"]
        if attributes["kind"] in ("movie", "denoised"):
            return attributes, [Damage(f"{what} (all frames)")]
    except integrity.UNREADABLE:
        pass
    raise VerificationError(f"{path}: {what}, and so was its copy. Write the store again with --force.")


def _open(path: Path, name: str, attributes: dict[str, Any]) -> store.Store:
    """An array of a store whose root may be damaged."""
    foreign.check_codecs(parse_json((path / name / METADATA).read_bytes())["codecs"])
    array = zarr.open_array(path / name, mode="r", zarr_format=3)
    if array.shards is None:
        raise ValueError("it has no shards")
    known = cast(StoreAttributes, attributes)
    return store.Store(path, name, array, known, "", store.Coordinates(None, None))


def _small_files(path: Path, attributes: dict[str, Any]) -> dict[str, Damage]:
    """Compare everything but the shards with the recorded sha256; what is wrong, by file."""
    found = {}
    for name, digest in attributes.get("files", {}).items():
        array = name.partition("/")[0]
        of_hashes = array == "integrity"
        what = "its record of hashes" if of_hashes else f"its array {array!r}"
        if name.endswith(METADATA):
            what = f"{name} of {what}" if not of_hashes else f"{name}, part of {what},"
        try:
            data = (path / name).read_bytes()
        except OSError as error:
            problem = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
            found[name] = Damage(f"{what} {problem} (all frames)")
            continue
        if hashlib.sha256(data).hexdigest() != digest:
            verb = "was changed" if of_hashes else "holds other data than was written"
            found[name] = Damage(f"{what} {verb} (all frames)")
    return found


def _array(opened: store.Store, deep: bool, control: Control) -> tuple[list[Damage], int, dict[str, str]]:
    """Check every shard of one array: damage, number of shards, and the hashes of those that are sound."""
    n_shards = math.prod(-(-n // s) for n, s in zip(opened.shape, opened.geometry.shard, strict=True))
    files = (opened.path / opened.name / "c").glob("*/*/*")
    n_files = sum(1 for _ in itertools.islice(files, n_shards // MOST_MISSING))
    if n_shards > MOST_MISSING * (n_files + 1):  # else they would be listed, one by one
        return (
            [Damage(f"its metadata list {n_shards} shards, but {n_files} are there (all frames)")],
            n_files,
            {},
        )
    whole = Region(*((0, n) for n in opened.shape))
    regions = list(shards_in(whole, opened.geometry.shard))
    try:
        hashes, marks = (
            integrity.recorded_hashes(opened.path, opened.name),
            integrity.recorded_marks(opened.path, opened.name),
        )
    except integrity.UNREADABLE as error:
        return [Damage(f"its record of hashes is damaged ({error})")], len(regions), {}
    if integrity.content_id(opened.name, opened.array, hashes) != opened.id:
        return [Damage("its record of hashes was changed")], len(regions), {}
    damage: list[Damage] = []

    def check(region: Region) -> tuple[Region, str | None]:
        control.check("verify")
        return region, _shard(opened, region, hashes, marks, deep)

    n_threads = memory.verify_threads(opened) if deep else budget.n_cores()
    # Each of ours asks for one chunk after the other; more threads of Zarr's would but hold memory of their own.
    with zarr.config.set({"threading.max_workers": n_threads}), ThreadPoolExecutor(n_threads) as pool:
        for number, (region, problem) in enumerate(pool.map(check, regions), start=1):
            control.progress("verify", number, len(regions))
            key = shard_key(region, opened.geometry.shard)
            if problem is not None:
                del hashes[key]
                damage.append(Damage(f"The one of {_extent(region)} {problem}", opened.name, key))
    return damage, len(regions), hashes


def _shard(
    opened: store.Store, region: Region, hashes: dict[str, str], marks: dict[str, int], deep: bool
) -> str | None:
    shard, chunk = opened.geometry.shard, opened.geometry.chunk
    key = shard_key(region, shard)
    file = opened.path.joinpath(opened.name, "c", *key.split("."))
    if file.is_symlink():
        return "is a link to another file"
    problem, mark = look_at(file, shard, chunk, n_chunks(region, chunk))
    if problem is None and not deep and marks.get(key, mark) != mark:
        problem = "holds other data than was written"
    if problem is not None or not deep:
        return problem
    # A few frames at a time: a shard may be larger than what a thread should hold.
    content = xxhash.xxh3_128()
    step = memory.verify_frames(opened)
    for first in range(*region.frames, step):
        frames = slice(first, min(first + step, region.frames[1]))
        try:
            content.update(np.ascontiguousarray(opened.array[(frames, *region.slices[1:])]).data)
        except integrity.UNREADABLE as error:
            return f"cannot be decoded at frames {frames.start} to {frames.stop - 1} ({error})"
    return None if content.hexdigest() == hashes[key] else "holds other data than was written"


def _extent(region: Region) -> str:
    (t0, t1), (y0, y1), (x0, x1) = region.frames, region.rows, region.columns
    return f"frames {t0} to {t1 - 1}, rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}"


def _foreign(path: Path, attributes: dict[str, Any]) -> Iterator[str]:
    """Files that do not belong to a store."""
    known = attributes.get("files")
    if known is None:
        return  # of the copy; the root's list of files is what was damaged
    for name in integrity.small_files(path):
        if name != METADATA and name not in known:
            yield name
    for file in integrity.sharded_metadata(path):
        grid = integrity.recorded_grid(file)
        chunks = file.parent / "c"
        for inner in chunks.rglob("*"):
            position = inner.relative_to(chunks).parts
            if grid is None or inner.is_dir():
                continue
            if not (
                len(position) == 3
                and all(part.isdigit() and str(int(part)) == part for part in position)
                and all(int(part) < n for part, n in zip(position, grid, strict=True))
            ):
                yield inner.relative_to(path).as_posix()
