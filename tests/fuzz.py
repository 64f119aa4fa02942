"""Damage raw files at random and see that every reader answers with a movie or with one sentence.

    python tests/fuzz.py --n 10000                 all families of formats
    python tests/fuzz.py --n 10000 --family mrc

Seeds are small files that the tests write, and the real ones of the shared collection where it is at hand.
A violation is an end of the process, an answer that takes over 8 s of processor time or 500 MB, a minute in which
nothing is done (on a busy machine the wall clock alone tells nothing), an error that is not an ``InputError`` of one
line, a warning, an allocation that a header asked for, a file that was cut and is read as anything but the frames that
are left, or one that changes while it is read. Some of what can be read is ingested, too: numbers that no camera gives
reach all that is measured on a movie.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from array_files import SEEDS, ask_forked
from numpy.typing import NDArray
from raw_files import COUNT_WRITERS, WRITERS, movie, write_capture, write_clock, write_folder, write_tvips
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import InputError, PipelineError
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.readers import FORMATS, ZARR, hdf5, open_raw, video
from tdenoise_pipeline.settings.config import IngestConfig, VerifyConfig

COLLECTION = Path(__file__).parents[1].parent / "shared/data/formats"
SECONDS, MEGABYTES = 8, 500  # for one answer; of the processor
HANG_SECONDS = 60  # on the wall clock, in which a trial does not use the processor; or of the processor
INGESTED = 0.12  # of the files that can be read
LARGEST_SEED = 400_000  # bytes
LARGEST_READ = 2**28  # bytes; of a movie that claims to be larger, the first and the last frame are read
HEADER = 1024  # bytes; half of all damage is done here
NUMBERS = (0, 1, 2, -1, -2, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63))
REALS = (float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e20, 1e-40, 1e300, -0.0)
UNCOUNTED = {"tvips"}  # formats that do not say how many frames there are: cut between two, nobody can tell
FAMILIES = tuple(dict.fromkeys([*(format.module for format in FORMATS), ZARR.module, "gatan", "sequence"]))


class Seed(NamedTuple):
    """A folder with the files of one movie, and what to open in it."""

    family: str
    folder: Path
    opened: str


def make_seeds(folder: Path, family: str, collection: Path = COLLECTION) -> list[Seed]:
    """Write movies of one family of formats below ``folder``, and copy the small real ones there."""
    data = movie("<u2", (6, 18, 16))
    seeds = []
    for number, (name, write) in enumerate({**WRITERS, **COUNT_WRITERS}.values()):
        if _family(name) == family:
            seeds.append(Seed(family, folder / f"written_{number}", name))
            seeds[-1].folder.mkdir(parents=True)
            write(seeds[-1].folder / name, data)
    for number, (name, write) in enumerate(SEEDS.get(family, [])):
        seeds.append(Seed(family, folder / f"array_{number}", name))
        seeds[-1].folder.mkdir(parents=True)
        write(seeds[-1].folder / name, data)
    if family == "tvips":
        seeds.append(Seed(family, folder / "parts", "a_000.tvips"))
        seeds[-1].folder.mkdir()
        write_tvips(folder / "parts/a_000.tvips", data, parts=3)
    if family == "gatan":
        seeds += [Seed(family, folder / "raw", "cap 1.dm4"), Seed(family, folder / "clock", ".")]
        write_capture(folder / "raw", data, (500, 1300))
        write_clock(folder / "clock", data, per_second=4)
    if family == "sequence":
        for suffix in ("tif", "dm4", "npy"):
            seeds.append(Seed(family, folder / suffix, "."))
            write_folder(folder / suffix, data, f"frame_{{}}.{suffix}")
    for number, entry in enumerate(_real_movies(collection)):
        name = Path(entry["file"]).name
        if _family(name) == family:
            seeds.append(Seed(family, folder / f"real_{number}", name))
            seeds[-1].folder.mkdir(parents=True)
            for file in (entry["file"], *entry["with_files"]):
                shutil.copyfile(collection / file, seeds[-1].folder / Path(file).name)
    return seeds


def _family(name: str) -> str:
    return next(format.module for format in FORMATS if Path(name).suffix.lower() in format.suffixes)


def _real_movies(collection: Path) -> Iterator[dict[str, Any]]:
    if not (collection / "index.json").is_file():
        return
    for entry in json.loads((collection / "index.json").read_text()):
        path = collection / entry["file"]
        small = path.is_file() and path.stat().st_size <= LARGEST_SEED
        if small and entry["kind"].startswith("movie") and not entry["file"].startswith("gatan_is/"):
            yield entry


def damage(rng: random.Random, content: bytes) -> tuple[bytes, bool]:
    """Change the content of a file; say whether it was only cut."""
    raw = bytearray(content)
    if rng.random() < 0.2:
        return bytes(raw[: rng.randrange(len(raw))]), True
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(min(len(raw), HEADER) if rng.random() < 0.5 else len(raw))
        kind = rng.randrange(5)
        if kind == 0:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((2, 4, 8))
            at -= at % size if rng.random() < 0.7 else 0
            value = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.choice((len(raw), len(raw) + 1))
            order = rng.choice(("little", "big"))
            number = (value % 2 ** (8 * size)).to_bytes(size, order)
            if size > 2 and rng.random() < 0.3:
                real = rng.choice(REALS)
                layout = "f" if size == 4 and not 1e39 < abs(real) < float("inf") else "d"
                number = struct.pack(("<" if order == "little" else ">") + layout, real)
            raw[at : at + len(number)] = number[: len(raw) - at]
        elif kind == 3:
            raw[at : at + rng.randrange(1, 64)] = b""
        else:
            other = rng.randrange(len(raw))
            raw[at:at] = raw[other : other + rng.randrange(1, 64)]
        if not raw:
            return b"", False
    return bytes(raw), False


def trial(number: int, seed: Seed, place: Path) -> str:
    """Damage one file of a seed and read it twice; return what came of it: a count, or a violation."""
    rng = random.Random(f"{seed.family} {number}")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(seed.folder, place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    opened = place / seed.opened
    victim = opened if opened.is_file() and rng.random() < 0.8 else rng.choice(files)
    content, cut = damage(rng, victim.read_bytes())
    victim.write_bytes(content)
    whole = None
    if cut and seed.family not in UNCOUNTED:
        whole = _read(seed.folder / seed.opened, False)[0]
    answers = []
    for allow_truncated in (False, True):
        memory = _peak()
        try:
            with warnings.catch_warnings(record=True) as warned, _limit():
                warnings.simplefilter("always")
                data, missing = _read(opened, allow_truncated)
            if warned:
                return f"violation: a warning ({warned[0].message})"
        except _TooSlow as error:
            return f"violation: {error}"
        except InputError as error:
            answers.append("refused")
            if problem := _bad_refusal(error, place):
                return f"violation: {problem}"
        except Exception as error:  # noqa: BLE001  whatever it is, it is a violation
            return f"violation: {type(error).__name__} ({error})"
        else:
            answers.append("read")
            if whole is not None and (problem := _wrong(data, missing, whole, allow_truncated)):
                return f"violation: {problem}"
        if _peak() - memory > MEGABYTES:
            return f"violation: {_peak() - memory:.0f} MB"
    if answers[-1] == "read" and data.nbytes < LARGEST_SEED and rng.random() < INGESTED:
        problem = _ingest(opened, place.with_name(f"{place.name}-out"), victim, content)
        if problem is not None:
            return f"violation: {problem}"
    return "salvaged" if answers == ["refused", "read"] else answers[0]


class _TooSlow(BaseException):
    """Not an ``Exception``: nothing on the way may take it for its own."""


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    """End what takes too much of the processor, and say where it was."""

    def too_slow(number: int, frame: Any) -> None:
        code = frame.f_code
        raise _TooSlow(
            f"over {SECONDS} s of processor time, in {code.co_name} of {Path(code.co_filename).name}"
        )

    before = signal.signal(signal.SIGPROF, too_slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _ingest(opened: Path, folder: Path, victim: Path, content: bytes) -> str | None:
    """What is wrong with how a movie is ingested and verified; None if nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with warnings.catch_warnings(record=True) as warned, _limit():
            warnings.simplefilter("always")
            config = IngestConfig(raw=opened, output=folder / "movie.zarr", allow_truncated=True)
            attributes = ingest(config)
            verify(VerifyConfig(store=config.output, deep=True))
            json.dumps(attributes, allow_nan=False)
    except _TooSlow as error:
        return f"ingest: {error}"
    except PipelineError as error:
        if error.exit_code == 1 or "\n" in str(error):
            return f"ingest: {error!r}"
    except Exception as error:  # noqa: BLE001
        return f"ingest: {type(error).__name__} ({error})"
    if warned:
        return f"ingest: a warning ({warned[0].message}, {Path(warned[0].filename).name}:{warned[0].lineno})"
    return None if victim.read_bytes() == content else "the raw file was changed"


