"""`view`: what the server gives and refuses, and the page in a browser."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
from small import counts, model_folder
from small import movie_store as make_movie
from stores import denoised_store, events_beside, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.errors import InputError, ResourceError
from tdenoise_pipeline.inputs.shown import shown_movies
from tdenoise_pipeline.local_page.server import Tabs
from tdenoise_pipeline.settings.config import ApplyConfig
from tdenoise_pipeline.store import pyramid, store
from tdenoise_pipeline.view.frames import EMPTY, View, pack, read_view
from tdenoise_pipeline.view.movies import Movies
from tdenoise_pipeline.view.server import open_server

TOKEN = "a-token-of-a-test"
SHAPE = (40, 60, 400)
in_browser = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, whose movie has a pyramid."""
    folder = tmp_path_factory.mktemp("run")
    movie = make_movie(folder, counts(SHAPE), frame_time=0.02, pixel_size=0.05)
    model = model_folder(folder / "model")
    apply(ApplyConfig(movie=movie, model=model, output=folder / "denoised.zarr", ensemble=1, share="0/1"))
    return folder


@dataclass
class Served:
    """A server that is running."""

    port: int

    def ask(self, name: str, token: str = TOKEN, host: str | None = None) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"X-Token": token} | ({} if host is None else {"Host": host})
        connection.request("GET", f"/{name}", headers=headers)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def frame(self, layer: str, t: int, where: tuple[int, int, int, int, int]) -> np.ndarray:
        pixels, y0, y1, x0, x1 = where
        words = f"set=0&layer={layer}&t={t}&pixels={pixels}&y0={y0}&y1={y1}&x0={x0}&x1={x1}"
        status, told, data = self.ask(f"frame?{words}")
        assert status == 200
        shape = tuple(map(int, told["X-Shape"].split()))
        codes = np.frombuffer(data, np.uint8 if len(data) == np.prod(shape) else "<u2").reshape(shape)
        return float(told["X-Offset"]) + float(told["X-Scale"]) * codes


def serve(movies: list[Movies], tabs: Tabs | None = None) -> Iterator[Served]:
    server = open_server(movies, TOKEN, 0, tabs or Tabs(threading.Event()))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Served(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Served]:
    yield from serve([Movies(shown_movies(run)), Movies(shown_movies(run / "movie.zarr"))])


