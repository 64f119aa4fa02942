"""What a verdict is made of: findings, and what they need to know of the recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .evaluation_result import AtomProbes, Evaluation, PutIn

State = Literal["sound", "doubt", "unknown"]

WORST_FIRST: tuple[State, ...] = ("doubt", "unknown", "sound")
FAIR_SITES = 3  # places at which atoms were put in; fewer prove little


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: State
    short: str  # a sentence for the first screen
    text: str  # what was found, with its figures
    section: str  # of the page, where the evidence is


@dataclass(frozen=True)
class Verdict:
    """What a reader needs to know first."""

    name: str  # for links
    question: str
    state: State
    word: str  # the state in words
    headline: str
    detail: str
    findings: tuple[Finding, ...]  # the worst first


@dataclass(frozen=True)
class Recording:
    """What the verdicts need to know of the movie and its model, beside what was measured."""

    frame_time_s: float | None = None
    pixel_size_nm: float | None = None
    warnings: Sequence[str] = ()
    drift: str | None = None  # how far the scene moves, in words
    ignores_drift: bool = False  # the model was trained as if it did not
    n_dropped: int = 0  # frames that the time stamps miss
    sees_noise: str | None = None  # why its blind spot is too small, in words

    def lasting(self, n_frames: int) -> str:
        """A number of frames, and how long that is.

        Examples
        --------
        >>> Recording(frame_time_s=0.025).lasting(8)
        '8 frames (0.2 s)'
        """
        frames = "1 frame" if n_frames == 1 else f"{n_frames} frames"
        return frames if self.frame_time_s is None else f"{frames} ({n_frames * self.frame_time_s:.3g} s)"

    def wide(self, pixels: float) -> str:
        """A length in the frame."""
        shown = f"{pixels:.2g} pixels"
        return shown if self.pixel_size_nm is None else f"{shown} ({pixels * self.pixel_size_nm:.2g} nm)"


def whole_column(result: Evaluation) -> PutIn | None:
    """The atoms that were put in as strong as a typical column."""
    atoms = atoms_of(result)
    found = [] if atoms is None else [a for a in atoms["put_in"] if a["columns"] == 1]
    return found[0] if found else None


def atoms_of(result: Evaluation) -> AtomProbes | None:
    return None if result["model_checks"] is None else result["model_checks"]["atoms"]


def places(n: int) -> str:
    return "one place" if n == 1 else f"{n} places"


def worst_first(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst first; otherwise in the order given."""
    return tuple(sorted(findings, key=lambda f: WORST_FIRST.index(f.state)))