def _read(path: Path, allow_truncated: bool) -> tuple[NDArray[Any], int]:
    with open_raw(path, allow_truncated=allow_truncated) as reader:
        n_frames, height, width = reader.info.shape
        size = n_frames * height * width * reader.info.dtype.itemsize
        kept = [(0, n_frames)] if size <= LARGEST_READ else [(0, 1), (n_frames - 1, n_frames)]
        for start, stop in kept:
            out = np.empty((stop - start, height, width), reader.info.dtype)
            reader.read(start, stop, out)
        json.dumps(reader.info.metadata, allow_nan=False)
        return out, reader.info.missing_frames


def _bad_refusal(error: BaseException, place: Path) -> str | None:
    text = str(error)
    if "\n" in text or "Traceback" in text:
        return f"more than a sentence ({text!r})"
    if not text.startswith(str(place)):
        return f"a sentence that does not name the file ({text!r})"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"an allocation that a header asked for ({cause})"
        cause = cause.__cause__ or cause.__context__
    return None


def _wrong(data: NDArray[Any], missing: int, whole: NDArray[Any], allow_truncated: bool) -> str | None:
    if data.shape[1:] != whole.shape[1:] or not np.array_equal(
        data, whole[: len(data)], equal_nan=data.dtype.kind == "f"
    ):
        return "a cut file is read as other frames"
    if len(data) < len(whole) and not (allow_truncated and missing):
        return f"a cut file is read as {len(data)} of {len(whole)} frames, and it is not said"
    return None


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # [MB]