def test_frames_come_as_they_are_stored_and_at_lower_resolution_as_means(run: Path, served: Served) -> None:
    recorded = counts(SHAPE)
    denoised = np.asarray(store.open_store(run / "denoised.zarr", store.DENOISED).array[:])
    np.testing.assert_array_equal(served.frame("counts", 7, (1, 8, 40, 128, 400)), recorded[7, 8:40, 128:])
    found = served.frame("denoised", 39, (1, 0, 60, 0, 400))
    np.testing.assert_allclose(found, denoised[39], atol=np.ptp(denoised[39]) / 65000)
    means = recorded[9].reshape(15, 4, 100, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(served.frame("counts", 9, (4, 0, 60, 0, 400)), means, atol=1e-4)
    means = denoised[9].reshape(30, 2, 200, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(served.frame("denoised", 9, (2, 0, 60, 0, 400)), means, rtol=1e-2, atol=0.03)


def test_who_does_not_know_the_token_or_comes_by_another_name_gets_nothing(served: Served) -> None:
    assert served.ask("about")[0] == 200 and served.ask("about", host="localhost:9")[0] == 200
    for name in ("about", "frame?set=0", "nothing"):
        for token in ("", "a-token-of-a-tesT", "\xe9"):
            assert served.ask(name, token)[0] == 403
        assert served.ask(name, host="evil.example")[0] == 403
    status, told, page = served.ask("", token="")
    assert status == 200 and "default-src 'none'" in told["Content-Security-Policy"]
    assert TOKEN.encode() not in page and b"http:" not in page and b"https:" not in page
    for name in ("../server.py", "%2e%2e/server.py", "page/view.js", "/etc/passwd"):
        assert served.ask(name)[0] == 404


@pytest.mark.parametrize(
    "words",
    [
        "set=0&layer=counts&t=40&pixels=1&y0=0&y1=60&x0=0&x1=400",
        "set=0&layer=counts&t=0&pixels=3&y0=0&y1=60&x0=0&x1=400",
        "set=0&layer=counts&t=0&pixels=4&y0=2&y1=60&x0=0&x1=400",
        "set=0&layer=counts&t=0&pixels=1&y0=-4&y1=60&x0=0&x1=400",
        "set=0&layer=counts&t=0&pixels=1&y0=0&y1=61&x0=0&x1=400",
        "set=0&layer=secret&t=0&pixels=1&y0=0&y1=60&x0=0&x1=400",
        "set=9&layer=counts&t=0&pixels=1&y0=0&y1=60&x0=0&x1=400",
        "set=0&layer=counts&t=x",
    ],
)
def test_a_question_that_leads_out_of_the_movie_is_refused_in_a_sentence(served: Served, words: str) -> None:
    status, _, sentence = served.ask(f"frame?{words}")
    assert status == 400 and sentence.endswith(b".")


def test_the_noise_band_holds_as_many_counts_as_it_says(tmp_path: Path) -> None:
    clean = np.broadcast_to(5 + 3 * np.sin(np.arange(40) / 6.0), (400, 40, 40)).copy()
    clean[200:] += 4
    movie = movie_store(tmp_path / "m.zarr", np.random.default_rng(1).poisson(clean).astype(np.uint8))
    denoised_store(tmp_path / "d.zarr", movie, clean)
    movies = Movies(shown_movies(tmp_path / "d.zarr"))
    inside = []
    for radius, n_pixels in ((0, 1), (1, 5), (2, 13)):
        found = movies.trace(y=20, x=20, radius=radius, t0=0, t1=400)
        assert found["n_pixels"] == n_pixels
        raw, shown, half = (np.array(found[key]) for key in ("counts", "denoised", "half_width"))
        inside.append(float((np.abs(raw - shown) <= half).mean()))
        assert shown[200:].mean() - shown[:200].mean() == pytest.approx(4, abs=1e-3)
    assert all(0.91 < share < 0.99 for share in inside)


def test_a_damaged_frame_is_told_and_the_others_are_shown(tmp_path: Path) -> None:
    movie = make_movie(tmp_path, counts((70, 12, 14)))
    (movie / "counts/c/1/0/0").write_bytes(b"")
    movies = Movies(shown_movies(movie))
    part = {"pixels": 1, "y0": 0, "y1": 12, "x0": 0, "x1": 14}
    assert movies.frame("counts", t=3, **part).codes.shape == (12, 14)
    with pytest.raises(InputError, match=r"c/1/0/0.*is cut"):
        movies.frame("counts", t=40, **part)


def test_sums_of_whole_numbers_are_the_means_and_nan_stays_nan() -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 24, 32)).astype(np.uint8)
    for step in (2, 4, 8):
        expected = values.reshape(3, 24 // step, step, 32 // step, step).mean(axis=(2, 4))
        np.testing.assert_allclose(pyramid.mean(values, (1, step, step)), expected, rtol=1e-6)
    frame = np.array([[1.0, np.nan], [2.5, 3.0]], np.float32)
    for kind in ("u2", "u4", "i2", "i4", "f8"):
        counted = np.array([[0, 70, 9]], kind)
        packed = pack(counted)
        np.testing.assert_allclose(
            packed.offset + packed.scale * packed.codes.astype(float), counted, atol=1e-2
        )
        flat = pack(np.full((2, 3), 7, kind))
        np.testing.assert_array_equal(flat.offset + flat.scale * flat.codes.astype(float), 7)
    packed = pack(frame)
    assert packed.codes[0, 1] == EMPTY
    back = packed.offset + packed.scale * packed.codes.astype(float)
    np.testing.assert_allclose(back[np.isfinite(frame)], frame[np.isfinite(frame)], atol=1e-4)


def test_a_lower_resolution_is_read_from_the_pyramid(run: Path) -> None:
    _, denoised = shown_movies(run)
    assert [level.pixels for level in denoised.levels] == [1, 2]
    part = read_view(denoised.levels, (4, 8), View((0, 60), (128, 400), 2))
    np.testing.assert_array_equal(part, denoised.levels[1].array[4:8, :, 64:])


def test_a_port_that_is_taken_and_a_movie_that_is_another_are_told(
    run: Path, served: Served, tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match=f"port {served.port} of this machine cannot be used"):
        open_server([], TOKEN, served.port, Tabs(threading.Event()))
    other = make_movie(tmp_path, counts((5, 8, 9)))
    with pytest.raises(InputError, match="was made from another movie"):
        shown_movies(run, other)
    assert main(["view", str(tmp_path / "none.zarr"), "--no-browser"]) == 3


def test_the_command_prints_the_address_and_the_tunnel_and_ends_with_ctrl_c(run: Path) -> None:
    words = [sys.executable, "-m", "tdenoise_pipeline.cli", "view", str(run), "--no-browser"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    found = re.search(r"http://127\.0\.0\.1:(\d+)/#(\S+)", lines[0])
    assert found and f"ssh -L {found[1]}:127.0.0.1:{found[1]} " in lines[1] and "Ctrl-C" in lines[2]
    request = urllib.request.Request(f"http://127.0.0.1:{found[1]}/about", headers={"X-Token": found[2]})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)[0]["shape"] == list(SHAPE)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in told


def test_it_ends_with_the_last_tab_and_not_when_one_is_loaded_anew() -> None:
    ended = threading.Event()
    tabs = Tabs(ended, patience_s=0.2)
    tabs.closed("of an earlier program")
    assert not ended.wait(0.5), "nobody has come yet"
    tabs.opened("one")
    tabs.opened("two")
    tabs.closed("one")
    assert not ended.wait(0.5), "the other is open"
    tabs.closed("two")
    tabs.opened("two, loaded anew")
    assert not ended.wait(0.5)
    tabs.closed("two, loaded anew")
    assert ended.wait(10)


READY = "typeof state !== 'undefined' && state.shown !== null"
PIXELS = "Array.from(document.getElementById('{}').getContext('2d').getImageData(0, 0, 100, 100).data).join()"


def open_page(page: chromium.Page, served: Served, token: str = TOKEN) -> None:
    page.go(f"http://127.0.0.1:{served.port}/#{token}")


@in_browser
@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 800, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_first_screen_shows_raw_and_denoised(
    served: Served, tmp_path: Path, width: int, dark: bool
) -> None:
    with chromium.Page(width, 900, dark) as page:
        open_page(page, served)
        page.wait_for(READY)
        for name in ("counts", "denoised"):
            box = page.value(f"document.getElementById('{name}').getBoundingClientRect().toJSON()")
            assert box["bottom"] <= 900 and box["left"] >= 0 and box["right"] <= width
        assert page.value("document.documentElement.scrollWidth") <= width
        shades = page.value(PIXELS.format("denoised")).split(",")
        assert len(set(shades)) > 20, "a picture, and not one grey"
        if kept := os.environ.get("REVIEW_IMAGES"):  # for people to look at
            Path(kept).mkdir(parents=True, exist_ok=True)
            (Path(kept) / f"view-{width}-{'dark' if dark else 'light'}.png").write_bytes(page.png())
        assert not page.errors


@in_browser
@pytest.mark.browser
def test_slider_keys_wheel_contrast_and_clicks_do_what_they_say(served: Served) -> None:
    with chromium.Page() as page:
        open_page(page, served)
        page.wait_for(READY)
        first = page.value(PIXELS.format("counts"))
        page.type_key("ArrowRight")
        page.wait_for("state.frame === 1 && state.shown.t === 1")
        assert page.value(PIXELS.format("counts")) != first
        page.value(
            "document.getElementById('frame').value = 30;"
            "document.getElementById('frame').dispatchEvent(new Event('input'))"
        )
        page.wait_for("state.shown.t === 30")
        before = page.value(PIXELS.format("denoised"))
        page.value(
            "document.getElementById('denoised-low').value = 900;"
            "document.getElementById('denoised-low').dispatchEvent(new Event('input'))"
        )
        assert page.value(PIXELS.format("denoised")) != before
        box = page.value("document.getElementById('counts').getBoundingClientRect().toJSON()")
        middle = box["left"] + box["width"] / 2, box["top"] + box["height"] / 2
        scale = page.value("state.view.scale")
        for _ in range(4):
            page.wheel(*middle, -120)
        page.wait_for(f"state.view.scale < {scale / 2} && state.shown.where.pixels === 1")
        page.click_at(*middle)
        page.wait_for("state.trace && state.trace.done === 40")
        assert page.value("state.place.y") == pytest.approx(30, abs=2)
        expected = counts(SHAPE)[:, 29:32, 199:202].mean()
        assert page.value("state.trace.counts.reduce((a, b) => a + b) / 40") == pytest.approx(
            expected, rel=0.3
        )
        page.type_key(" ")
        page.wait_for("state.playing && state.frame !== 30 && state.frame > 2")
        page.type_key(" ")
        assert not page.errors


CHANGES = (
    "0.2,10,9,12,0,30.5,200.2,1.5,10,4.5,9.25,1.1,0.97",
    "0.6,30,30,31,1,12,50,0.6,2.5,8,0.5,-0.9,0.4",
)


def with_events(run: Path, folder: Path, **other: Any) -> Path:
    """The run, and a folder beside its stores as `events` writes it."""
    shutil.copytree(run, folder)
    events_beside(folder / "denoised.zarr", CHANGES, **other)
    return folder


def test_changes_are_those_of_this_movie_and_a_damaged_table_is_told(run: Path, tmp_path: Path) -> None:
    found = Movies(shown_movies(with_events(run, tmp_path / "run"))).about()["changes"]
    assert [(c["t"], c["first"], c["last"], c["y"], c["x"], c["p"]) for c in found] == [
        (10, 9, 12, 30.5, 200.2, 0.97),
        (30, 30, 31, 12.0, 50.0, 0.4),
    ]
    assert Movies(shown_movies(run)).about()["changes"] is None
    # Of another recording; of this one, which was denoised anew since.
    for number, of in enumerate(("movie", "denoised")):
        other = with_events(run, tmp_path / str(number), **{of: {"id": "f" * 64}})
        assert Movies(shown_movies(other)).about()["changes"] is None
    table = tmp_path / "run/events/events.csv"
    table.write_text(table.read_text().replace("0.97", "much"))
    with pytest.raises(InputError, match="is not a table that 'events' wrote"):
        Movies(shown_movies(tmp_path / "run"))


@in_browser
@pytest.mark.browser
def test_another_movie_is_shown_with_its_own_pixels_and_crossed_limits_are_a_threshold(
    run: Path, tmp_path: Path
) -> None:
    other = make_movie(tmp_path, counts((5, 8, 9)).astype(np.uint16))
    for served in serve([Movies(shown_movies(other)), Movies(shown_movies(run))]):
        with chromium.Page() as page:
            open_page(page, served)
            page.wait_for(READY)
            page.value(
                "document.getElementById('set').value = '1';"
                "document.getElementById('set').dispatchEvent(new Event('change'))"
            )
            page.wait_for("state.shown !== null && Boolean(state.shown.layers.denoised)")
            assert page.value("state.shown.layers.counts.columns") > 9
            page.value("Object.assign(state.limits.denoised, { low: 2, high: 1 })")
            shades = "new Set(new Uint32Array(picture('denoised', state.shown.layers).data.buffer)).size"
            assert page.value(shades) <= 3, "black, white, and one between them"
            assert not page.errors


@in_browser
@pytest.mark.browser
def test_the_next_change_is_gone_to_and_marked(run: Path, tmp_path: Path) -> None:
    for served in serve([Movies(shown_movies(with_events(run, tmp_path / "run")))]):
        with chromium.Page() as page:
            open_page(page, served)
            page.wait_for(READY)
            page.type_key("n")
            page.wait_for("state.shown.t === 10")
            assert "probability 97 %" in page.value("document.getElementById('change').textContent")
            whole = PIXELS.replace("0, 0, 100, 100", "0, 0, 413, 413")
            marked = page.value(whole.format("denoised"))
            page.value("document.getElementById('marks').click()")
            assert page.value(whole.format("denoised")) != marked
            page.type_key("n")
            page.wait_for("state.shown.t === 30")
            assert not page.errors


@in_browser
@pytest.mark.browser
def test_the_program_ends_with_the_tab(run: Path) -> None:
    ended = threading.Event()
    for served in serve([Movies(shown_movies(run))], Tabs(ended, patience_s=2)):
        with chromium.Page() as page:
            open_page(page, served)
            page.wait_for(READY)
            page.ask("Page.reload")
            page.wait_for(READY)
            assert not ended.wait(3)
            page.close()
            assert ended.wait(30)


@in_browser
@pytest.mark.browser
def test_a_page_without_its_token_says_what_to_open(served: Served) -> None:
    with chromium.Page() as page:
        open_page(page, served, "another")
        page.wait_for("document.getElementById('message')?.hidden === false")
        assert "Open the whole address" in page.value("document.getElementById('message').textContent")


@in_browser
@pytest.mark.browser
def test_no_script_in_a_name_runs(tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror='document.title=1'>.zarr"
    made = make_movie(tmp_path, counts((5, 8, 9)))
    made.rename(path)
    for served in serve([Movies(shown_movies(path)), Movies(shown_movies(path))]):
        with chromium.Page() as page:
            open_page(page, served)
            page.wait_for(READY)
            assert "<img" in page.value("document.getElementById('title').textContent")
            assert page.value("document.images.length") == 0
