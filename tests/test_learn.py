"""`train ARCHIVE`: a model learns from all movies of an archive, version after version, and forgets nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import TINY, counts, model_folder, movie_store, network
from tdenoise_pipeline import cli
from tdenoise_pipeline.archive.add import add
from tdenoise_pipeline.archive.index import cards
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.files.sealed_json import read_sealed
from tdenoise_pipeline.runs import paths
from tdenoise_pipeline.settings.config import ArchiveAddConfig, TrainConfig
from tdenoise_pipeline.train.material import for_choosing, for_judging
from tdenoise_pipeline.workflow.learn import LEARNED, train
from tdenoise_pipeline.workflow.material import select

from tdenoise.network import checkpoint
from tdenoise.noise.noise import Scale
from tdenoise.training.acceptance import Difference, accept, interval_factor
from tdenoise.training.many_movies import BalancedLoader, Mix, OpenedWhenNeeded, drawn
from tdenoise.training.patches import Batch
from tdenoise.training.training_movie import TrainingMovie

SHAPE = (30, 32, 32)


def stripes(seed: int, dose: float, period: float = 4.0, n_frames: int = SHAPE[0]) -> np.ndarray:
    """Counts of stripes: a family is a period and a dose."""
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    rng = np.random.default_rng(seed)
    clean = 1 + 0.8 * np.sin((np.cos(seed) * rows + np.sin(seed) * columns) / period * 2 * np.pi)
    return rng.poisson(dose * np.broadcast_to(clean, (n_frames, *SHAPE[1:]))).astype(np.uint16)


def archive_of(folder: Path, **movies: np.ndarray) -> Path:
    """An archive of movies of these names."""
    for name, frames in movies.items():
        made = movie_store(folder / f"of_{name}", frames)
        made.rename(folder / f"{name}.zarr")
        add(ArchiveAddConfig(store=(folder / f"{name}.zarr",), archive=folder / "archive"))
    return folder / "archive"


# ---- what is drawn -----------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(0, 50),
    st.integers(1, 6),
)
def test_strata_are_drawn_equally_often_and_so_are_the_movies_of_each(
    sizes: list[int], seed: int, first: int, rounds: int
) -> None:
    numbers = iter(range(100))
    strata = [[next(numbers) for _ in range(size)] for size in sizes]
    found = Counter(drawn(strata, len(strata) * first + k, seed) for k in range(len(strata) * rounds))
    for movies in strata:
        times = [found[movie] for movie in movies]
        assert sum(times) == rounds
        assert max(times) - min(times) <= 2, (
            "each once before any comes again; a window may cut two such turns"
        )


def opened(n: int) -> tuple[OpenedWhenNeeded, list[int]]:
    """Movies of very different length, of which each shows its number; and which were opened."""
    asked: list[int] = []

    def open_movie(number: int) -> TrainingMovie:
        asked.append(number)
        frames = np.full((300 if number == 0 else 12, 20, 20), number + 1, np.uint8)
        return TrainingMovie(frames, Scale(1.0, 1.0, 1.0), (3,))

    return OpenedWhenNeeded(n, open_movie), asked


def test_a_long_movie_does_not_drown_short_ones() -> None:
    movies, _ = opened(4)
    loader = BalancedLoader(movies, TINY, mix=Mix((0,) * 4, (False,) * 4, 0.5), patch=16)
    shown = Counter(loader.movie_at(place, step) for step in range(0, 4096, 32) for place in range(8))
    assert max(shown.values()) < 1.3 * min(shown.values())


def test_half_of_the_patches_are_of_earlier_movies_however_few_they_are() -> None:
    movies, _ = opened(7)
    mix = Mix((0, 0, 0, 1, 1, 1, 2), (False,) * 6 + (True,), 0.5)
    loader = BalancedLoader(movies, TINY, mix=mix, patch=16)
    for step in (0, 100, 1000):
        assert Counter(loader.movie_at(place, step) == 6 for place in range(8)) == {True: 4, False: 4}
    without = BalancedLoader(movies, TINY, mix=replace(mix, replay=0.0), patch=16)
    assert all(without.movie_at(place, step) != 6 for place in range(8) for step in (0, 100, 1000))


def test_patches_depend_on_the_step_alone_and_processes_share_them() -> None:
    movies, _ = opened(5)
    mix = Mix((0, 0, 1, 1, 1), (True, False) * 2 + (True,), 0.5)
    whole = BalancedLoader(movies, TINY, mix=mix, patch=16)
    again = BalancedLoader(opened(5)[0], TINY, mix=mix, patch=16)
    parts = [BalancedLoader(movies, TINY, mix=mix, patch=16, share=(i, 3)) for i in range(3)]
    batches = [whole.draw(step) for step in (0, 1, 300)]
    for step, batch in zip((300, 1, 0), batches[::-1], strict=True):
        shared = [part.draw(step) for part in parts]
        for field in fields(Batch):
            wanted = getattr(batch, field.name)
            assert torch.equal(getattr(again.draw(step), field.name), wanted)
            assert torch.equal(torch.cat([getattr(part, field.name) for part in shared]), wanted)


def test_few_movies_are_open_however_many_there_are() -> None:
    movies, asked = opened(200)
    loader = BalancedLoader(movies, TINY, mix=Mix((0,) * 200, (False,) * 200, 0.5), patch=16)
    for step in range(0, 1024, 64):
        loader.draw(step)
    assert len(movies._open) <= 4 and len(loader._loaders) <= 8
    assert len(set(asked)) > 20, "they change"


# ---- what is accepted --------------------------------------------------------------------------------------


def test_a_version_is_accepted_if_it_is_better_on_average_and_forgets_nothing() -> None:
    better, worse, unsure = (Difference(x, 0.001) for x in (-0.01, 0.01, 0.0015))
    assert accept({"a": better, "b": better}, {"a"}).accepted
    assert accept({"a": unsure, "b": better}, {"a"}).accepted, "within its interval"
    found = accept({"a": worse, "b": Difference(-1.0, 0.001)}, {"a"})
    assert not found.accepted and found.forgotten == ["a"]
    assert accept({"a": worse, "b": Difference(-1.0, 0.001)}, set()).accepted, (
        "a new movie cannot be forgotten"
    )
    assert not accept({"a": Difference(0.0, 0.0)}, {"a"}).accepted, "unchanged weights are no new version"
    assert not accept({"a": Difference(-0.001, 0.001)}, set()).accepted, "that may be chance"


@given(st.integers(1, 40))
def test_of_many_versions_that_change_nothing_few_are_said_to_forget(n: int) -> None:
    rng = np.random.default_rng(n)
    told = [
        bool(
            accept({str(i): Difference(z, 1.0) for i, z in enumerate(row)}, set(map(str, range(n)))).forgotten
        )
        for row in rng.standard_normal((400, n))
    ]
    assert np.mean(told) < 0.06, "2.5 % are to be expected"
    assert interval_factor(n) >= interval_factor(1)


def test_frames_that_judge_have_no_part_in_choosing() -> None:
    held_out = (7, 8, 9, 20, 21)
    assert set(for_choosing(held_out)) | set(for_judging(held_out)) == set(held_out)
    assert not set(for_choosing(held_out)) & set(for_judging(held_out))
    assert for_judging((4,)) == (4,)


# ---- what is selected --------------------------------------------------------------------------------------


def test_all_movies_that_fit_are_selected_and_the_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clean = counts((24, 32, 32), dose=20).astype(np.float32)
    archive = archive_of(
        tmp_path,
        a=stripes(1, 2.0),
        b=stripes(2, 16.0),
        blurred=(clean + np.roll(clean, 1, axis=2)) / 2,
        gone=stripes(3, 2.0),
    )
    (tmp_path / "gone.zarr").rename(tmp_path / "elsewhere.zarr")
    config, material, parent = select(TrainConfig(movie=archive, output=tmp_path / "m"), {})
    assert {path.name for path in config.movie} == {"a.zarr", "b.zarr"}
    assert sorted(material.told["left_out"]) == ["blurred.zarr", "gone.zarr"]
    assert parent.name == "base" and material.mix.earlier == (False, False)
    assert len(set(material.mix.strata)) == 2, "their doses differ"
    config, *_ = select(TrainConfig(movie=archive, output=tmp_path / "m", where=("dose < 4",)), {})
    assert [path.name for path in config.movie] == ["a.zarr"]
    with pytest.raises(InputError, match="holds no movie to learn from that fits base"):
        select(TrainConfig(movie=archive, output=tmp_path / "m", where=("dose > 100",)), {})


def test_settings_that_are_not_for_an_archive_are_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, a=stripes(1, 2.0))
    for wrong in ({"from_model": "scratch"}, {"head": "gamma"}, {"blind_radius": 1}, {"model": "udvd"}):
        with pytest.raises(UsageError):
            select(TrainConfig(movie=archive, output=tmp_path / "m", **wrong), {})
    with pytest.raises(UsageError, match="--where chooses movies of an archive"):
        TrainConfig(movie=tmp_path / "a.zarr", output=tmp_path / "m", where=("dose < 1",))
    with pytest.raises(UsageError, match="name one archive"):
        TrainConfig(movie=(archive, tmp_path / "a.zarr"), output=tmp_path / "m")


def test_frames_once_held_out_stay_so_and_no_other_cut_of_the_recording_comes_in(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, a=stripes(1, 2.0))
    before = network()
    movie = next(c for c in cards(archive) if c["kind"] == "movie")
    known = {"id": movie["id"], "source": movie["source"]["sha256"], "snr": 0.2, "held_out": [4, 5]}
    checkpoint.save_model(tmp_path / "v", before, {"movies": [known], "ancestors": [], "plan": "none"})
    cut = movie_store(tmp_path / "of_a", stripes(1, 2.0), frames="0:20")
    add(ArchiveAddConfig(store=(cut,), archive=archive))
    config = TrainConfig(movie=archive, output=tmp_path / "m", from_model=tmp_path / "v")
    _, material, _ = select(config, {})
    assert material.held_out == ((4, 5),) and material.mix.earlier == (True,)
    assert material.told["left_out"] == ["movie.zarr"]


# ---- what is learned ---------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model with random weights to start from."""
    return model_folder(tmp_path / "start", network(replace(TINY, features=4, widths=(8, 12))))


