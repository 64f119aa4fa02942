"""Apply: a trained model denoises a movie, block by block, on Dask workers.

The plan is pure. A task reads the core and the halo of one block, denoises, writes its own whole shards, makes
them durable, reads them back and leaves a marker. The driver only hands out blocks that have no marker.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.card import ModelCard
from tdenoise.network.registry import architecture_of
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.noise import Scale, noise_law

from ..errors import PipelineError, ResourceError, UsageError, VerificationError
from ..files.write_errors import DISK_FULL
from ..inputs.bad_pixels import movie_stand_ins
from ..inputs.far_sums import write_far_sums
from ..inputs.model_fit import check_as_it_is, movie_noise, movie_scale, open_model, tell_drift
from ..runs import choices, markers, paths, plans, progress
from ..settings.denoise_settings import ApplyConfig
from ..settings.recorded_settings import record
from ..settings.workers import LOCAL
from ..step_control import Control
from ..store import integrity, pyramid, store, writing
from ..store.blocks import Block
from ..store.shards import shard_damage, shard_key, shards_in
from ..version import VERSION
from ..workers import cluster, job_array, shares
from ..workers.executors import Connect, DaskWorkers, Executor, SharingProcess
from .apply_plan import Plan, check_budget, giving_back_threads, make_plan, usable_gpus, workers_of
from .block_work import Job, ModelPlugin, marker_of, run_block, save_for_blocks, stop_blocks
from .given_back import Given, adopt, finish_draft, is_made, prepare_draft, read_evidence

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """What is sound of a damaged denoised store, for its repair."""

    path: Path
    ids: tuple[str, ...]  # of the content of its arrays, which the repaired store must have
    hashes: dict[str, dict[str, str]]  # of its sound shards, by array and grid position
    device: str  # that computed them
    given: Given | None = None  # what the counts gave back


@torch_setup.restored()
def apply(
    config: ApplyConfig,
    control: Control | None = None,
    reconnect: Callable[[Connect], Connect] = lambda start: start,
    known: Known | None = None,
) -> dict[str, Any]:
    """Denoise a whole movie, block by block; safe to stop and start again.

    Parameters
    ----------
    config : ApplyConfig
    control : Control, optional
    reconnect : callable, optional
        Given what starts workers, returns what is used instead, such as workers that are there already.
    known : Known, optional
        Results that need not be computed again.

    Returns
    -------
    dict
        What the denoised store says about itself.

    Raises
    ------
    InputError
        If movie or model are missing or damaged, or do not fit together.
    ResourceError
        If a block does not fit the workers' memory, or the output the disk.
    Stopped
        If a signal came, or the workers were lost too often.
    """
    control = control or Control()
    request = _Request.of(config, known)
    id = plans.plan_id(request.plan.identity)
    if store.already_done(config.output, id) and not (
        config.force and (request.share is None or _begun(config.output))
    ):
        progress.tidy_up(config.output)
        return store.read_attributes(config.output)
    request.check()
    if config.workers.kind == "array":
        # A task without a block would wait in the queue for nothing.
        n_tasks = min(config.workers.count, len(request.plan.blocks))
        job_array.apply_array(config, n_tasks, request.plan.identity, request.inputs, request.create, control)
        return store.read_attributes(config.output)
    try:
        _build(request, _executor(config, request.share, reconnect), control)
    except PipelineError:
        if request.share is None or not store.already_done(config.output, id):
            raise  # else: the others who share the work have finished it
    return store.read_attributes(config.output)


@dataclass(frozen=True)
class _Request:
    """What is asked for: the settings, the movie and the model that they name, and the plan that follows."""

    config: ApplyConfig
    share: shares.Share | None
    movie: store.Store
    model: Path
    card: ModelCard
    scale: Scale
    bad: NDArray[np.float32] | None  # what stands in for bad pixels
    plan: Plan
    known: Known | None

    @classmethod
    def of(cls, config: ApplyConfig, known: Known | None) -> _Request:
        """Open what the settings name, and plan."""
        share = None if config.share is None else _parse_share(config)
        movie = store.open_store(config.movie, store.MOVIE)
        model = config.model or checkpoint.BASE
        card = open_model(model).card
        scale = movie_scale(movie, card)
        if config.model is None:
            check_as_it_is(movie)
        bad = movie_stand_ins(movie)
        return cls(config, share, movie, model, card, scale, bad, make_plan(config, movie, card, bad), known)

    @property
    def inputs(self) -> list[Path]:
        """What is read: the output must not lie in it."""
        return [self.config.movie, self.model]

    def check(self) -> None:
        """Refuse what would fail later."""
        if self.share is None:  # one of many looks at no more than what it reads
            self.movie.array.check_all()
        check_budget(self.config, self.plan, self.movie, self.card)
        if not self.config.ignore_drift:
            tell_drift(self.movie, self.plan.drift, architecture_of(self.card))
        cluster.check_jobs(self.config.workers, self.config.worker_memory, self.config.profile)

    def create(self, path: Path) -> None:
        """An empty store with all arrays that will be written."""
        dtype, movie, geometry = np.dtype(np.float32), self.movie, self.plan.geometry
        levels = pyramid.levels_of(store.DENOISED, movie.shape)
        writing.create(
            path, store.DENOISED, movie.shape, dtype, geometry, movie.coordinates, movie.units, levels
        )
        if store.VARIANCE in self.plan.layers:
            described = {"units": f"{movie.units}^2", "long_name": "variance of the expected counts"}
            writing.add_sharded(path, store.VARIANCE, movie.shape, dtype, geometry, described)

    def job(self, run: progress.OutputRun) -> Job:
        """What the workers are told; larger arrays of it lie in files."""
        config, plan, folder = self.config, self.plan, run.folder.absolute()
        brightness = None if plan.brightness is None else plan.brightness.stacked
        return Job(
            movie=config.movie.absolute(),
            output=run.partial.absolute(),
            folder=folder,
            token=run.token,
            model=self.model.absolute(),
            model_id=self.card["sha256"],
            scale=self.scale,
            ensemble=config.ensemble,
            precision=config.precision,
            kept_bits=None if config.lossless else store.KEPT_BITS,
            device=config.device,
            stand_ins=save_for_blocks(folder, "stand_ins", self.bad),
            drift=save_for_blocks(folder, "drift", plan.drift),
            brightness=save_for_blocks(folder, "brightness", brightness),
            far=folder / "done" if plan.sees_far else None,
            layers=plan.drafted,
            member=run.member,
            movie_id=self.movie.id,
        )


def _build(request: _Request, executor: Executor, control: Control) -> None:
    """Make the output: what is there of it is kept, the other blocks are done, and it gets its name."""
    config, plan = request.config, request.plan
    opened = executor.open_run(
        config.output, plan.identity, request.inputs, force=config.force, command=config, stop=control.stop
    )
    with opened as run:
        if config.resume and not run.begun:
            raise UsageError(f"{config.output}: there is nothing to resume. Remove --resume to start.")
        run.prepare(request.create)
        if plan.gives_back:
            prepare_draft(run.folder, request.movie.shape, plan.geometry)
        if request.known is not None:
            _take_over(request.known, plan, run)
        job = request.job(run)
        if job.far is not None:
            with run.alone("far frames"):
                bad, drift = request.bad, plan.drift
                write_far_sums(job.far, request.movie, drift, bad, lambda: control.check("apply"))
        _run_blocks(request, job, run, executor, control)
        with run.alone("commit"):
            if request.share is None or not store.already_done(config.output, run.id):
                run.begin_completion(request.create)  # another of those who share may have been killed here
                _finish(request, job, run, control)


def _finish(request: _Request, job: Job, run: progress.OutputRun, control: Control) -> None:
    """Give the output, all of whose blocks are done, its attributes, its hashes and its name."""
    config, movie, plan, known = request.config, request.movie, request.plan, request.known
    records = run.done()
    hashes = {layer: markers.hashes(records.values(), layer) for layer in plan.layers}
    if plan.gives_back:
        noise = movie_noise(movie)
        correlations = [(c.y, c.x, c.value) for c in noise.correlations if c.t == 0 and c.matters]
        law = noise_law(noise, movie.attributes["detector"]["counts_per_electron"])
        hashes[store.DENOISED] = finish_draft(
            job,
            plan.blocks,
            plan.geometry,
            correlations,
            0.0 if law is None else law.read_variance / law.gain,
            run,
            control,
            None if known is None else known.given,
        )
    brightness = plan.brightness or Brightness.steady(movie.shape[0])
    writing.add_brightness(run.partial, brightness.levels, brightness.valid, brightness.tilts)
    for layer in plan.layers:
        _check_complete(run.partial / layer, plan.geometry, hashes[layer], movie.shape)
    hashes |= _coarser(request, run, control)
    attributes = _describe(request, run, hashes)
    if known is not None and content_ids(attributes) != known.ids:
        raise VerificationError(
            f"{config.output}: the recomputed data differ from the stored data; another kind of device or "
            "another version can be the cause. The store is unchanged; apply the model again with --force."
        )
    run.check()
    for layer in hashes:
        if layer != store.DENOISED:
            writing.record_hashes(run.partial, layer, hashes[layer])
    writing.finish(run.partial, store.DENOISED, attributes, hashes[store.DENOISED], record(config))
    run.commit()


def _coarser(request: _Request, run: progress.OutputRun, control: Control) -> dict[str, dict[str, str]]:
    """Make the pyramid of an output that is complete otherwise; hashes of its shards."""
    return pyramid.build(
        run.partial,
        pyramid.levels_in(run.partial, pyramid.levels_of(store.DENOISED, request.movie.shape)),
        run.folder / "done",
        writing.pyramid_values,
        lambda: control.check("apply"),
        run.check,
        giving_back_threads(request.plan.geometry.shard),
    )


def _parse_share(config: ApplyConfig) -> shares.Share:
    if config.workers != LOCAL:
        raise UsageError(f"--share computes its blocks in this process. Remove --workers {config.workers}.")
    return shares.parse_share(config.share or "")


def _begun(output: Path) -> bool:
    """Whether an output is being made; a share that is told --force must not begin again what was just finished."""
    return (paths.work_folder(output) / "created").exists()


def _executor(
    config: ApplyConfig, share: shares.Share | None, reconnect: Callable[[Connect], Connect]
) -> Executor:
    """Who does the blocks."""
    if share is not None:
        return SharingProcess(share)
    return DaskWorkers(workers_of(config), config.worker_memory, config.profile, reconnect)


def content_ids(attributes: dict[str, Any]) -> tuple[str, ...]:
    """Ids of the content of all arrays of a denoised store."""
    variance = attributes.get(store.VARIANCE)
    return attributes["id"], *([] if variance is None else [variance["id"]])


def _take_over(known: Known, plan: Plan, run: progress.OutputRun) -> None:
    """Put the sound shards of a store, and markers for the blocks that need no more, into the partial store."""
    done = run.done()
    for block in plan.blocks:
        keys = [
            shard_key(region, plan.geometry.shard) for region in shards_in(block.core, plan.geometry.shard)
        ]
        sound = all(known.hashes.get(layer, {}).keys() >= set(keys) for layer in plan.layers)
        if block.number in done or not sound:
            continue
        hashes = {layer: {key: known.hashes[layer][key] for key in keys} for layer in plan.layers}
        for layer in plan.layers:
            for key in keys:
                writing.adopt_shard(
                    _shard_file(known.path / layer, key), _shard_file(run.partial / layer, key)
                )
        if plan.gives_back:
            for key in keys:
                adopt(run.folder, key, hashes[store.DENOISED][key])
        markers.mark(run.folder, block.number, marker_of(hashes, known.device), run.token)


def _run_blocks(
    request: _Request, job: Job, run: progress.OutputRun, executor: Executor, control: Control
) -> None:
    """Hand out the blocks that have no valid marker until all have one."""
    plan = request.plan

    def remaining() -> list[Block]:
        # A marker counts only while the shards it names are whole; from then on, it is enough.
        done = run.done_numbers()
        for number in sorted(done):
            found = markers.marker(run.folder, number)
            if found is None or not _whole(job, plan.geometry, found, number):
                markers.forget(run.folder, number)
                done.remove(number)
        return [block for block in plan.blocks if block.number not in done]

    n_blocks = len(plan.blocks)
    run.once("markers", remaining)
    control.progress("apply", len(run.done_numbers()), n_blocks)
    gpus = usable_gpus(job.device) if workers_of(request.config).kind == "local" else []
    plugin = ModelPlugin(job.model, job.model_id, job.device, gpus)
    task, end = functools.partial(run_block, job), functools.partial(stop_blocks, job.token)
    outcomes = executor.do(run, plan.blocks, remaining, task, plugin, control, end)
    failures: dict[int, BaseException] = {}
    for outcome in outcomes:
        if isinstance(outcome.error, OSError) and outcome.error.errno in DISK_FULL:
            raise ResourceError(
                f"{job.output}: the disk is full, can hold no more files, or your quota is used up "
                f"({outcome.error.strerror}). "
                "Free some space, then run the same command again to continue."
            )
        if isinstance(outcome.error, PipelineError) and outcome.error.exit_code != 1:
            raise outcome.error
        if outcome.error is not None:
            failures[outcome.item.number] = outcome.error
            log.error(
                "block %d (frames %d to %d) failed: %s",
                outcome.item.number,
                *outcome.item.core.frames,
                str(outcome.error) or type(outcome.error).__name__,
            )
        control.progress("apply", n_blocks - outcome.n_left, n_blocks)
    if failures:
        number, error = next(iter(failures.items()))
        raise PipelineError(
            f"{len(failures)} of {n_blocks} blocks failed, first block {number}: "
            f"{str(error) or type(error).__name__}. The others are done; run the same command again to retry "
            "the failed ones."
        ) from error


def _shard_file(array: Path, key: str) -> Path:
    return array.joinpath("c", *key.split("."))


def _whole(job: Job, geometry: store.Geometry, record: dict[str, Any], number: int) -> bool:
    """Whether all that a marker names is there. A draft is not needed any more where its shard is made."""
    # A repair takes sound shards over, without the sums that they were made with.
    summed = record.get("evidence")
    drafted = job.layers[0] == store.DRAFT
    if drafted and summed is not None and read_evidence(job.folder, number, summed) is None:
        return False

    def is_there(layer: str, key: str) -> bool:
        if layer == store.DRAFT and (summed is None or is_made(job.folder, key)):
            if not is_made(job.folder, key):
                return False
            layer = store.DENOISED
        file = _shard_file(job.array(layer), key)
        return shard_damage(file, geometry.shard, geometry.chunk, 1) is None

    return all(is_there(layer, key) for layer in job.layers for key in markers.hashes([record], layer))


def _check_complete(
    array: Path, geometry: store.Geometry, hashes: dict[str, str], shape: tuple[int, int, int]
) -> None:
    n_shards = int(np.prod([-(-n // s) for n, s in zip(shape, geometry.shard, strict=True)]))
    if len(hashes) != n_shards:
        raise PipelineError(
            f"{array}: {n_shards - len(hashes)} of {n_shards} shards have no marker. Run the same command again."
        )
    for key in hashes:
        file = _shard_file(array, key)
        damage = shard_damage(file, geometry.shard, geometry.chunk, 1)
        if damage is not None:
            raise PipelineError(f"{file} {damage}. Run the same command again to redo it.")


def _describe(
    request: _Request, run: progress.OutputRun, hashes: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """What the denoised store says about itself."""
    movie, card, plan = request.movie, request.card, request.plan

    def content(layer: str) -> str:
        array = zarr.open_array(run.partial / layer, mode="r")
        return integrity.content_id(layer, array, hashes[layer])

    levels = {
        level.path: {"id": content(level.path), "frames": level.frames, "pixels": level.pixels}
        for level in pyramid.levels_in(run.partial, pyramid.levels_of(store.DENOISED, request.movie.shape))
    }
    held_out = [m["held_out"] for m in card["movies"] if m["id"] == movie.id]
    seen = [*card["movies"], *card["ancestors"]]
    same = [m for m in seen if movie.id == m["id"] or movie.attributes["source"]["sha256"] == m["source"]]
    trained: bool | None = bool(same)
    if card.get("imported") is not None:
        # Nobody knows what imported weights were trained on: any frame may be among it, any movie too.
        held_out, trained = [], trained or None
    return {
        "kind": "denoised",
        "plan": run.id,
        "id": content(store.DENOISED),
        # Only where there is one.
        **({store.VARIANCE: {"id": content(store.VARIANCE)}} if store.VARIANCE in plan.layers else {}),
        **({store.PYRAMID: levels} if levels else {}),
        "movie": {"id": movie.id, "name": movie.path.name, "source": movie.attributes["source"]["name"]},
        "model": {"id": card["sha256"], "kind": card["kind"], "blind_radius": card["blind_radius"]},
        "held_out_frames": held_out[0] if held_out else [],
        # Also by a model it was adapted from, or on another cut of the same raw file.
        "trained_on_this": trained,
        **choices.told(request.config.output),
        "settings": plan.identity,
        "devices": sorted({r["device"] for r in run.done().values()}),
        "software": VERSION,
    }
