"""What an evaluation found, in words."""

from __future__ import annotations

from collections.abc import Callable

from tdenoise.noise.noise import choose, widest

from ..inputs.model_fit import movie_noise
from ..store import store
from .estimates import NoiseLaw, clearly_less, learnt_by_heart
from .evaluation_result import (
    ErrorEstimate,
    Evaluation,
    EvidenceFigures,
    ExplainedFigures,
    FramesError,
    KnowableFigures,
    LatticeFigures,
    ModelChecks,
    RefutedFigures,
    UncertaintyFigures,
    WithoutTruth,
)
from .truth_result import EventLimit, MovieEvents


def notes(movie: store.Store, denoised: store.Store, noise: NoiseLaw, result: WithoutTruth) -> list[str]:
    """What a reader must know to take the estimates for what they are."""
    found = _contradictions(result["all_frames"], result["held_out"])
    excess = result["noise_excess"]
    measured = movie_noise(movie)
    found += _about_signal(result)
    if noise.estimator == "temporal":
        found.append(
            "The noise is not that of single electrons, so it was estimated from neighbouring frames. If the "
            "sample moves, the estimated error is too small."
        )
    if abs(measured.correlation_t) > 0.03:
        found.append(
            f"Noise persists from frame to frame (correlation {measured.correlation_t:+.3f}): "
            "the estimated error is too small."
        )
    radius = denoised.attributes["model"]["blind_radius"]
    fitting = choose(measured)
    if radius != "seen" and widest([radius, fitting.blind_radius]) != radius:
        found.append(
            f"The model sees pixels whose noise is correlated with that of the predicted pixel ({fitting.reason}): "
            "the estimated error is too small. Train with --blind-radius auto."
        )
    if excess is not None:
        share = f"{percent(excess['estimate'])} in variance"
        if excess["high"] < 0:
            found.append(
                f"Neighbouring frames differ less than single electrons would ({share}, as with coincidence "
                "losses): the estimated error is too small by that share of the noise."
            )
        if excess["low"] > 0:
            found.append(
                f"Neighbouring frames differ more than single electrons would ({share}): the sample moves or "
                f"there is excess noise. The estimated error is too large by at most that share of the noise."
            )
    if not denoised.attributes["held_out_frames"]:
        found.append(_SEEN[denoised.attributes.get("trained_on_this")])
    return found


def _about_signal(result: WithoutTruth) -> list[str]:
    """What is said where a filter does as well, where the counts refute the movie, and of an unsteady beam."""
    found = []
    explained, refuted, brightness = result["explained"], result["refuted"], result["brightness"]
    if explained is not None and not explained["over_filter"]["low"] > 0:
        found.append(
            "No better than a filter here: a Gaussian filter over "
            f"{explained['gaussian']['sigma_t_frames']:g} frames and {explained['gaussian']['sigma_xy_pixels']:g} "
            "pixels explains as much of the signal."
        )
    if refuted["n_places"]:
        found.append(
            f"The counts refute the denoised movie in {_places(refuted)}. Do not trust what is shown there. Train "
            "longer on this movie, or train from scratch (--from scratch)."
        )
    if brightness is not None and brightness["lowest"] < brightness["highest"]:
        found.append(
            f"The beam is not steady: frames have {number(brightness['lowest'])} to {number(brightness['highest'])} "
            "times the mean brightness. The denoised frames keep it."
        )
    if brightness is not None and brightness.get("across"):  # older stores do not know it
        found.append(
            "The beam moves across the field: the brightness at its edges changes by up to "
            f"{100 * brightness['across']:.2g} %. It is taken out of what the model sees and put back into the result."
        )
    return found


_SEEN = {
    False: "The model was not trained on this movie, so all frames are unseen.",
    True: "The model was trained on this movie, and no frames are known to be held out: the estimated error may "
    "be too small.",
    None: "It is not known whether the model has seen these frames in training; if it has, "
    "the estimated error may be too small.",
}


