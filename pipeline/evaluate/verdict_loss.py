"""What was lost or invented: contrast at changes, lattice, periodicity, brightness."""

from __future__ import annotations

from .evaluation_result import Evaluation
from .sentences import percent
from .verdict import (
    FAIR_SITES,
    Finding,
    Recording,
    State,
    Verdict,
    atoms_of,
    places,
    whole_column,
    worst_first,
)

MATTERS = (
    0.01  # of a correlation of the residual; of very many pixels, smaller ones are told from chance, too
)
KEPT_CONTRAST = 0.8  # of a column that comes or goes; less counts as lost


def loss(result: Evaluation, recording: Recording) -> Verdict:
    """Contrast lost at changes, lattice removed, periodicity invented, brightness changed."""
    findings = worst_first(
        [
            *_lost_or_added(result),
            *_contrast(result, recording),
            _lattice(result),
            _invented(result),
            _residual(result),
            _brightness(result),
        ]
    )
    state = findings[0].state
    words: dict[State, str] = {"sound": "Nothing found", "doubt": "Something found", "unknown": "Cannot tell"}
    worst = [f for f in findings if f.state == state]
    passed = [f for f in findings if f.state == "sound"]
    tests = f"{len(passed)} of {len(findings)} tests found nothing."
    if state == "sound":
        headline = f"In {len(findings)} tests, nothing was lost or invented."
        kept = [f.short for f in findings if f.section == "model"]
        return Verdict(
            "loss", "What was lost or invented", state, words[state], headline, " ".join(kept[:1]), findings
        )
    detail = " ".join([*(f.short for f in worst[1:2]), tests])
    return Verdict("loss", "What was lost or invented", state, words[state], worst[0].short, detail, findings)


def _lost_or_added(result: Evaluation) -> list[Finding]:
    """What the counts summed over time say is missing, or never was there."""
    found, section = result["refuted"], "counts"
    if not found["n_places"]:
        text = "The summed counts prove nothing that is not shown, and refute nothing that is."
        return [Finding("sound", "The counts miss nothing.", text, section)]
    missing = found["n_missing"]
    invented = found["n_places"] - missing
    said = [
        f"{places(n)} {words}"
        for n, words in (
            (missing, "with more counts than shown"),
            (invented, "with fewer counts than shown"),
        )
        if n
    ]
    joined = " and ".join(said)
    return [
        Finding(
            "doubt", f"The counts say so in {joined}.", f"The summed counts contradict {joined}.", section
        )
    ]


def _contrast(result: Evaluation, recording: Recording) -> list[Finding]:
    """How much of a column is shown that is there for a short time only."""
    section, atoms, whole = "model", atoms_of(result), whole_column(result)
    if atoms is None or whole is None:
        text = "Without atoms added to the counts, the contrast that short events lose is not known."
        return [Finding("unknown", "What short events lose is not known.", text, section)]
    lasting = recording.lasting(atoms["dwell_frames"])
    flash = dict(zip(atoms["flash"]["offsets"], atoms["flash"]["response"], strict=True))
    kept, few = whole["recovered"], whole["n_sites"] < FAIR_SITES
    at = f"at {places(whole['n_sites'])}"
    text = (
        f"A column added for {lasting} {at} is shown with {percent(kept, 2)} of its contrast. An event of a single "
        f"frame is shown with {percent(flash[0], 2)} of it."
    )
    if few:
        text += " From so few places, these shares are rough."
        short = f"Contrast of short events: tested at only {places(whole['n_sites'])}."
        return [Finding("unknown", short, text, section)]
    short = f"A column that is there for {lasting} is shown with {percent(kept, 2)} of its contrast."
    return [Finding("sound" if KEPT_CONTRAST <= kept <= 2 - KEPT_CONTRAST else "doubt", short, text, section)]


