"""What you can trust: the smallest event at this dose, and what speaks against the movie as a whole."""

from __future__ import annotations

from tdenoise.evaluation.columns import DISC_SHARE

from .evaluation_result import Evaluation, KnowableFigures
from .frame_checks import CHECKED_FRAMES
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

TOLD_AUC = 0.9  # from here on the states of a column are told apart well enough to be trusted
MISFIT_SD, MISFIT_Z = 1.1, 4.0  # of windows against the counts: more than both is no chance


def trust(result: Evaluation, recording: Recording) -> Verdict:
    """The smallest event that can be trusted, and what speaks against the movie as a whole."""
    smallest = _smallest_event(result, recording)
    findings = worst_first(
        [
            _refuted(result),
            _better_than_filter(result),
            _error(result),
            smallest,
            *_told_by_model(result, recording),
            *_windows(result),
            *_long_enough(result),
        ]
    )
    state = findings[0].state
    words: dict[State, str] = {"sound": "Trust it", "doubt": "Take care", "unknown": "Cannot tell"}
    first, where = findings[0], _measured_where(result)
    headline, detail = first.short, where
    if state == "sound":
        headline = smallest.short
    elif state == "unknown" and smallest.state == "sound":
        headline, detail = f"At best: {_within(smallest)}", f"{first.short} {where}"
    elif first is not smallest:
        detail = f"{_elsewhere(smallest)} {where}"
    return Verdict("trust", "What you can trust", state, words[state], headline, detail.strip(), findings)


def _elsewhere(smallest: Finding) -> str:
    if smallest.state != "sound":
        return smallest.short
    return f"The smallest event at this dose: {_within(smallest)}"


def _within(smallest: Finding) -> str:
    """As it stands within a sentence."""
    return smallest.short[0].lower() + smallest.short[1:]


def _smallest_event(result: Evaluation, recording: Recording) -> Finding:
    # The model was seen to show what lasts as long as the atoms that were added, and nothing shorter.
    atoms = atoms_of(result)
    tested = 1 if atoms is None else atoms["dwell_frames"]
    return smallest_event(result["knowable"], result["shape"][0], recording, tested)


def smallest_event(
    known: KnowableFigures | None, n_frames: int | None, recording: Recording, tested: int = 1
) -> Finding:
    """By size and duration, at this dose; of an ideal observer, whom no denoiser surpasses.

    Parameters
    ----------
    known : KnowableFigures or None
        None where there is no lattice, or the counts per electron are not known.
    n_frames : int or None
        Of the movie; None while it is recorded.
    recording : Recording
    tested : int
        The shortest stay for which the model was seen to show a column [frames].
    """
    section = "detectable"
    if known is None:
        text = (
            "The movie shows no lattice, or its counts per electron are not known: nothing says how large the "
            "smallest event is that you can trust."
        )
        return Finding("unknown", "The smallest event to trust is not known.", text, section)
    size = recording.wide(2 * DISC_SHARE * known["plane_distance_pixels"])
    told = known["told_after_frames"]
    whole, half = told["whole_column"], told["half_column"]
    if whole is None:
        text = (
            f"A single raw frame shows a column (about {size} wide) so weakly that its coming and going cannot be "
            "recognised, even if it stays for 64 frames."
        )
        return Finding("doubt", "At this dose, no change of a single column.", text, section)
    lasting = recording.lasting(whole)
    if n_frames is not None and 2 * whole > n_frames:
        text = (
            f"At this dose a column (about {size} wide) must stay for {lasting} to be recognised. The movie has "
            f"{n_frames} frames: too few to show one that comes and goes."
        )
        return Finding("unknown", f"A column must stay {lasting}: the movie is too short.", text, section)
    also = "Half a column is not recognised within 64 frames."
    if half is not None:
        also = f"Half a column must stay for {recording.lasting(half)}."
    text = (
        f"A column (about {size} wide) that appears or disappears is recognised at best if that lasts {lasting} or "
        f"longer. {also} No denoiser can do better at this dose."
    )
    stays = recording.lasting(max(whole, tested))
    short = f"One column, about {size} wide, that comes or goes for {stays} or longer."
    return Finding("sound", short, text, section)


def _measured_where(result: Evaluation) -> str:
    known = result["knowable"]
    if known is None:
        return ""
    n_frames = min(CHECKED_FRAMES, result["shape"][0])
    return f"Measured in {n_frames} frames, on about {known['n_columns']:.2g} columns in each."


def _refuted(result: Evaluation) -> Finding:
    n, section = result["refuted"]["n_places"], "counts"
    if not n:
        return Finding(
            "sound",
            "The counts refute nothing.",
            "Summed over time, the counts refute the denoised movie nowhere.",
            section,
        )
    where = "one place" if n == 1 else f"{n} places"
    first = result["refuted"]["places"][0]
    text = (
        f"Summed over time, the counts refute the denoised movie in {where}. The clearest is around row "
        f"{first['row']}, column {first['column']}, in frames {first['frames'][0]} to {first['frames'][1] - 1}. Do not "
        "trust what is shown there."
    )
    return Finding("doubt", f"Not everywhere: the counts refute the movie in {where}.", text, section)