def _contradictions(all_frames: FramesError, held_out: FramesError | None) -> list[str]:
    """What is said where an estimate cannot be right, or the two do not go together."""
    every, held = all_frames["mse"], None if held_out is None else held_out["mse"]
    found = []
    if every is not None and held_out is not None and learnt_by_heart(all_frames, held_out):
        how = "below zero" if every["high"] < 0 else "clearly smaller than that of the held-out frames"
        found.append(
            "The model seems to have learnt the noise of its training frames by heart: the error estimated from "
            f"all frames is {how}. The stated error is that of the held-out frames."
        )
    elif every is not None and every["high"] < 0:
        found.append(
            "The estimated error is below zero, which is impossible: either the model has learnt the noise of "
            "these frames by heart, or their noise differs from the measured noise. The size of the error is unknown."
        )
    if held is not None and held["high"] < 0:
        found.append(
            "The estimated error of the held-out frames is below zero, which is impossible: their noise differs "
            "from the measured noise."
        )
    elif held is not None and every is not None and clearly_less(held, every):
        found.append(
            "The held-out frames have a clearly smaller error than all frames: they are easier to predict, so "
            "they do not represent the movie."
        )
    return found


def summary(result: Evaluation) -> list[str]:
    """The main figures of an evaluation, a line each."""
    of_held_out = result["frames"] == "held_out"
    lines = [f"signal: {explained_in_words(result['explained'])}"]
    lines.append(f"against the counts: {refuted_in_words(result['refuted'])}")
    lines.append(
        f"error{', held-out frames' if of_held_out else ''}: {error_in_words(result, result['blind'])}"
    )
    if result["held_out"] is not None:
        name, other = ("all", result["all_frames"]) if of_held_out else ("held-out", result["held_out"])
        lines.append(f"{name} frames ({other['n_frames']}): {error_in_words(other)}")
    residual, lattice = result["residual"], result["lattice"]
    verdict = {True: "white", False: "not white", None: "too few pixels to tell"}[residual["white"]]
    strongest = (
        f"correlations up to {_fixed(residual['largest'])} (limit of the test: {residual['limit']:.4f})"
    )
    lines.append(f"residual: {verdict}, {strongest}; {lattice_in_words(lattice)}")
    if "psnr" in result:
        filters = {"noisy": result["psnr_noisy"]}
        if result["baseline"] is not None:
            filters["best 3D Gaussian"] = result["baseline"]["psnr"]
        compared = filters | {"denoised": result["psnr"]}
        names = {"all": "PSNR", "particle": "in the particle", "changing": "where it changes"}
        for region, name in names.items():
            found = {what: values[region] for what, values in compared.items() if values[region] is not None}
            if found:
                values = ", ".join(f"{what} {value:.2f} dB" for what, value in found.items())
                lines.append(f"{name}: {values}")
        vacuum, clean = _fixed(result["vacuum_std"]), _fixed(result["vacuum_std_clean"])
        lines.append(f"vacuum: standard deviation {vacuum} (truth {clean})")
        lines += events_in_words(result)
    if result["uncertainty"] is not None:
        lines.append(f"uncertainty: {uncertainty_in_words(result['uncertainty'])}")
    if result["evidence"] is not None:
        lines.append(f"evidence: {evidence_in_words(result['evidence'])}")
    if result["knowable"] is not None:
        lines.append(f"detectable at this dose: {knowable_in_words(result['knowable'])}")
    if result["model_checks"] is not None:
        lines += checks_in_words(result["model_checks"])
    return lines + [f"note: {note}" for note in result["notes"]]


def events_of(result: Evaluation) -> dict[str, EventLimit | MovieEvents]:
    """What becomes of events at best, in the denoised movie and in filters, by the names that people read."""
    events, baseline = result["events"], result["baseline"]
    found: dict[str, EventLimit | MovieEvents] = {
        "ideal observer": events["limit"],
        "denoised": events["denoised"],
    }
    if baseline is not None:
        found["best 3D Gaussian"] = baseline["events"]
    found["9-frame moving average"] = events["moving_average_9"]
    return found