def _lattice(result: Evaluation) -> Finding:
    found, section = result["lattice"], "removed"
    if found["ratio"] is None:
        text = "The movie shows no lattice, so it cannot be seen whether lattice was removed."
        return Finding("unknown", "No lattice was found to test.", text, section)
    power = f"power at the lattice's {found['n_spots']} spots is {found['ratio']:.2f} times that around"
    if found["removed"]:
        lost = percent(found["amplitude_lost"], 2)
        text = f"{lost} of the lattice's amplitude was removed with the noise ({power})."
        return Finding("doubt", f"{lost} of the lattice was removed.", text, section)
    if found["noise_kept"]:
        text = f"Noise was kept as lattice ({power} in what was removed; 1 is right)."
        return Finding("doubt", "Noise was kept as lattice.", text, section)
    return Finding("sound", "The lattice is kept.", f"No lattice was removed ({power}).", section)


def _invented(result: Evaluation) -> Finding:
    """Whether the model makes a lattice out of pure noise."""
    section, checks = "model", result["model_checks"]
    vacuum = None if checks is None else checks["vacuum"]
    if vacuum is None or vacuum["fringes"] is None:
        text = "It was not tested whether the model makes a lattice out of pure noise."
        return Finding("unknown", "Invented periodicity was not tested.", text, section)
    std = percent(vacuum["std"], 2)
    if vacuum["fringes"] > 0:
        seen = percent(vacuum["fringes"], 2)
        text = (
            f"Out of pure noise, the model makes a lattice of {seen} of the level, and unevenness of {std}."
        )
        return Finding("doubt", f"The model invents a lattice of {seen} of the level.", text, section)
    text = f"Out of pure noise, the model makes no lattice. Unevenness of {std} of the level remains."
    return Finding("sound", "No lattice is invented.", text, section)


def _residual(result: Evaluation) -> Finding:
    found, section = result["residual"], "removed"
    if found["white"] is None or found["largest"] is None:
        text = "There are too few pixels to tell whether only noise was removed."
        return Finding("unknown", "Whether only noise was removed is not known.", text, section)
    figures = f"largest correlation {found['largest']:.4f}, limit of the test {found['limit']:.4f}"
    if found["white"]:
        return Finding(
            "sound", "Only noise was removed.", f"Only white noise was removed: {figures}.", section
        )
    if found["largest"] < MATTERS:
        text = f"Almost only noise was removed: {figures}. Correlations below {MATTERS:g} hardly matter."
        return Finding("sound", "Almost only noise was removed.", text, section)
    if _strongest(result) < 0:
        text = f"Some noise was kept in what is shown: what was removed is correlated negatively ({figures})."
        return Finding("doubt", "Some noise was kept.", text, section)
    text = f"What was removed is not only noise: {figures}."
    return Finding("doubt", "More than noise was removed.", text, section)


def _strongest(result: Evaluation) -> float:
    """The correlation of the residual that is furthest from zero, with its sign."""
    found = result["residual"]["autocorrelation"]
    known = [value for value in (*found["x"], *found["y"], found["t"]) if value is not None]
    return max(known, key=abs, default=0.0)


def _brightness(result: Evaluation) -> Finding:
    found, section = result["level"], "removed"
    if found is None:
        return Finding(
            "unknown",
            "Whether the brightness is kept is not known.",
            "The brightness of the frames could not be compared.",
            section,
        )
    off, worst = found["worst_ratio"] - 1, found["worst_frame"]
    if not found["kept"]:
        way = "brighter" if off > 0 else "darker"
        text = (
            f"Frame {worst} is shown {percent(abs(off), 2)} {way} than it was recorded "
            f"({abs(found['worst_z']):.1f} standard deviations of its noise)."
        )
        return Finding(
            "doubt", f"Frame {worst} is {percent(abs(off), 2)} {way} than recorded.", text, section
        )
    text = (
        f"All frames together are shown with {found['ratio']:.5f} times their recorded brightness; frame {worst}, "
        f"which differs most, with {found['worst_ratio']:.4f} times."
    )
    return Finding("sound", "The brightness is kept.", text, section)
