"""Report: one HTML page that decides. A film, three verdicts, pictures of what changed, then the evidence.

The page holds all that it shows and loads nothing, so that it can be mailed and kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.evaluation.columns import plane_distance
from tdenoise.files.atomic import unique_partial, write_atomically
from tdenoise.noise.noise import choose as choose_blindness
from tdenoise.noise.noise import widest

from ..errors import UsageError
from ..files.write_errors import named_failures
from ..inputs.found_events import changes_beside
from ..inputs.model_fit import movie_noise, movie_pixel_size_nm
from ..inputs.paired import open_pair
from ..pictures import contrast
from ..pictures.panels import shrink
from ..resources import memory
from ..settings.result_settings import EvaluateConfig, ReportConfig
from ..step_control import Control
from ..store import store
from ..store.blocks import Region
from ..store.store_attributes import DriftAttributes
from . import evaluate, figures, frame_checks, page, scenes, sentences
from .changes import Change
from .estimates import noise_law
from .evaluation_result import Evaluation
from .film import film
from .scenes import Picture, Scenes
from .training import Training, read_training, training_in_words
from .truth import load_truth
from .verdict import WORST_FIRST, Finding, Recording, Verdict
from .verdicts import verdicts

Array = NDArray[Any]

SHOWN_CHANGES = 3  # at most, with pictures
MOST_BYTES = 5_000_000  # of a page
TEXT_BYTES = 500_000  # of text, style, script, and the picture that stands for the film
SECTIONS = {
    "recording": "The recording and its noise",
    "removed": "What was removed",
    "counts": "Do the counts support it?",
    "detectable": "What is detectable at this dose",
    "model": "Tests of the model",
    "error": "Error estimated without a truth",
    "truth": "Error against the truth",
    "training": "Training",
    "provenance": "Provenance",
}


def write_report(config: ReportConfig, control: Control | None = None) -> Evaluation:
    """Measure a denoised movie and write the page, and its main picture as a PNG file beside it.

    Parameters
    ----------
    config : ReportConfig
    control : Control, optional

    Returns
    -------
    Evaluation
        What `tdenoise_pipeline.evaluate.evaluate` measured.

    Raises
    ------
    UsageError
        If the page or its picture exists already, or the page is named as a picture is.
    InputError
        If stores, truth or model are missing or damaged, or do not belong together.
    """
    control = control or Control()
    if config.output.suffix.lower() == ".png":
        raise UsageError(f"{config.output}: names a picture. Name a page, such as REPORT.html.")
    picture_file = config.output.with_suffix(".png")
    for file in (config.output, picture_file):
        if file.is_dir():
            raise UsageError(f"{file}: is a folder. Choose another name.")
        if file.exists() and not config.force:
            raise UsageError(f"{file}: exists already. Choose another name, or --force to replace it.")
    movie, denoised = open_pair(config.movie, config.denoised)
    found = changes_beside(denoised)
    _check_open(config.output)
    memory.check_evaluate(movie, truth=config.truth is not None, report=True)
    training = None if config.model is None else read_training(config.model, denoised)
    settings = EvaluateConfig(config.denoised, config.movie, config.truth, config.baseline, config.model)
    result, maps = evaluate.measure(settings, control)
    control.progress("report", 0, 1)
    truth = None if config.truth is None else load_truth(config.truth, movie)
    clean = None if truth is None else lambda k: truth.level * truth.clean[k]
    made, picture = render(movie, denoised, result, maps, training, clean, found)
    with named_failures(config.output.parent):
        config.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(picture_file, picture)
        write_atomically(config.output, made.encode("utf-8", "replace"))  # names of files may be no text
    control.progress("report", 1, 1)
    return result


def _check_open(output: Path) -> None:
    """See, before hours of work, that a file can be made there."""
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise UsageError(f"{folder}: is no folder, so {output} cannot be written. Choose another place.")
    trial = unique_partial(folder / output.name)
    with named_failures(folder):
        try:
            trial.touch()
            trial.unlink()
        except OSError as error:
            error.filename = str(output)  # the name that the user knows
            raise


def render(
    movie: store.Store,
    denoised: store.Store,
    result: Evaluation,
    maps: evaluate.Pictures,
    training: Training | None,
    clean: Callable[[int], Array] | None = None,
    found: Sequence[dict[str, Any]] | None = None,
) -> tuple[str, bytes]:
    """The page as text, and the picture of one frame in a row as PNG."""
    distance = plane_distance(np.reshape(result["lattice"]["spots"], (-1, 2)))
    look = scenes.choose(movie, denoised, noise_law(movie), distance)
    changes = maps.changes.result(SHOWN_CHANGES)
    said = verdicts(result, recording_of(movie, denoised, training))
    frame, row, column = focus(look, changes)
    shown = scenes.moments(look, changes)
    pictures = {
        **mean_picture(look, maps.mean),
        **evidence_pictures(look, result, frame, row, column, clean),
        "refuted": figures.refuted(maps.refuted, result["refuted"]),
        "residual": figures.residual(result["residual"]),
        "checks": figures.model_checks(result["model_checks"]) if result["model_checks"] else None,
        "training": figures.training(training) if training and has_curve(training) else None,
    }
    everything = json.dumps(result, indent=1)
    room = MOST_BYTES - TEXT_BYTES - len(everything) - taken([shown, pictures])
    clip = film(look, changes, room, found or ())
    made = page.fill(
        name=movie.attributes["source"]["name"],
        movie=movie,
        denoised=denoised,
        result=result,
        verdicts=said,
        meanings=meanings_of(said, training),
        sections=sections_of(result, training),
        film=clip,
        found=found,
        times=[look.when(k) for k in clip.numbers],
        moments=shown,
        limits=look.limits,
        removed_range=scenes.RESIDUAL_RANGE,
        error=sentences.error_in_words(result, result["blind"]),
        explained=sentences.explained_in_words(result["explained"]),
        refuted=sentences.refuted_in_words(result["refuted"]),
        lattice=sentences.lattice_in_words(result["lattice"]),
        knowable=sentences.knowable_in_words(result["knowable"]) if result["knowable"] else "",
        evidence=sentences.evidence_in_words(result["evidence"]) if result["evidence"] else "",
        uncertainty=sentences.uncertainty_in_words(result["uncertainty"]) if result["uncertainty"] else "",
        events=sentences.events_of(result) if "events" in result else {},
        checks=sentences.checks_in_words(result["model_checks"]) if result["model_checks"] else [],
        noise=movie_noise(movie),
        pictures=pictures,
        provenance=page.provenance(movie, denoised, training),
        everything=everything,
    )
    return made, figures.decode(figures.row(look.moment(frame, "", "", row, column, step=False)))


def taken(shown: Any) -> int:
    """Bytes that pictures take within the page."""
    if isinstance(shown, str):
        return len(shown)
    if isinstance(shown, Picture):
        return len(shown.source)
    if isinstance(shown, scenes.Moment):
        return taken(shown.pictures)
    if isinstance(shown, dict):
        return taken(list(shown.values()))
    return sum(map(taken, shown)) if isinstance(shown, list | tuple) else 0


def focus(look: Scenes, changes: Sequence[Change]) -> tuple[int, int, int]:
    """Frame, row and column of what is looked at closely."""
    if changes:
        return changes[0].frame, changes[0].row, changes[0].column
    _, height, width = look.movie.shape
    return scenes.most_changing(look.denoised, scenes.sound_mask(look.movie)), height // 2, width // 2


def recording_of(movie: store.Store, denoised: store.Store, training: Training | None) -> Recording:
    """What the verdicts need to know beside what was measured."""
    attributes = movie.attributes
    drift, timing = attributes["drift"], attributes["timing"]
    radius, fitting = denoised.attributes["model"]["blind_radius"], choose_blindness(movie_noise(movie))
    sees_noise = radius != "seen" and widest([radius, fitting.blind_radius]) != radius
    units = "" if drift is None else {"pixel": "pixels"}.get(drift["units"], drift["units"])
    return Recording(
        frame_time_s=movie.coordinates.frame_time_s,
        pixel_size_nm=movie_pixel_size_nm(movie),
        warnings=attributes["warnings"],
        drift=None if drift is None else _moves(drift, units),
        ignores_drift=training is not None and bool(training.card.get("ignore_drift")),
        n_dropped=0 if timing is None else timing["n_dropped"],
        sees_noise=fitting.reason if sees_noise else None,
    )


def _moves(drift: DriftAttributes, units: str) -> str:
    """How far the scene moves, in words."""
    jumps = ", measured in every frame" if drift["every_n_frames"] == 1 else ""
    return f"up to {drift['largest']:.3g} {units} from the first frame{jumps}"


def sections_of(result: Evaluation, training: Training | None) -> dict[str, str]:
    """Names and titles of the sections that the page has."""
    there = {
        "model": result["model_checks"] is not None,
        "truth": "psnr" in result,
        "training": has_curve(training),
    }
    return {name: title for name, title in SECTIONS.items() if there.get(name, True)}


def has_curve(training: Training | None) -> bool:
    """Whether there is a curve of the training to show."""
    return training is not None and len(training.history) > 1


def meanings_of(said: Sequence[Verdict], training: Training | None) -> dict[str, Finding]:
    """What each section means, in one sentence: the worst finding whose evidence it holds."""
    found: dict[str, Finding] = {
        "provenance": Finding(
            "sound", "", "You can tell from what this result was made, and make it again.", ""
        ),
        "truth": Finding("sound", "", "For this simulated movie, you can compare with what is true.", ""),
        "recording": Finding("sound", "", "The noise is known; the figures on this page rest on it.", ""),
    }
    if training is not None and len(training.history) > 1:
        found["training"] = training_in_words(training)
    findings = [finding for verdict in said[:2] for finding in verdict.findings]
    findings += [f for f in said[2].findings if f.section == "recording" and f.state != "sound"]
    for state in reversed(WORST_FIRST):
        for finding in reversed(findings):
            if finding.state == state:
                found[finding.section] = finding
    return found


def mean_picture(look: Scenes, mean: Array) -> dict[str, Any]:
    """The mean of all raw frames, at its own contrast."""
    part = look.whole()
    small = shrink(mean, part.averaged)
    low, high = np.percentile(small, [0.2, 99.8])
    limits = contrast.Limits(float(low), float(high) if high > low else float(low) + 1)
    label = "Mean of all raw frames, at its own contrast: what stays still, without any denoising"
    return {"mean": scenes.picture(contrast.grey(small, limits), label, ""), "bar": look.bar(part)}


def evidence_pictures(
    look: Scenes, result: Evaluation, k: int, row: int, column: int, clean: Callable[[int], Array] | None
) -> dict[str, Any]:
    """Raw, denoised and, with a truth, clean frame, beside what the counts say of it; none where that is unknown."""
    if result["knowable"] is None or result["evidence"] is None:
        return {"evidence": (), "evidence_bar": None}
    part = look.part_around(row, column)
    region = Region((k, k + 1), part.rows, part.columns)
    raw, smooth = (store.read_region(s, region)[0] for s in (look.movie, look.denoised))
    gain = look.noise.gain
    found = frame_checks.evidence_of(raw / gain, smooth / gain, result["knowable"]["plane_distance_pixels"])
    shown: list[Picture] = [
        look.grey(shrink(frame, part.averaged), f"{name}, {look.when(k)}")
        for name, frame in (("raw", raw), ("denoised", smooth))
    ]
    if clean is not None:
        whole = clean(k)[slice(*part.rows), slice(*part.columns)]
        shown.append(
            look.grey(shrink(np.asarray(whole, np.float32), part.averaged), f"clean, {look.when(k)}")
        )
    extent = max(figures.EVIDENCE_RANGE, float(np.abs(found.support).max(initial=0)))
    side = frame_checks.window_pixels(result["knowable"]["plane_distance_pixels"])
    if found.support.size:
        support = np.kron(found.support, np.ones((side, side)))
        shades = scenes.coloured(shrink(support, part.averaged), extent, "RdBu")
        label = f"evidence of the counts, from −{extent:.2g} (red) to {extent:.2g} (blue) standard deviations"
        shown.append(scenes.picture(shades, label, ""))
    return {"evidence": shown, "evidence_bar": look.bar(part)}