def learn(archive: Path, output: Path, *more: str) -> int:
    words = ["train", str(archive), "-o", str(output), "--device", "cpu", "--processes", "1", "-q", *more]
    return cli.main(words)


def test_a_version_is_learned_accepted_and_found_and_the_next_goes_on_from_it(
    tmp_path: Path, tiny: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = archive_of(tmp_path, a=stripes(1, 4.0), b=stripes(2, 4.0))
    one, two = tmp_path / "one", tmp_path / "two"
    assert learn(archive, one, "--from", str(tiny), "--steps", "60") == 0
    card, report = checkpoint.read_card(one), read_sealed(one / LEARNED)
    assert report is not None and report["accepted"] and report["mean"][0] < 0
    assert card["learned"]["version"] == 1 and {m["name"] for m in card["movies"]} == {"a.zarr", "b.zarr"}
    assert all(m["held_out"] for m in card["movies"])
    assert [c["name"] for c in cards(archive) if c.get("version") == 1] == ["one"]
    assert not paths.work_folder(one).exists()
    archive_of(tmp_path, c=stripes(6, 4.0))
    words = ["train", str(archive), "-o", str(two), "--device", "cpu", "--processes", "1", "--steps", "30"]
    code = main(words)
    printed = capsys.readouterr().out
    card, after = checkpoint.read_card(two), read_sealed(two / LEARNED)
    assert card["learned"]["from"] == "version 1" and card["parent"] == checkpoint.read_card(one)["sha256"]
    assert after is not None and code == (0 if after["accepted"] else 1)
    assert "version 2" in printed and after["reason"] in printed and "c.zarr" in printed
    assert [m["earlier"] for m in sorted(after["movies"], key=lambda m: m["name"])] == [True, True, False]
    first = {m["name"]: m["held_out"] for m in checkpoint.read_card(one)["movies"]}
    assert first.items() <= {m["name"]: m["held_out"] for m in card["movies"]}.items()
    words = ["apply", str(tmp_path / "a.zarr"), "--model", str(two), "-o", str(tmp_path / "d.zarr")]
    assert cli.main([*words, "--ensemble", "1", "--workers", workers, "-q"]) == 0
    assert cli.main(["verify", str(two), "-q"]) == 0


def test_the_same_command_does_nothing_more_and_says_the_same(tmp_path: Path, tiny: Path) -> None:
    archive = archive_of(tmp_path, a=stripes(1, 4.0))
    output = tmp_path / "one"
    words = ("--from", str(tiny), "--steps", "40")
    assert learn(archive, output, *words) == 0
    before = (output / "weights.safetensors").stat().st_mtime_ns
    archive_of(tmp_path, b=stripes(2, 4.0))  # what came meanwhile is for the next version
    (output / LEARNED).unlink()  # as if it was killed before it was judged
    assert learn(archive, output, *words) == 0
    assert (output / "weights.safetensors").stat().st_mtime_ns == before and (output / LEARNED).exists()


def test_a_training_that_is_stopped_goes_on_with_the_movies_it_began_with(tmp_path: Path, tiny: Path) -> None:
    from tdenoise_pipeline.errors import Stopped
    from tdenoise_pipeline.step_control import Control
    from tdenoise_pipeline.workflow.resume import resume

    archive = archive_of(tmp_path, a=stripes(1, 4.0))
    config = TrainConfig(
        movie=archive, output=tmp_path / "one", from_model=tiny, steps=40, device="cpu", processes=1
    )
    control = Control()

    def stop_soon(what: str, done: int, total: int) -> None:
        if what == "train":
            control.stop.set()

    control.progress = stop_soon
    with pytest.raises(Stopped):
        train(config, control)
    archive_of(tmp_path, b=stripes(2, 4.0))
    assert resume(tmp_path / "one")["resumed"] == [str(tmp_path / "one")]
    card = checkpoint.read_card(tmp_path / "one")
    assert [m["name"] for m in card["movies"]] == ["a.zarr"] and (tmp_path / "one" / LEARNED).exists()


@pytest.mark.slow
def test_a_new_family_is_learned_without_forgetting_the_old_one_and_not_without_replay(
    tmp_path: Path, tiny: Path
) -> None:
    archive = archive_of(tmp_path, **{f"old{i}": stripes(i, 8.0, 3.0) for i in range(3)})
    one = tmp_path / "one"
    assert learn(archive, one, "--from", str(tiny), "--steps", "150", "--movie-only") == 0
    archive_of(tmp_path, **{f"new{i}": stripes(10 + i, 8.0, 5.0) for i in range(3)})
    words = ("--from", str(one), "--steps", "200", "--movie-only")
    assert learn(archive, tmp_path / "without", *words, "--replay", "0") == 1
    report = read_sealed(tmp_path / "without" / LEARNED)
    assert report is not None and not report["accepted"] and "it forgets old" in report["reason"]
    assert [c["version"] for c in cards(archive) if c.get("version")] == [1], "the old one stays the default"
    assert learn(archive, tmp_path / "with", *words) == 0
    report = read_sealed(tmp_path / "with" / LEARNED)
    assert report is not None and report["accepted"] and "it forgets none of the 3" in report["reason"]
    with pytest.raises(UsageError, match="is an accepted version"):
        train(TrainConfig(movie=archive, output=tmp_path / "with", force=True))