def fuzz(family: str, n: int, first: int = 0) -> tuple[Counter[str], list[str]]:
    """Run ``n`` trials in a process of their own; return the counts, and what was violated in which trial."""
    counts: Counter[str] = Counter()
    violations = []
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        seeds = make_seeds(Path(name) / "seeds", family)
        if not seeds:
            return counts, []
        number, end = first, first + n
        while number < end:
            for answer in _answers(seeds, range(number, end), Path(name) / "place"):
                if answer.startswith("violation"):
                    violations.append(f"{family} {number} ({seeds[number % len(seeds)].opened}): {answer}")
                counts[answer.partition(":")[0]] += 1
                number += 1
    return counts, violations


def _answers(seeds: list[Seed], numbers: range, place: Path) -> Iterator[str]:
    """What came of each trial; a process that ends or hangs is the last answer."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(seeds, numbers, place, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        for _ in numbers:
            if not _answers_in_time(ours, process):
                yield f"violation: no answer within {HANG_SECONDS} s"
                return
            try:
                answer = ours.recv()
            except EOFError:
                process.join()
                yield f"violation: the process ended with {process.exitcode}"
                return
            yield answer
            if "MB" in answer:  # the peak of a process never falls
                return
    finally:
        process.kill()
        process.join()


def _answers_in_time(answers: Connection, process: BaseProcess) -> bool:
    """Wait for an answer as long as the process and its children get anywhere."""
    first = last = _used(process)
    since = time.monotonic()
    while not answers.poll(0.5):
        used = _used(process)
        if used > last:
            last, since = used, time.monotonic()
        if used - first > HANG_SECONDS or time.monotonic() - since > HANG_SECONDS:
            return False
    return True


def _used(process: BaseProcess) -> float:
    """Processor time of a process and its children [s]."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid)
        for one in (found, *found.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:4])
    return total


def _work(seeds: list[Seed], numbers: range, place: Path, answers: Connection) -> None:
    hdf5.ask = video.ask = ask_forked
    logging.disable()  # what ingest has to say of such movies
    for number in numbers:
        answers.send(trial(number, seeds[number % len(seeds)], place))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="trials of each family")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to repeat it")
    parser.add_argument("--family", choices=FAMILIES, nargs="*", default=FAMILIES)
    options = parser.parse_args()
    print(f"{'family':12} {'read':>7} {'salvaged':>9} {'refused':>8} {'violations':>11} {'s':>7}")
    failed = False
    for family in options.family:
        start = time.perf_counter()
        counts, violations = fuzz(family, options.n, options.first)
        failed |= bool(violations)
        columns = (counts["read"], counts["salvaged"], counts["refused"], counts["violation"])
        seconds = time.perf_counter() - start
        found = "{:7} {:9} {:8} {:11} {:7.0f}".format(*columns, seconds) if counts else "no seed here"
        print(f"{family:12} {found}", flush=True)
        for violation in violations[:20]:
            print(f"  {violation}", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