def events_in_words(result: Evaluation) -> list[str]:
    """How far occupancy changes are smeared over time, and how well states are told."""
    if not result["n_events_isolated"]:
        return ["events: the movie has no isolated change of occupancy"]
    of = events_of(result)
    shown = ("-2", "-1", "0", "+1")

    def listed(value: Callable[[EventLimit | MovieEvents], str]) -> str:
        return "; ".join(f"{name} {value(found)}" for name, found in of.items())

    bleed = listed(lambda e: ", ".join(_fixed(e["bleed"][at], ".2f") for at in shown))
    told = listed(lambda e: f"{_fixed(e['auc'], '.3f')}, {_fixed(e['delay'], '.1f')} frames off")
    part = ", ".join(
        f"{name} {_fixed(found['part_occupied']['ratio'], '.2f')}"
        for name, found in of.items()
        if "part_occupied" in found
    )
    reached = result["events"]["limit"]["bleed_on_these_counts"]
    return [
        f"bleed of {result['n_events_isolated']} occupancy changes, share of the step on the wrong side 2 and 1 frames "
        f"before, 1 and 2 after: {bleed}; the ideal observer on the same counts, where columns also change "
        f"before and after: {', '.join(_fixed(reached[at], '.2f') for at in shown)}",
        f"states of columns distinguished (AUC), timing of changes: {told}",
        f"steady part-occupied columns, contrast over the truth's: {part}",
    ]


def uncertainty_in_words(found: UncertaintyFigures) -> str:
    """Whether the stated variance is that of the errors."""
    ratio, groups = found["ratio"], found["groups"]
    words = (
        f"the mean squared error is {ratio['estimate']:.2f} times the stated variance "
        f"(95 %: {ratio['low']:.2f} to {ratio['high']:.2f}; 1 if the stated variance is right)"
    )
    if ratio["low"] <= 0:
        words = (
            "the movie has too few counts to check the stated variance: the mean squared error is at most "
            f"{ratio['high']:.3g} times the stated variance (95 %)"
        )
    elif len(groups) > 1:
        first, last = groups[0], groups[-1]
        words += (
            f"; for the pixels stated as most certain it is {number(first['measured'])} counts^2 (stated: "
            f"{number(first['stated'])}), for the least certain {number(last['measured'])} (stated: "
            f"{number(last['stated'])})"
        )
    if found["covered_95"] is not None:
        covered = percent(found["covered_95"])
        words += f"; the truth lies within 1.96 standard deviations in {covered} of the pixels (ideal: 95 %)"
    return words


def evidence_in_words(evidence: EvidenceFigures) -> str:
    """Whether the raw counts agree with the denoised frames."""
    return (
        f"windows of {evidence['window_pixels']} pixels differ from the counts by {evidence['misfit_sd']:.2f} standard "
        f"deviations (1 if the denoised frames are right), {percent(evidence['misfit_far'], 2)} of them by more than 3 "
        "(0.27 % by chance)"
    )


def knowable_in_words(knowable: KnowableFigures) -> str:
    """From which step and dwell time on a change can be told at all at the movie's dose."""
    told = knowable["told_after_frames"]

    def visit(n_frames: int | None) -> str:
        return "longer than 64 frames" if n_frames is None else f"{n_frames} frames or more"

    return (
        f"a single frame shows a typical column with a detection index of {knowable['index']['typical']:.2g}. A "
        f"column that appears or disappears for a while is detectable if that lasts {visit(told['whole_column'])}, "
        f"half a column {visit(told['half_column'])}, a quarter {visit(told['quarter_column'])}. A lasting change can "
        f"be dated to the frame if its step is at least {knowable['dated_step']:.2g} columns; a change in a single "
        f"frame is detectable from {knowable['single_frame_step']:.2g} columns. "
        "No denoiser can detect what is fainter or faster"
    )


def checks_in_words(checks: ModelChecks) -> list[str]:
    """What the model does to halves of the counts, to pure noise, and to atoms that were put in."""
    lines = []
    ring, vacuum, atoms = checks["ring_correlation"], checks["vacuum"], checks["atoms"]
    if ring is not None and ring["with_truth_at_spots"]:
        known = [v for v in ring["with_truth_at_spots"] if v is not None]
        lowest = f"{min(known):.2f} or more" if known else "unknown"
        lines.append(f"Fourier ring correlation with the noise-free movie, at the lattice's spots: {lowest}")
    if vacuum is not None:
        fringes = vacuum["fringes"]
        seen = "unknown" if fringes is None else percent(fringes, 2) if fringes else "none"
        lines.append(
            f"a movie of pure noise comes out with a standard deviation of {percent(vacuum['std'], 2)}; "
            f"invented lattice: {seen}"
        )
    if atoms is not None:
        put_in = ", ".join(
            f"{_columns(a['columns'])} {percent(a['recovered'], 2)} (AUC {a['auc']:.2f})"
            for a in atoms["put_in"]
        )
        at = dict(zip(atoms["flash"]["offsets"], atoms["flash"]["response"], strict=True))
        lines += [
            f"atoms added in the vacuum for {atoms['dwell_frames']} frames, share recovered: {put_in}",
            f"a single-frame event: {percent(at[0], 2)} of it appears in its own frame, {percent(at[-1], 2)} in "
            f"the frame before, {percent(at[1], 2)} in the frame after",
        ]
    elif vacuum is not None:
        lines.append(
            "no atoms were added: the movie shows no lattice, is too short, or drifts out of the tested region"
        )
    for name, found in checks["filters"].items():
        lines.append(
            f"filter at a {name} pixel: the weights add up to {found['sum']:.2f} and average over "
            f"{number(found['n_averaged'])} pixels; weight of the pixel itself {found['own']:.2g}"
        )
    return lines