def _better_than_filter(result: Evaluation) -> Finding:
    found, section = result["explained"], "error"
    if found is None:
        text = "The movie has too little signal, or its noise law is unknown: how much of it is shown is not known."
        return Finding("unknown", "How much of the signal is shown is not known.", text, section)
    own, filtered = found["denoised"], found["gaussian"]
    if own["low"] > 1:
        text = (
            "The estimate of the signal that is shown exceeds 100 %, which cannot be true: the model learnt noise by "
            "heart, or the noise differs from the measured noise."
        )
        return Finding("doubt", "The share of the signal that is shown cannot be true.", text, section)
    shown = f"{percent(own['estimate'])} of the signal's variance is shown"
    if own["high"] > 1:
        shown = f"at least {percent(max(0.0, own['low']))} of the signal's variance is shown"
    beside = f"a good Gaussian filter shows {percent(filtered['estimate'])}"
    if not found["over_filter"]["low"] > 0:
        text = f"No better than a filter here: {shown}, and {beside} on the same frames."
        return Finding("doubt", "No better than a filter here.", text, section)
    return Finding(
        "sound", "It shows more than a filter.", f"{shown[0].upper()}{shown[1:]}; {beside}.", section
    )


def _error(result: Evaluation) -> Finding:
    nmse, section = result["nmse"], "error"
    if nmse is None:
        why = "there are too few pixels" if result["blind"] else "the model sees the pixels that it predicts"
        return Finding("unknown", "The error is not known.", f"The error was not estimated: {why}.", section)
    if nmse["high"] <= 0:
        text = (
            "The estimated error is below zero, which cannot be true: the model learnt noise by heart, or the noise "
            "differs from the measured noise. The size of the error is unknown."
        )
        return Finding("doubt", "The estimated error cannot be true.", text, section)
    if not nmse["resolvable"]:
        text = (
            f"The remaining error is too small to measure on this many pixels: below {percent(nmse['high'])} of the "
            "noise variance. It is not zero."
        )
        return Finding("sound", "The error is too small to measure.", text, section)
    text = f"{percent(nmse['estimate'])} of the noise variance remains as error, on average over the movie."
    return Finding("sound", "The error is known.", text, section)


def _told_by_model(result: Evaluation, recording: Recording) -> list[Finding]:
    """Whether the model itself shows what the counts could tell."""
    section, checks = "model", result["model_checks"]
    if checks is None:
        text = "The model was not tested, because it was not given. Name it with --model."
        return [Finding("unknown", "The model was not tested.", text, section)]
    atoms, whole = checks["atoms"], whole_column(result)
    if atoms is None or whole is None:
        text = (
            "No atoms could be added to test the model: the movie shows no lattice, is too short, or drifts out of "
            "the tested region."
        )
        return [Finding("unknown", "The model could not be tested with atoms.", text, section)]
    lasting = recording.lasting(atoms["dwell_frames"])
    first, stop = checks["frames"]
    (row, column), (height, width) = checks["corner"], checks["size"]
    where = f"frames {first} to {stop - 1}, rows {row} to {row + height - 1}, columns {column} to {column + width - 1}"
    if whole["n_sites"] < FAIR_SITES:
        text = f"Atoms could be added at only {places(whole['n_sites'])}: too few to tell how the model shows them."
        return [Finding("unknown", "Too few places to test the model.", text, section)]
    told = [a for a in atoms["put_in"] if a["auc"] >= TOLD_AUC]
    if whole["auc"] < TOLD_AUC:
        text = (
            f"A column added for {lasting} at {places(whole['n_sites'])} is not reliably told from none in the "
            f"denoised frames (AUC {whole['auc']:.2f}; 0.5 is guessing). Tested in {where}."
        )
        return [Finding("doubt", f"Even a column that is there for {lasting} may be missed.", text, section)]
    text = (
        f"Of atoms added for {lasting} at {places(whole['n_sites'])}, those of {told[0]['columns']:g} columns and more "
        f"are told from none in the denoised frames (AUC {told[0]['auc']:.2f} and more). Tested in {where}."
    )
    return [Finding("sound", "The model shows what was added.", text, section)]


def _windows(result: Evaluation) -> list[Finding]:
    """Whether single frames agree with their own counts."""
    found = result["evidence"]
    if found is None:
        return []
    sd, far = found["misfit_sd"], percent(found["misfit_far"], 2)
    figures = (
        f"windows differ from them by {sd:.2f} standard deviations (1 if right), {far} of them by more than 3"
    )
    if sd > MISFIT_SD and (sd - 1) * (2 * found["n_windows"]) ** 0.5 > MISFIT_Z:
        text = f"Single frames do not agree with their own counts: {figures}."
        return [Finding("doubt", "Single frames do not agree with their counts.", text, "counts")]
    text = f"Single frames agree with their own counts: {figures}."
    return [Finding("sound", "Single frames agree with their counts.", text, "counts")]


def _long_enough(result: Evaluation) -> list[Finding]:
    n_frames = result["shape"][0]
    if n_frames >= CHECKED_FRAMES:
        return []
    text = f"The movie has {n_frames} frames. From so few, no figure on this page is reliable."
    return [Finding("unknown", f"Only {n_frames} frames: too few to tell.", text, "error")]
