"""The archive: cards are written once, tell the truth, and say what was made from what."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import chromium
import pytest
from small import counts, model_folder, movie_store
from stores import denoised_store
from tdenoise_pipeline.archive.card import sealed_card
from tdenoise_pipeline.archive.index import cards
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.store import store

from tdenoise.files import atomic
from tdenoise.network.checkpoint import read_card


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """An archive of two movies, a model and a denoised movie."""
    movies = [movie_store(tmp_path / f"m{k}", counts((8, 16, 16), seed=k)) for k in range(2)]
    model = model_folder(tmp_path / "model")
    opened = store.open_store(movies[0], store.MOVIE)
    model_id = read_card(model)["sha256"]
    denoised_store(tmp_path / "denoised.zarr", opened, opened.array[:], model_id=model_id)
    words = [*map(str, movies), str(model), str(tmp_path / "denoised.zarr")]
    assert main(["archive", "add", *words, "-A", str(tmp_path / "A")]) == 0
    return tmp_path / "A"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_cards_tell_what_was_made_from_what(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = said(capsys, "archive", "list", "-A", made)["cards"]
    assert sorted(c["kind"] for c in cards) == ["denoised", "model", "movie", "movie"]
    shown = said(capsys, "archive", "show", "denoised.zarr", "-A", made)
    assert {c["kind"] for c in shown["made_from"]} == {"movie", "model"} and not shown["missing"]
    movie = next(c for c in shown["made_from"] if c["kind"] == "movie")
    children = said(capsys, "archive", "show", movie["id"][:12], "-A", made)["made_of_it"]
    assert [c["name"] for c in children] == ["denoised.zarr"]
    found = said(capsys, "archive", "find", "kind=movie", movie["id"], "-A", made)["cards"]
    assert [c["id"] for c in found] == [movie["id"]]
    assert said(capsys, "archive", "verify", "--deep", "-A", made)["n_cards"] == 4


def test_nothing_is_added_twice_and_a_move_is_a_new_card(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {f.name: f.read_bytes() for f in (made / "cards").iterdir()}
    place = made.parent / "m0/movie.zarr"
    assert said(capsys, "archive", "add", place, "-A", made)["added"] == []
    place.rename(made / "inside.zarr")
    (card,) = said(capsys, "archive", "add", made / "inside.zarr", "-A", made)["added"]
    assert (card["path"], card["number"]) == ("inside.zarr", 1)
    after = {f.name: f.read_bytes() for f in (made / "cards").iterdir()}
    assert after.items() > before.items() and len(after) == len(before) + 1
    assert len(said(capsys, "archive", "list", "-A", made)["cards"]) == 4


def test_the_index_is_only_an_echo_of_the_cards(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = said(capsys, "archive", "list", "-A", made)
    index = made / "index.sqlite"
    whole = index.read_bytes()
    one = whole.index(b'"fano": ') + 8
    torn, changed = whole[: len(whole) // 2], whole[:one] + b"7" + whole[one + 1 :]
    for content in (b"", b"nonsense\n", torn, changed):
        index.write_bytes(content)
        assert said(capsys, "archive", "list", "-A", made) == known
    assert said(capsys, "archive", "index", "-A", made)["n_cards"] == 4
    before = index.stat()
    assert said(capsys, "archive", "tag", "model", "-A", made, "--note", "a=b")["number"] == 1
    assert said(capsys, "archive", "find", "a = b", "-A", made)["cards"]
    assert index.stat().st_ino != before.st_ino, "it is replaced, never changed"
    before = index.stat()
    said(capsys, "archive", "list", "-A", made)
    assert index.stat().st_ino == before.st_ino, "and only where a card is new"


def test_notes_are_written_on_new_cards_and_found(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {f.name: f.read_bytes() for f in (made / "cards").iterdir()}
    place = made.parent / "m0/movie.zarr"
    (card,) = said(
        capsys, "archive", "add", place, "-A", made, "--note", "sample=Pt/CeO2", "--note", "kelvin=300"
    )["added"]
    assert card["notes"] == {"sample": "Pt/CeO2", "kelvin": "300"}
    said(capsys, "archive", "tag", card["id"][:12], "-A", made, "--note", "sample=Au", "--note", "kelvin=")
    found = said(capsys, "archive", "find", "sample = au and kind = movie", "-A", made)["cards"]
    assert [c["notes"] for c in found] == [{"sample": "Au"}]
    assert before.items() < {f.name: f.read_bytes() for f in (made / "cards").iterdir()}.items()
    assert said(capsys, "archive", "add", place, "-A", made)["known"] == [card["id"]]  # the notes stay
    assert said(capsys, "archive", "verify", "-A", made)["n_cards"] == 4


def test_the_card_of_a_run_tells_what_its_report_measured(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "denoised.zarr"
    denoised = store.read_attributes(place)["id"]
    metrics = {
        "made_from": {"denoised": denoised},
        "explained": {"denoised": {"estimate": 0.9}},
        "refuted": {"n_places": 2},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    said(capsys, "archive", "add", place, "-A", tmp_path / "B")
    found = said(capsys, "archive", "find", "signal_shown > 0.8 and refuted_places = 2", "-A", tmp_path / "B")
    assert [c["id"] for c in found["cards"]] == [denoised]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"made_from": {"denoised": "of another"}}))
    said(capsys, "archive", "add", place, "-A", tmp_path / "C")
    assert main(["archive", "find", "signal_shown > 0", "-A", str(tmp_path / "C")]) == 1


@pytest.mark.parametrize("note", ["sample", "dose=3", "Sam ple=x", "=x", "x=" + "y" * 2000, "x=a\nb"])
def test_what_is_no_note_is_refused_before_anything_is_added(made: Path, note: str) -> None:
    before = sorted((made / "cards").iterdir())
    assert main(["archive", "add", str(made.parent / "m0/movie.zarr"), "-A", str(made), "--note", note]) == 2
    assert sorted((made / "cards").iterdir()) == before


def test_nothing_found_is_not_found_and_an_unknown_key_is_an_error(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["archive", "find", "mean < 100", "-A", str(made)]) == 0
    capsys.readouterr()
    assert main(["archive", "find", "mean > 100", "-A", str(made)]) == 1
    assert "nothing in the archive fits" in capsys.readouterr().out
    assert main(["archive", "find", "meen > 100", "-A", str(made)]) == 2
    assert "Did you mean 'mean'?" in capsys.readouterr().err


def test_a_hostile_card_does_nothing_to_the_terminal(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = next(c for c in cards(made) if c["kind"] == "movie")
    nasty = "\x1b[2J\x1b]0;owned\x07<script>\u202e"
    card = {**card, "name": nasty, "notes": {"sample": nasty, "n": "9" * 400}, "number": 1}
    (made / "cards" / f"{card['id']}.1.json").write_bytes(sealed_card(card))
    for words in (
        ["list"],
        ["find", "n > 1 or script"],
        ["show", card["id"]],
        ["tag", card["id"], "--note", "a=b"],
    ):
        assert main(["archive", *words, "-A", str(made)]) == 0
        shown = capsys.readouterr()
        assert not set("\x1b\x07\u202e") & set(shown.out + shown.err)


HOSTILE = {
    "shape": [5],
    "dose": "x",
    "mean": 10**400,
    "pixel_size_nm": [1, -1],
    "source": 7,
    "notes": {"sample": [1]},
    "parents": [[1]],
    "name": 9,
    "kind": "xyz",
    "lattice_nm": [0],
    "dtype": "object",
    "number": -1,
    "camera": {"a": 1},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_of_other_types_is_refused_in_a_sentence_wherever_it_is_read(
    made: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    card = next(c for c in cards(made) if c["kind"] == "movie")
    card = {**card, "number": 1, name: HOSTILE[name]}
    file = made / "cards" / f"{card['id']}.{card['number']}.json"
    file.write_bytes(sealed_card(card))
    page = made.parent / "page.html"
    for words in (
        ["archive", "list"],
        ["archive", "html", "-o", str(page)],
        ["archive", "add", str(made.parent)],
    ):
        assert main([*words, "-A", str(made)]) == 3
        assert "should not have happened" not in capsys.readouterr().err
    assert main(["train", str(made), "-n", "-o", str(made.parent / "v")]) == 3
    assert main(["archive", "verify", "-A", str(made)]) == 4
    file.unlink()
    assert main(["archive", "list", "-A", str(made)]) == 0


def test_a_card_tells_how_a_movie_looks_and_what_lay_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    (tmp_path / "raw.notes.yaml").write_text("sample: Pt/CeO2\nkelvin: 300\nrecorded: 2025-07-01\n")
    t, y, x = np.ogrid[:40, :64, :64]
    clean = 4 * (1 + 0.3 * np.cos(2 * np.pi * x / 8) + 0 * y + 0 * t)
    place = movie_store(tmp_path, np.random.default_rng(0).poisson(clean).astype(np.uint8), pixel_size=0.025)
    (card,) = said(capsys, "archive", "add", place, "-A", tmp_path / "A", "--note", "kelvin=310")["added"]
    assert card["notes"] == {"sample": "Pt/CeO2", "kelvin": "310", "recorded": "2025-07-01"}
    assert card["lattice_nm"] == [pytest.approx(0.2, rel=0.02)]
    spectrum = np.array(card["spectrum"])
    assert spectrum.argmax() == 2 * 16 // 8 or spectrum.argmax() == 2 * 16 // 8 - 1, (
        "one cycle in eight pixels"
    )
    assert np.abs(spectrum[8:]).max() < 0.02 * spectrum.max(), "noise has no part in it"
    picture = tmp_path / "A/pictures" / f"{card['id']}.png"
    data = picture.read_bytes()
    assert data[:4] == b"\x89PNG"
    picture.write_bytes(data[:-1])
    assert main(["archive", "verify", "-A", str(tmp_path / "A")]) == 4
    picture.write_bytes(data)
    assert said(capsys, "archive", "verify", "-A", tmp_path / "A")["n_cards"] == 1
    for query, n in (
        ("recorded > 2025-06 and lattice in 0.19nm..0.21nm", 1),
        ("lattice in 0.1nm..0.19nm or recorded < 2025", 0),
        ("lattice < 0.3nm and sample like 'pt%'", 1),
    ):
        assert main(["archive", "find", query, "-A", str(tmp_path / "A")]) == 1 - n, query
    place.rename(tmp_path / "away.zarr")
    assert main(["archive", "html", "-A", str(tmp_path / "A"), "-o", str(tmp_path / "page.html")]) == 0
    assert "data:image/png" in (tmp_path / "page.html").read_text(), "the archive has the picture"


@pytest.mark.parametrize("text", ["a: [1, 2]", "Sam ple: x", "recorded: summer", "- a", "a: b: c"])
def test_notes_beside_a_raw_movie_that_cannot_be_understood_are_told_before_anything_is_written(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    np.save(tmp_path / "m.npy", counts((8, 16, 16)))
    (tmp_path / "m.notes.yaml").write_text(text)
    assert main(["ingest", str(tmp_path / "m.npy"), "-o", str(tmp_path / "m.zarr")]) in (2, 3)
    assert "m.notes.yaml" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.notes.yaml", "m.npy"]


def test_where_there_are_no_hard_links_cards_are_still_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(atomic, "EMPTY_S", 0.1)
    file = tmp_path / "card"
    assert atomic.write_new(file, b"one") and not atomic.write_new(file, b"two")
    assert file.read_bytes() == b"one"
    file.write_bytes(b"")  # of one that was killed between its two steps
    assert atomic.write_new(file, b"two") and file.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["card"]


def test_links_and_foreign_folders_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = made.parent / "link.zarr"
    link.symlink_to(made.parent / "m0/movie.zarr")
    assert main(["archive", "add", str(link), "-A", str(made)]) == 3
    chunk = made.parent / "m0/movie.zarr/counts/c/0/0/0"
    chunk.rename(made.parent / "chunk")
    chunk.symlink_to(made.parent / "chunk")
    assert main(["archive", "add", str(made.parent / "m0/movie.zarr"), "-A", str(made)]) == 3
    assert main(["archive", "verify", "-A", str(made)]) == 4
    assert main(["archive", "add", str(made.parent / "model"), "-A", str(made.parent / "m1")]) == 2
    assert main(["archive", "list", "-A", str(made.parent)]) == 3
    assert "symbolic link" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["bit", "path", "gone", "swapped"])
def test_a_card_that_no_longer_tells_the_truth_is_found(made: Path, change: str) -> None:
    card = next(c for c in cards(made) if c["kind"] == "movie")
    file = made / "cards" / f"{card['id']}.0.json"
    if change == "bit":
        data = bytearray(file.read_bytes())
        data[data.index(b"mean") + 8] ^= 1
        file.write_bytes(data)
    elif change == "path":
        file.write_bytes(sealed_card({**card, "path": "../m0/../../etc"}))
    elif change == "gone":
        Path(card["path"]).rename(made.parent / "away")
    else:
        first, second = (made.parent / f"m{k}/movie.zarr" for k in range(2))
        first.rename(made.parent / "aside")
        second.rename(first)
        (made.parent / "aside").rename(second)
    assert main(["archive", "verify", "-A", str(made)]) == 4


def test_a_model_is_applied_to_a_whole_archive_and_one_failure_keeps_no_other(
    made: Path, tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["apply", made, "--model", tmp_path / "model", "-o", tmp_path / "out", "--workers", workers]
    plan = said(capsys, *words, "--dry-run")
    assert (plan["n_movies"], plan["n_blocks"], plan["n_files"]) == (2, 2, 2)
    assert plan["n_movies_drift_not_counted"] == 2  # their cards do not tell
    card = next(c for c in cards(made) if c["kind"] == "movie")
    away = Path(card["path"]).rename(tmp_path / "away")
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 3
    records = json.loads(capsys.readouterr().out)["movies"]
    assert sorted(r["exit_code"] for r in records) == [0, 3]
    away.rename(card["path"])
    assert [r["exit_code"] for r in said(capsys, *words)["movies"]] == [0, 0]
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(names) == 2 and all(name.startswith("movie-") for name in names)
    for name in names:
        assert store.open_store(tmp_path / "out" / name, store.DENOISED).shape == (8, 16, 16)


def test_several_movies_go_into_one_folder_and_equal_names_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movies = [tmp_path / f"m{k}/movie.zarr" for k in range(2)]
    words = ["apply", *movies, "--model", tmp_path / "model", "-o"]
    assert main([*map(str, words), str(tmp_path / "x.zarr")]) == 2
    assert said(capsys, *words, tmp_path / "out", "--dry-run")["n_movies"] == 2
    assert main([*map(str, words), str(tmp_path / "out")]) == 2
    assert "would both become" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.zarr"))


def test_a_page_shows_what_is_there_and_what_was_made_from_what(made: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["archive", "html", "-A", str(made), "-o", str(page)]
    assert main(words) == 0
    text = page.read_text()
    assert text.count('<li class="item"') == 4 and text.count("data:image/png;base64,") == 3
    movie = next(
        c for c in cards(made) if c["kind"] == "movie" and c["path"].startswith(str(made.parent / "m0"))
    )
    assert f'<a href="#c{movie["id"]}">movie.zarr</a>' in text
    assert main(words) == 2 and main([*words, "--force", "kind = model"]) == 0
    assert page.read_text().count('<li class="item"') == 1
    assert main([*words, "--force", "mean > 100"]) == 1


@pytest.mark.browser
@pytest.mark.skipif(chromium.PROGRAM is None, reason="needs Chromium")
def test_the_page_filters_and_runs_no_script_of_a_hostile_card(made: Path, tmp_path: Path) -> None:
    card = next(c for c in cards(made) if c["kind"] == "movie")
    nasty = "</li><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    card = {**card, "name": nasty, "notes": {"sample": nasty, "n": "9" * 400}, "number": 1}
    (made / "cards" / f"{card['id']}.1.json").write_bytes(sealed_card(card))
    page_file = tmp_path / "page.html"
    assert main(["archive", "html", "-A", str(made), "-o", str(page_file)]) == 0
    for width in (400, 1400):
        with chromium.Page(width, 800) as page:
            page.open(page_file)
            shown = "[...document.querySelectorAll('li.item')].filter((item) => !item.hidden).length"
            assert page.value(shown) == 4 and "owned" not in page.value("document.title")
            assert page.value("document.documentElement.scrollWidth") <= width
            for kind, n in (("model", 1), ("movie", 2), ("", 4)):
                page.value(
                    f"(() => {{ const f = document.getElementById('filter'); f.elements.kind.value = '{kind}';"
                    "f.dispatchEvent(new Event('input')); })()"
                )
                assert page.value(shown) == n
            assert not page.errors


def test_a_result_that_was_measured_since_gets_a_new_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = store.open_store(movie_store(tmp_path / "r", counts((8, 16, 16))), store.MOVIE)
    denoised = denoised_store(tmp_path / "r/denoised.zarr", movie, movie.array[:])
    add = ("archive", "add", denoised.path, "-A", tmp_path / "A")
    assert said(capsys, *add)["added"][0].get("signal_shown") is None
    measured = {"made_from": {"denoised": denoised.id}, "explained": {"denoised": {"estimate": 0.75}}}
    (tmp_path / "r/metrics.json").write_text(json.dumps(measured))
    (card,) = said(capsys, *add)["added"]
    assert (card["signal_shown"], card["number"]) == (0.75, 1)
    assert said(capsys, *add)["added"] == []
    assert [
        c["id"] for c in said(capsys, "archive", "find", "signal_shown > 0.5", "-A", tmp_path / "A")["cards"]
    ]


def test_a_drift_that_nobody_could_measure_is_not_none_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = movie_store(tmp_path / "m", counts((8, 16, 16)))
    assert store.read_attributes(movie)["drift"] is None
    (card,) = said(capsys, "archive", "add", movie, "-A", tmp_path / "A")["added"]
    assert card["drift"] is None
    assert main(["archive", "find", "drift < 1", "-A", str(tmp_path / "A")]) == 1