def _columns(strength: float) -> str:
    return f"{strength:g} column{'' if strength == 1 else 's'}"


def _fixed(value: float | None, form: str = ".4f") -> str:
    return "unknown" if value is None else format(value, form)


def error_in_words(error: ErrorEstimate, blind: bool = True) -> str:
    """An estimated error and what it means: the one stated, or that of all or of the held-out frames."""
    nmse = error["nmse"]
    if nmse is None and not blind:
        return "not estimated, because the model sees the pixels it predicts"
    if nmse is None:
        return "not estimated, because there are too few pixels"
    limits = f"95 %: {percent(nmse['low'])} to {percent(nmse['high'])} of the noise variance"
    if nmse["resolvable"]:
        return f"{percent(nmse['estimate'])} ({limits})"
    if nmse["high"] > 0:
        return f"not resolvable, below {percent(nmse['high'])} ({limits})"
    return f"not resolvable, the estimate is below zero ({limits}), which is impossible"


def explained_in_words(found: ExplainedFigures | None) -> str:
    """How much of the signal is shown, beside what a filter shows."""
    if found is None:
        return "unknown how much of it is shown: the movie has too little signal, or the noise law is unknown"
    if found["denoised"]["low"] > 1:
        return (
            "unknown how much of it is shown: the estimate exceeds 100 %, because the model learnt noise by "
            "heart or the noise differs from the measured noise"
        )
    limits = f"95 %: {percent(found['denoised']['low'])} to {percent(found['denoised']['high'])}"
    return (
        f"{percent(found['denoised']['estimate'])} of its variance is shown ({limits}); a good Gaussian filter shows "
        f"{percent(found['gaussian']['estimate'])}, a blank image shows none"
    )


def refuted_in_words(found: RefutedFigures) -> str:
    """Where the counts, summed over time, do not bear out what is shown."""
    if not found["n_places"]:
        return "no place where they refute the denoised movie"
    first = found["places"][0]
    start, stop = first["frames"]
    more = "higher" if first["z"] > 0 else "lower"
    share = first["share"]
    by = "" if share is None else f" by {percent(abs(share), 2)} of the movie's contrast"
    return (
        f"{_places(found)} where they refute the denoised movie. The clearest is around row {first['row']}, column "
        f"{first['column']}, in frames {start} to {stop - 1}: the counts are {more} than shown"
        f"{by} ({abs(first['z']):.1f} standard deviations)"
    )


def _places(found: RefutedFigures) -> str:
    return "one place" if found["n_places"] == 1 else f"{found['n_places']} places"


def lattice_in_words(lattice: LatticeFigures) -> str:
    """Whether lattice was removed with the noise."""
    if lattice["ratio"] is None:
        return "no lattice in the movie"
    if lattice["removed"]:
        return f"{percent(lattice['amplitude_lost'], 2)} of the lattice's amplitude was removed"
    if lattice["noise_kept"]:
        return f"noise was kept as lattice (power ratio {lattice['ratio']:.2f})"
    return f"no lattice removed (power ratio {lattice['ratio']:.2f})"


def percent(share: float, digits: int = 3) -> str:
    """A share in percent.

    Examples
    --------
    >>> percent(-0.0123456)
    '-1.23 %'
    """
    return f"{number(100 * share, digits)} %"


def number(value: float, digits: int = 3) -> str:
    """A number for people.

    Examples
    --------
    >>> number(0.0123456), number(1384.2), number(1.5e6)
    ('0.0123', '1,384', '1.5e+06')
    """
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.{digits}g}"
