"""The part of the blocks that a process begins with, where several share the work; and the work itself."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from ..errors import PipelineError, Stopped, UsageError
from ..runs.shared_run import SharedRun
from ..step_control import Control
from ..store.blocks import spans
from .driver import Item, Outcome

DEATHS = 4  # a block that ends so many processes is given up
PAUSE_S = 2.0  # at most, between two looks for work while others do the last blocks
COUNT_S = 5.0  # between two counts of what is done


@dataclass(frozen=True)
class Share:
    """Which part of the blocks a process begins with, and with whom it works."""

    number: int  # from 0
    count: int
    group: str

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items this share begins with: neighbours, which read the same files."""
        first, last = (len(items) * i // self.count for i in (self.number, self.number + 1))
        return items[first:last]


def parse_share(text: str, environment: Mapping[str, str] = os.environ) -> Share:
    """Read the ``--share`` option.

    Parameters
    ----------
    text : str
        ``I/N`` counted from 0, or ``array`` inside a job array; ``@NAME`` after it names the run whose
        processes work together (default: the array's job id, or the number of shares).
    environment : mapping
        Tells the number of the array task.

    Raises
    ------
    UsageError
        If it is none of these.

    Examples
    --------
    >>> parse_share("2/8@monday", {})
    Share(number=2, count=8, group='monday')
    >>> parse_share("array", {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4",
    ...                       "SLURM_ARRAY_TASK_MIN": "0"})
    Share(number=3, count=4, group='job-7')
    """
    where, _, group = text.partition("@")
    if group and not re.fullmatch(r"[\w.-]{1,60}", group):
        raise UsageError(f"--share {text!r}: a name has letters, digits, '.', '_' and '-' only.")
    if where == "array":
        try:
            number = int(environment["SLURM_ARRAY_TASK_ID"]) - int(environment["SLURM_ARRAY_TASK_MIN"])
            count = int(environment["SLURM_ARRAY_TASK_COUNT"])
            job = environment["SLURM_ARRAY_JOB_ID"]
        except (KeyError, ValueError):
            raise UsageError(
                "--share array works inside a Slurm job array only. Elsewhere say which share: --share 0/4."
            ) from None
        # Of an array that was submitted again in part, numbers may lie beyond the count: any share will do.
        return Share(number % count, count, group or f"job-{job}")
    if match := re.fullmatch(r"([0-9]{1,6})/([1-9][0-9]{0,5})", where):
        number, count = int(match[1]), int(match[2])
        if number < count:
            return Share(number, count, group or f"{count}-shares")
    raise UsageError(f"--share {text!r} is not I/N with I from 0 to N - 1, nor array.")


def work(
    run: SharedRun, share: Share, items: Sequence[Item], function: Callable[[Item], Any], control: Control
) -> Iterator[Outcome[Item]]:
    """Run ``function`` on the items of a share, then on what the others have not come to.

    Ends when every item is done or has failed here: whatever others have in hand is waited for, and done here
    if they are lost.

    Parameters
    ----------
    run : SharedRun
    share : Share
    items : sequence
        All of them, the same in all processes.
    function : callable
        Does its own output and leaves a marker; may run twice for one item.
    control : Control

    Yields
    ------
    Outcome
        Of the items done here.

    Raises
    ------
    Stopped
        After a stop request, once the item in hand is finished; or where others took this process for dead.
    LockedError
        If the output is finished, or another run has taken it over.
    """
    attempts = _Attempts(run, function, len(items))
    for item in share.of(items):
        control.check("apply")
        if (outcome := attempts.attempt(item)) is not None:
            yield outcome
    pause_s = 0.1
    while missing := attempts.missing(items):
        tried = 0
        for item in _from_the_ends(missing, share):
            control.check("apply")
            if (outcome := attempts.attempt(item)) is not None:
                tried += 1
                yield outcome
        if tried == 0:
            control.check("apply")
            run.check()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S)


def _from_the_ends(items: Sequence[Item], share: Share) -> Iterator[Item]:
    """All items, from the end of another share each, against the order in which its owner goes."""
    parts = [items[slice(*s)] for s in spans(len(items), -(-len(items) // share.count))]
    turn = (share.number + 1) % len(parts)
    for part in (*parts[turn:], *parts[:turn]):
        yield from reversed(part)


class _Attempts(Generic[Item]):
    """What this process tries: it remembers what failed, and counts now and then what is left."""

    def __init__(self, run: SharedRun, function: Callable[[Item], Any], n_items: int) -> None:
        self._run = run
        self._function = function
        self._n_items = self._n_left = n_items
        self._counted = -COUNT_S
        self._failed: set[int] = set()

    def attempt(self, item: Item) -> Outcome[Item] | None:
        """Do an item; None where it is done already, or another process has it in hand."""
        run, name = self._run, f"{item.number:08d}"
        if run.is_done(item.number) or not run.take(name):
            return None
        error: BaseException | None = None
        try:
            if run.is_done(item.number):
                return None
            if run.deaths(name) >= DEATHS:
                raise PipelineError("it ended every process that tried it, most likely for lack of memory")
            self._function(item)
        except Stopped:
            raise
        except (PipelineError, OSError, RuntimeError, ValueError, MemoryError) as raised:
            run.check()
            error = raised
            self._failed.add(item.number)
        finally:
            run.leave(name)
        if time.monotonic() - self._counted > COUNT_S:
            self._n_left = self._n_items - len(run.done_numbers())
            self._counted = time.monotonic()
        return Outcome(item, error, self._n_left)

    def missing(self, items: Sequence[Item]) -> list[Item]:
        """What nobody has done, and has not failed here."""
        done = self._run.done_numbers()
        return [item for item in items if item.number not in done and item.number not in self._failed]
