"""Peak memory of the steps that need no worker, predicted before they start.

The constants were fitted to what ``benchmarks/memory.py`` measured; it prints how far off they are. `apply` and
`ingest` plan their own, block by block and slab by slab.
"""

from __future__ import annotations

from ..store import store
from . import budget

PART_PIXELS = 2**18  # of a frame: what is looked at closely is at most this large
TRAIN_REHEARSAL_BYTES = 200_000_000  # simulated scenes
TRAIN_BASE_BYTES, TRAIN_HELD_BYTES, TRAIN_HELD_PIXELS = 537_000_000, 150, 1_000_000
EVALUATE_BASE_BYTES, EVALUATE_PART_BYTES, EVALUATE_PIXEL_BYTES = 377_000_000, 547, 346
REPORT_BASE_BYTES, REPORT_PART_BYTES, REPORT_PIXEL_BYTES = 431_000_000, 232, 411
EXPORT_BASE_BYTES, EXPORT_STORE_BYTES, EXPORT_SHEET_BYTES, EXPORT_MONTAGE_BYTES = 125_000_000, 115, 130, 5
VERIFY_BASE_BYTES = 62_000_000
VERIFY_PART_BYTES = 32 * 2**20  # of a shard that a thread checks at a time
VERIFY_PARTS = 2.2  # that a thread holds: the file and its decoded chunks, and the frames

WHERE = "Use a machine, or a job, with more memory."


def check_train(needed: int) -> None:
    """Refuse a training that this machine could not hold."""
    budget.check_memory(needed, budget.machine_memory_bytes(), "the training", WHERE)


def train_bytes(n_held_pixels: int, pool_bytes: int, rehearses: bool) -> int:
    """Memory of a training of the standard network on the CPU: the network, patches, scenes, the frames held out.

    Parameters
    ----------
    n_held_pixels : int
        Of all frames that are held out.
    pool_bytes : int
        Of the part of the movies that patches are drawn from.
    rehearses : bool
        Whether simulated scenes are made, too.
    """
    return (
        TRAIN_BASE_BYTES
        + (TRAIN_REHEARSAL_BYTES if rehearses else 0)
        + TRAIN_HELD_BYTES * min(n_held_pixels, TRAIN_HELD_PIXELS)
        + pool_bytes
    )


def check_evaluate(movie: store.Store, *, truth: bool, report: bool) -> None:
    """Refuse an evaluation, or a report, that this machine could not hold."""
    needed = report_bytes(movie) if report else evaluate_bytes(movie)
    remedy = WHERE
    if truth:
        needed += 4 * movie.shape[0] * movie.shape[1] * movie.shape[2]  # lies in memory as a whole
        remedy = f"Leave out --truth, or shorten the movie. {WHERE}"
    what = "the report" if report else "the evaluation"
    budget.check_memory(needed, budget.machine_memory_bytes(), what, remedy)


def evaluate_bytes(movie: store.Store) -> int:
    """Memory of an evaluation without a truth: some frames of both movies, whatever their length."""
    pixels = movie.shape[1] * movie.shape[2]
    return (
        EVALUATE_BASE_BYTES + EVALUATE_PART_BYTES * min(pixels, PART_PIXELS) + EVALUATE_PIXEL_BYTES * pixels
    )


def report_bytes(movie: store.Store) -> int:
    """Memory of a report, the evaluation before it included."""
    pixels = movie.shape[1] * movie.shape[2]
    return REPORT_BASE_BYTES + REPORT_PART_BYTES * min(pixels, PART_PIXELS) + REPORT_PIXEL_BYTES * pixels


def export_bytes(shape: tuple[int, int, int], n_stores: int, sheet_pixels: int, montage_pixels: int) -> int:
    """Memory of an export: a chunk of frames of each store, the pictures that an encoder looks at, and a montage.

    Parameters
    ----------
    shape : tuple of int
        Frames, height and width of what is exported.
    n_stores : int
        That are read.
    sheet_pixels : int
        Of the picture of a moment; 0 for a file of data.
    montage_pixels : int
        Of all frames on one sheet; 0 where there is none.
    """
    return (
        EXPORT_BASE_BYTES
        + EXPORT_STORE_BYTES * n_stores * shape[1] * shape[2]
        + EXPORT_SHEET_BYTES * sheet_pixels
        + EXPORT_MONTAGE_BYTES * montage_pixels
    )


def verify_threads(opened: store.Store) -> int:
    """Threads that a deep check may use: one per core, or as many as the memory has room for."""
    room = budget.machine_memory_bytes() - VERIFY_BASE_BYTES
    budget.check_memory(verify_bytes(opened, 1), budget.machine_memory_bytes(), "the check of a shard", WHERE)
    return min(budget.n_cores(), int(room / (VERIFY_PARTS * _part_bytes(opened))))


def verify_bytes(opened: store.Store, n_threads: int) -> int:
    """Memory of a deep check with so many threads."""
    return int(VERIFY_BASE_BYTES + n_threads * VERIFY_PARTS * _part_bytes(opened))


def verify_frames(opened: store.Store) -> int:
    """Frames of a shard that a deep check reads at a time: whole chunks."""
    (frames, rows, columns), chunk = opened.geometry.shard, opened.geometry.chunk[0]
    fitting: int = VERIFY_PART_BYTES // (rows * columns * opened.array.dtype.itemsize)
    return min(frames, max(chunk, fitting // chunk * chunk))


def _part_bytes(opened: store.Store) -> int:
    _, rows, columns = opened.geometry.shard
    return int(verify_frames(opened) * rows * columns * opened.array.dtype.itemsize)
