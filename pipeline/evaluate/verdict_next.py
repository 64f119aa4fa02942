"""What to do next: what to mend first, and what else is worth doing."""

from __future__ import annotations

from .estimates import learnt_by_heart
from .evaluation_result import Evaluation
from .frame_checks import CHECKED_FRAMES
from .verdict import Finding, Recording, State, Verdict, worst_first


def next_step(result: Evaluation, recording: Recording) -> Verdict:
    """What to mend first, and what else is worth doing."""
    findings = worst_first(
        [*_to_mend(result, recording), *_to_learn(result), *_worth_knowing(result, recording)]
    )
    state = findings[0].state
    words: dict[State, str] = {"sound": "Go on", "doubt": "Mend first", "unknown": "More data needed"}
    detail = " ".join(f.short for f in findings[1:2] if f.state == state or state == "sound")
    return Verdict("next", "What to do next", state, words[state], findings[0].short, detail, findings)


def _to_mend(result: Evaluation, recording: Recording) -> list[Finding]:
    found = []
    if recording.sees_noise is not None:
        text = (
            f"The model sees pixels whose noise is that of the predicted pixel, too ({recording.sees_noise})."
        )
        found.append(Finding("doubt", "Train again with --blind-radius auto.", text, "recording"))
    if result["refuted"]["n_places"] or result["lattice"]["removed"] or result["lattice"]["noise_kept"]:
        text = "The movie's own counts contradict what is shown. Train longer on this movie, or with --from scratch."
        found.append(Finding("doubt", "Train longer on this movie, or --from scratch.", text, "training"))
    every, held = result["all_frames"], result["held_out"]
    below_zero = every["mse"] is not None and every["mse"]["high"] < 0
    if below_zero or (held is not None and learnt_by_heart(every, held)):
        text = "The model learnt noise by heart. Record more frames, or train for a shorter time."
        found.append(Finding("doubt", "Record more frames, or train for less time.", text, "training"))
    explained = result["explained"]
    if explained is not None and not explained["over_filter"]["low"] > 0:
        text = "A Gaussian filter does as well here. More frames, a higher dose or a longer training may change that."
        found.append(Finding("doubt", "Train longer, or record more frames.", text, "error"))
    if recording.ignores_drift and recording.drift is not None:
        text = f"The scene drifts ({recording.drift}), and the model was trained as if it did not."
        found.append(Finding("doubt", "Train again without --ignore-drift.", text, "recording"))
    if recording.n_dropped:
        text = f"The time stamps say that about {recording.n_dropped} frames are missing: times after a gap are off."
        found.append(
            Finding("doubt", f"{recording.n_dropped} frames are missing: mind the times.", text, "recording")
        )
    return found


def _to_learn(result: Evaluation) -> list[Finding]:
    """What would tell more."""
    found = []
    n_frames = result["shape"][0]
    if n_frames < CHECKED_FRAMES:
        text = f"{n_frames} frames are too few to learn from and to test on."
        found.append(Finding("unknown", f"Record more frames: {n_frames} are too few.", text, "recording"))
    if result["model_checks"] is None:
        text = "With the model, the report tests what it does to atoms that are added, and to pure noise."
        found.append(Finding("unknown", "Make the report again with --model.", text, "model"))
    if result["estimator"] != "poisson":
        text = "Without the counts of an electron, the noise of a pixel is not known, and most tests are left out."
        found.append(Finding("unknown", "Ingest again with --counts-per-electron.", text, "recording"))
    return found


def _worth_knowing(result: Evaluation, recording: Recording) -> list[Finding]:
    """What needs no action, or may be done later."""
    found = []
    if recording.warnings:
        n = len(recording.warnings)
        text = "They are below the movie."
        found.append(
            Finding("sound", f"Read the {'warning' if n == 1 else f'{n} warnings'} below.", text, "warnings")
        )
    found.append(
        Finding(
            "sound",
            "Measure on the raw counts; let the denoised movie say where and when.",
            "Measure single columns on the raw counts. Use the denoised movie as a guide to where and when.",
            "detectable",
        )
    )
    known = result["knowable"]
    if known is not None:
        text = "It lists when which column changes, with a probability that the raw counts give."
        found.append(
            Finding("sound", "For a table of changes: tdenoise-pipeline events.", text, "detectable")
        )
    if known is not None and known["dose_for_dated_column"] > 1:
        factor = known["dose_for_dated_column"]
        text = f"To date the change of a whole column to the frame, record with {factor:.2g} times this dose."
        found.append(
            Finding(
                "sound", f"To date changes to the frame: {factor:.2g} times this dose.", text, "detectable"
            )
        )
    if recording.drift is not None and not recording.ignores_drift:
        text = f"The scene drifts ({recording.drift}). The model follows it; the frames stay where they are."
        found.append(Finding("sound", "The scene drifts; the model follows it.", text, "recording"))
    brightness = result["brightness"]
    if brightness is not None and brightness["lowest"] < brightness["highest"]:
        text = (
            f"The beam is not steady: frames have {brightness['lowest']:.3g} to {brightness['highest']:.3g} times the "
            "mean brightness. The denoised frames keep it; divide by it before you compare frames."
        )
        found.append(Finding("sound", "The beam is not steady; its brightness is kept.", text, "recording"))
    missing = [
        flag
        for flag, value in (
            ("--frame-time", recording.frame_time_s),
            ("--pixel-size", recording.pixel_size_nm),
        )
        if value is None
    ]
    if missing:
        flags = " and ".join(missing)
        text = f"Times or lengths are in frames or pixels. Ingest again with {flags}."
        found.append(
            Finding("sound", f"For times and lengths: ingest again with {flags}.", text, "recording")
        )
    return found
