"""How the result of every command is shown to a person; a function for each."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluate.evaluation_result import Evaluation
from .curve import curve
from .terminal import duration, one_line

MOST_MOVIES = 40  # that a terminal is shown


def ingest(result: dict[str, Any]) -> str:
    if "movies" in result:
        return _table(result["movies"])
    noise = result["noise"] or {}
    fano = noise.get("fano")
    shown = "not measured" if fano is None else f"{fano:.3f}"
    mean = "unknown" if result["mean"] is None else f"{result['mean']:.4g} counts per pixel and frame"
    return f"{result['store']}: mean {mean}, Fano factor {shown}"


def _table(movies: list[dict[str, Any]]) -> str:
    """A line for each of several movies, and then what went wrong, in full."""
    head = ("movie", "frames", "size", "type", "mean", "Fano", "warnings", "result")
    lines = [head]
    for movie in movies:
        if movie["error"] is not None:
            lines.append((one_line(movie["name"]), *6 * ("",), f"failed ({movie['exit_code']})"))
            continue
        n_frames, height, width = movie["shape"]
        figures = ("" if v is None else f"{v:.4g}" for v in (movie["mean"], movie["fano"]))
        size = (str(n_frames), f"{height} x {width}", movie["dtype"])
        name, made = one_line(movie["name"]), one_line(Path(movie["store"]).name)
        lines.append((name, *size, *figures, str(len(movie["warnings"])), made))
    return "\n".join(
        [*_columns(lines), *(one_line(movie["error"]) for movie in movies if movie["error"] is not None)]
    )


def train(result: dict[str, Any]) -> str:
    error = result["metrics"]["held_out_error"]
    versions = "" if "versions" not in result else "\n" + _versions(result["versions"])
    return (
        f"{result['model']}: model {result['sha256'][:12]}, {result['steps']} steps, best at "
        f"{result['best_step']} (held-out error {error:.5f} of the noise variance){_chosen(result)}{versions}"
    )


def apply(result: dict[str, Any]) -> str:
    if "movies" not in result:
        return f"{result['store']}: denoised with model {result['model']['id'][:12]}{_chosen(result)}"
    failed = [m for m in result["movies"] if m["error"] is not None]
    done = f"{len(result['movies']) - len(failed)} of {len(result['movies'])} movies denoised"
    return "\n".join([done, *(f"failed ({m['exit_code']}): {m['error']}" for m in failed)])


def _versions(report: dict[str, Any]) -> str:
    """The errors of all versions on all movies, over those of the first; and what became of the last."""
    rows = report["versions"]
    table = [("movie", "", *(row["name"] for row in rows))]
    for movie in report["movies"][:MOST_MOVIES]:
        found = (row["over_first"].get(movie["id"]) for row in rows)
        cells = ["" if cell is None else f"{cell[0]:+.5f} ± {1.96 * cell[1]:.5f}" for cell in found]
        table.append((one_line(movie["name"]), "known" if movie["earlier"] else "new", *cells))
    more = len(report["movies"]) - MOST_MOVIES
    head = f"error over that of {report['first']}, in units of the noise variance, with 95 % intervals:"
    rest = [f"and {more} more movies: learned.json of the model has all"] if more > 0 else []
    return "\n".join([head, *_columns(table), *rest, f"{report['reason']}."])


def _columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(f"{word:<{w}}" for word, w in zip(line, widths, strict=True)).rstrip() for line in table
    ]


def _chosen(result: dict[str, Any]) -> str:
    """Why a model was chosen by itself; nothing where it was not."""
    chosen = result.get("chosen")
    return (
        ""
        if chosen is None
        else f"\nauto chose {one_line(chosen['model'] or 'no model')}: {chosen['reason']}"
    )


def archive_add(result: dict[str, Any]) -> str:
    lines = [f"added {_card(card)}" for card in result["added"]]
    return "\n".join([*lines, *(f"already in the archive: {id[:12]}" for id in result["known"])])


def archive_list(result: dict[str, Any]) -> str:
    return "\n".join(map(_card, result["cards"])) or "the archive is empty"


def archive_find(result: dict[str, Any]) -> str:
    return "\n".join(map(_card, result["cards"])) or "nothing in the archive fits"


def archive_html(result: dict[str, Any]) -> str:
    return f"{result['page']}: {result['n_cards']} cards, {result['n_pictures']} with a picture"


def archive_crate(result: dict[str, Any]) -> str:
    lines = [f"{result['crate']}: {result['n_parts']} parts"]
    lines += [f"not in that folder, only described: {one_line(name)}" for name in result["described"]]
    lines += [f"not at hand, so its settings are left out: {one_line(why)}" for why in result["missing"]]
    lines.append(f"licence: {one_line(result['license'] or 'none; state one with --license')}")
    apart = "leave out the archive folder, batch folders and .tdenoise: they hold paths of this machine"
    return "\n".join([*lines, f"to upload: what it lists under hasPart; {apart}"])


def archive_suggest(result: dict[str, Any]) -> str:
    lines = []
    for number, model in enumerate(result["models"], 1):
        above, error = model["error_above_best"], model["standard_error"]
        how = (
            "least error"
            if number == 1
            else f"error higher by {above:.2g} ± {error:.2g} of the noise variance"
        )
        seen = "; learned from this recording" if model["learned_from_it"] else ""
        lines.append(f"{number}. {one_line(model['name'])}  {model['id'][:12]}  {how}{seen}")
    lines += [f"not tried: {one_line(model['name'])}  {model['id'][:12]}" for model in result["not_tried"]]
    lines += [f"left out: {one_line(m['name'])}: {one_line(m['reason'])}" for m in result["left_out"]]
    chosen = result["suggested"]
    use = {None: "no model", "base": "no --model, which means the one that comes with tdenoise"}
    return "\n".join([*lines, f"Use {use.get(chosen, f'--model {chosen}')}: {result['reason']}."])


def archive_tag(result: dict[str, Any]) -> str:
    notes = "".join(f"\n  {name} = {value}" for name, value in sorted(result["notes"].items()))
    return _card(result) + (notes or "\n  no notes")


def archive_show(result: dict[str, Any]) -> str:
    lines = [_card(result), *(f"  made from {_card(c)}" for c in result["made_from"])]
    lines += [f"  made from {id[:12]}, which is not in the archive" for id in result["missing"]]
    return "\n".join([*lines, *(f"  used to make {_card(c)}" for c in result["made_of_it"])])


def _card(card: dict[str, Any]) -> str:
    size = " x ".join(map(str, card.get("shape") or []))
    # Most movies of runs are called movie.zarr; what tells them apart is the recording.
    raw = str((card.get("source") or {}).get("name", ""))
    name = (
        card["name"] if not raw or Path(raw).stem == Path(card["name"]).stem else f"{card['name']} of {raw}"
    )
    return "  ".join(filter(None, [card["id"][:12], f"{card['kind']:<8}", name, size, card["path"]]))


def archive_count(result: dict[str, Any]) -> str:
    return f"{result['archive']}: {result['n_cards']} cards"


def run(result: dict[str, Any]) -> str:
    if "metrics" not in result:  # one step only
        return "\n".join(result.values())
    return "\n".join(
        [*_figures(result["metrics"]), f"denoised store: {result['denoised']}", f"report: {result['report']}"]
    ) + _chosen(result)


def evaluate(result: Evaluation) -> str:
    return "\n".join(_figures(result))


def _figures(metrics: Evaluation) -> list[str]:
    """The main figures of an evaluation, a line each."""
    from ..evaluate.sentences import summary

    return summary(metrics)


def events(result: dict[str, Any]) -> str:
    """What was found, in a few lines."""
    lines = [
        f"columns: {result['n_columns']} ({result['columns_are']}), of which {result['n_changing']} change",
        f"changes: {result['n_changes']} listed, {result['n_sure']} of them with 90 % probability and more; "
        f"about {result['n_expected']:.0f} are true",
        *result["notes"],
        f"tables: {result['output']}",
    ]
    return "\n".join(lines)


def study(result: dict[str, Any]) -> str:
    if "total" in result:
        return f"{result['folder']}: {result['done']} of {result['total']} cells are done"
    return "\n".join([result["sentence"], *result["warnings"], f"report: {result['report']}"])


def report(result: dict[str, Any]) -> str:
    return str(result["report"])


def export(result: dict[str, Any]) -> str:
    from ..resources.budget import in_words

    first, last = result["frames"]
    files, size = result["files"], in_words(result["bytes"])
    count = "1 frame" if last - first == 1 else f"{last - first} frames"
    name = files[0] if len(files) == 1 else f"{files[0]} to {Path(files[-1]).name}"
    if result["dtype"] is not None:
        height, width = (end - start for start, end in (result["rows"], result["columns"]))
        return f"{name}: {count} of {height} x {width} pixels, {result['dtype']}, {size}"
    rate = result["frames_per_second"]
    speed = "" if rate is None else f", {rate:.4g} per second"
    height, width = result["picture"]
    lines = [f"{name}: {count}{speed}, pictures of {height} x {width} pixels, {size}"]
    if (n := result["averaged"]) > 1:
        lines.append(f"a pixel of the picture is the mean of {n} x {n} pixels of the movie")
    return "\n".join(lines)


def verify(result: dict[str, Any]) -> str:
    if "stores" in result:
        return "\n".join([*map(verify, result["stores"]), *result["models"]])
    how = "decoded and compared" if result["deep"] else "complete according to their index"
    mended = f", {result['repaired']} damaged files repaired" if result["repaired"] else ""
    return f"{result['store']}: {result['n_shards']} shards {how}{mended}"


def cite(result: dict[str, Any]) -> str:
    if result["format"] == "json":
        return json.dumps(result, indent=1, ensure_ascii=False)
    if result["format"] == "bibtex":
        return str(result["bibtex"])
    return "\n\n".join([textwrap.fill(result["text"], 100), result["bibtex"]])


def status(result: dict[str, Any]) -> str:
    lines = [] if result["batch"] is None else _batch_lines(result["batch"])
    for item in result["outputs"]:
        share = "" if item["done"] is None else f", {item['done']} of {item['total']} blocks done"
        holder = f", held by {item['holder']}" if item["holder"] else ""
        name = item["output"].rpartition("/")[2]
        damage = f", {item['damage']}. Run 'verify {name} --repair' to repair it." if item["damage"] else ""
        lines.append(f"{item['output']}: {item['state']}{share}{holder}{damage}")
        if item["training"]:
            lines += _training(item["training"])
    return "\n".join(lines)


def _training(found: dict[str, Any]) -> list[str]:
    """Where a training is, and the curve of its held-out error."""
    of = "" if found["steps"] is None else f" of at most {found['steps']}"
    left = "" if found["left_s"] is None else f"; at most {duration(found['left_s'])} left"
    said = (
        f"  step {found['step']}{of}, loss {found['loss']:.4f}, held-out error {found['held_out']:.5f} of the noise "
        f"variance (lowest {found['best']:.5f}){left}"
    )
    picture = [f"  newest picture: {found['preview']}"] if found["preview"] else []
    return [said, *picture, *(f"  {line}" for line in curve(found["curve"]))]


def _batch_lines(run: dict[str, Any]) -> list[str]:
    """A batch run and each of its jobs."""
    spent = (
        ""
        if run["gpu_hours"] is None
        else (f", {run['gpu_hours']:.3g} GPU-hours and {run['cpu_hours']:.3g} core-hours so far")
    )
    lines = [f"{run['command']} {run['run']}: {run['state']}{spent}"]
    for job in run["jobs"]:
        number = f"job {job['id']}" if job["id"] else ""
        done = "" if job["percent"] is None else f"{job['percent']} %"
        left = "" if job["left"] is None else f"{job['left']} left"
        lines.append(
            f"  {job['kind']:<7} {job['state']:<9} "
            + ", ".join(part for part in (number, done, left, job["why"]) if part)
        )
        if job["state"] == "failed":
            lines.append(f"          log: {job['log']}")
    if any(run["workers"].values()):
        lines.append(f"  workers {run['workers']['running']} running, {run['workers']['pending']} pending")
    if run["blocks"] is not None:
        blocks = run["blocks"]
        rate = "" if blocks["per_hour"] is None else f", {blocks['per_hour']} in an hour"
        left = "" if blocks["left_s"] is None else f", about {blocks['left_s'] / 3600:.1f} h left"
        lines.append(f"  blocks  {blocks['done']} of {blocks['total']}{rate}{left}")
    return lines


def resume(result: dict[str, Any]) -> str:
    if "resumed" in result:
        return (
            "\n".join(f"{output}: complete" for output in result["resumed"]) or "nothing is unfinished here"
        )
    return submit(result) if result["jobs"] else f"{result['folder']}: nothing is missing"


def submit(result: dict[str, Any]) -> str:
    """Jobs that were handed in, what they may cost, and how to follow them."""
    jobs = [f"{job['kind']}: job {job['id']}" for job in result["jobs"]]
    where = f"tdenoise-pipeline status, logs, cancel or resume {result['folder']}"
    return "\n".join([*result.get("costs", []), *jobs, where])


def cancel(result: dict[str, Any]) -> str:
    ids = ", ".join(result["cancelled"])
    return f"cancelled: {ids}" if ids else "there was no job to cancel"


def profiles_list(result: dict[str, Any]) -> str:
    return "\n".join([*result["profiles"], f"your own: {result['user_folder']}"])


def profiles_show(result: dict[str, Any]) -> str:
    lines = []
    for section, asks in result.items():
        shown = (f"{key}={value}" for key, value in asks.items() if value not in (None, ()))
        lines.append(f"{section:<8} {', '.join(shown)}")
    return "\n".join(lines)


def profiles_check(result: dict[str, Any]) -> str:
    lines = []
    for section, job in result["jobs"].items():
        fine = "accepted" if result["scheduler"] == "slurm" else "nothing wrong was found"
        words = [f"wrong: {text}" for text in job["problems"]] or [fine]
        lines.append(f"{section:<8} " + "; ".join([*words, *job["notes"]]))
    return "\n".join(lines)


def models_import(result: dict[str, Any]) -> str:
    imported = result.get("imported")
    origin = f", imported from {one_line(imported['name'])}" if imported else ""
    return f"{result['model']}: model {result['sha256'][:12]}{origin}"


def models_export(result: dict[str, Any]) -> str:
    size = f"{result['file']}: model {result['model'][:12]}, {result['bytes'] / 1e6:.1f} MB"
    return "\n".join([size, *(f"note: {warning}" for warning in result["warnings"])])


def models_show(result: Any) -> str:
    from ..train.show_model import summary

    return "\n".join(summary(result))


def simulate(result: dict[str, Any]) -> str:
    return f"{result['raw']} and {result['truth']}"


def doctor(result: dict[str, Any]) -> str:
    from ..jobs.doctor import lines

    screen = lines(result)
    if not sys.stdout.isatty():
        return "\n".join(screen)
    from rich.console import Console
    from rich.text import Text

    console = Console()
    with console.capture() as captured:
        for line in screen:
            console.print(Text(line, style="green" if line.startswith("ok") else "red"))
    return captured.get().rstrip("\n")


def scripts(answer: dict[str, Any]) -> str:
    """Scripts that could be copied, with what is not part of them as comments."""
    texts = [
        job["script"] + (f"# queued with {job['after']}\n" if job["after"] else "") for job in answer["jobs"]
    ]
    return "\n".join([*texts, *(f"# {line}" for line in answer["costs"])])


def plan(result: dict[str, Any]) -> str:
    """The plan of a dry run, a line for each thing; sizes in words."""
    from ..resources.budget import in_words

    lines: dict[str, Any] = {}
    times: list[str] = []
    for key, value in result.items():
        if key == "metadata" or value is None:
            continue
        if key == "times":
            times = [_time_of(row) for row in value]
            continue
        if key.startswith("time_") and key.endswith("_s"):
            key, value = key.removesuffix("_s"), f"{value:.3g} s" if value < 100 else duration(value)
        if key.endswith("_bytes"):
            key, value = key.removesuffix("_bytes"), in_words(value)
        lines[key.replace("_", " ")] = value
    width = max(map(len, lines))
    return "\n".join([*(f"{key:<{width}}  {value}" for key, value in lines.items()), *times])


def _time_of(row: dict[str, Any]) -> str:
    """What a device takes for an ensemble."""
    from ..resources.budget import in_words

    where = f"{row['device']}, {row['workers']} worker{'' if row['workers'] == 1 else 's'}"
    memory = in_words(row["worker_memory_bytes"])
    return f"  {where}, ensemble {row['ensemble']:>2}: {duration(row['apply_s'])}, {memory} each"
