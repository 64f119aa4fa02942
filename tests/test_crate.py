"""`archive crate`: an archive as an RO-Crate, by its own official validator, whatever things are called."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
import torch
from small import counts, model_folder, movie_store
from stores import denoised_store
from tdenoise_pipeline.archive import crate
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.store import store
from test_udvd import state_dict
from validators import judged, needs_validators

from tdenoise.network.checkpoint import read_card

PLAIN, HOSTILE = "data", 'a "b" <i>é<i> %20 #1:2, \\ {x}\n\udcff'
# Whom to name as publisher only the user knows; a list of the files in a store would be longer than all the rest.
NOT_SAID = ("The Root Data Entity SHOULD have a `publisher`", "Local Dataset Data Entities SHOULD list")


def make(folder: Path, *notes: str, name: str = PLAIN) -> Path:
    """An archive of a movie, a model and a denoised movie, that lie below ``folder``."""
    inner = folder / name
    movie = movie_store(inner, counts((8, 16, 16)), counts_per_electron=1.0)
    model = model_folder(inner / "model")
    opened = store.open_store(movie, store.MOVIE)
    denoised_store(inner / "denoised.zarr", opened, opened.array[:], model_id=read_card(model)["sha256"])
    (inner / "raw.npy").unlink()
    noted = [word for note in notes for word in ("--note", note)]
    words = [movie, model, inner / "denoised.zarr", "-A", folder / "archive", *noted]
    assert main(["archive", "add", *map(os.fspath, words), "-q"]) == 0
    return folder / "archive"


def crate_of(folder: Path, *words: str) -> dict[str, dict[str, Any]]:
    """What `archive crate` writes, by ids."""
    assert main(["archive", "crate", "-A", str(folder / "archive"), "-o", str(folder), "-q", *words]) == 0
    document = json.loads((folder / crate.FILE).read_text())
    assert document["@context"] == "https://w3id.org/ro/crate/1.2/context"
    entities = {entity["@id"]: entity for entity in document["@graph"]}
    assert len(entities) == len(document["@graph"])
    return entities


def listed(value: Any) -> list[Any]:
    """One thing alone, or several."""
    return value if isinstance(value, list) else [value]


def judgement(folder: Path, home: Path) -> list[str]:
    """What the official validator finds, and what it recommends beyond `NOT_SAID`."""
    home.mkdir()
    judged("python", Path(__file__).parent / "validators/terms_of_ro_crate.py", home / "terms", home=home)
    words = ["-y", "--disable-color", "validate", "--offline", "--cache-path", home / "terms", "--no-paging"]
    words += ["-p", "ro-crate-1.2", "-f", "json", "-l", "recommended", "-o", home / "report.json"]
    judged("rocrate-validator", *words, folder, home=home, codes=(0, 1))
    report = json.loads((home / "report.json").read_text())
    assert len(report["statistics"]) and not report["passed"]  # for what it only recommends
    return [i["message"] for i in report["issues"] if not i["message"].startswith(NOT_SAID)]


def test_a_crate_tells_who_made_what_from_what_and_how(tmp_path: Path) -> None:
    made = make(tmp_path, "sample=Pt/CeO2", "license=CC-BY-4.0")
    found = crate_of(tmp_path)
    parts = [part["@id"] for part in found["./"]["hasPart"]]
    assert sorted(parts) == ["data/denoised.zarr/", "data/model/", "data/movie.zarr/"]
    assert found["./"]["license"] == {"@id": "https://spdx.org/licenses/CC-BY-4.0"}
    actions = {e["result"]["@id"]: e for e in found.values() if e["@type"] == "CreateAction"}
    assert set(actions) == set(parts)
    assert {action["@id"] for action in actions.values()} == {m["@id"] for m in found["./"]["mentions"]}

    def used(part: str) -> dict[str, Any]:
        entities = [found[o["@id"]] for o in listed(actions[part]["object"])]
        return {e["name"]: e.get("value", e["@id"]) for e in entities}

    assert (
        used("data/denoised.zarr/").items()
        >= {
            "movie.zarr": "data/movie.zarr/",
            "model": "data/model/",
        }.items()
    )
    assert used("data/movie.zarr/")["counts_per_electron"] == 1.0
    assert used("data/movie.zarr/")["raw.npy"].startswith("#file-")
    program = found[actions["data/movie.zarr/"]["instrument"]["@id"]]
    assert program["version"] == "0.1.0" and "torch 2" in program["description"]
    movie = found["data/movie.zarr/"]
    said = {found[p["@id"]]["name"]: found[p["@id"]] for p in movie["additionalProperty"]}
    assert (said["frames"]["value"], said["width"]["value"], said["sample"]["value"]) == (8, 16, "Pt/CeO2")
    assert said["dose"]["unitText"] == "electrons per pixel and frame"
    held = sum(f.stat().st_size for f in (tmp_path / "data/movie.zarr").rglob("*") if f.is_file())
    assert int(movie["contentSize"]) == held
    assert str(tmp_path) not in (tmp_path / crate.FILE).read_text()
    assert main(["archive", "verify", "-A", str(made), "--deep", "-q"]) == 0, "nothing was changed by it"


def test_every_reference_leads_to_an_entity(tmp_path: Path) -> None:
    make(tmp_path)
    found = crate_of(tmp_path)

    def references(value: Any) -> list[str]:
        if isinstance(value, list):
            return [r for each in value for r in references(each)]
        return [value["@id"]] if isinstance(value, dict) else []

    named = {r for entity in found.values() for key in entity for r in references(entity[key])}
    assert named - set(found) == {"https://w3id.org/ro/crate/1.2"}
    assert set(found) - named == {crate.FILE}, "all but the descriptor hang together"


@needs_validators
@pytest.mark.slow
def test_the_validator_of_ro_crate_is_content_also_with_hostile_names_and_notes(tmp_path: Path) -> None:
    folder = tmp_path / "crate"
    make(folder, 'sample="}],<b>', "license=CC-BY-4.0", name=HOSTILE.removesuffix("\udcff"))
    crate_of(folder)
    assert judgement(folder, tmp_path / "home") == []


@needs_validators
@pytest.mark.slow
def test_the_validator_finds_what_is_wrong_and_is_content_with_a_program_that_has_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crate, "project_address", lambda: "https://example.org/tdenoise")
    folder = tmp_path / "crate"
    make(folder, "license=MIT")
    assert "SoftwareApplication" in {entity["@type"] for entity in crate_of(folder).values()}
    document = json.loads((folder / crate.FILE).read_text())
    del document["@graph"][1]["datePublished"]
    (folder / crate.FILE).write_text(json.dumps(document))
    found = judgement(folder, tmp_path / "home")
    assert found and all("datePublished" in message for message in found)


def test_hostile_names_and_notes_stay_what_they_are(tmp_path: Path) -> None:
    note = 'x"}],"@graph":[{"@id":"./"},<script>alert(1)</script>'
    make(tmp_path, f"sample={note}", f"licence={note}", name=HOSTILE)
    found = crate_of(tmp_path)
    for part in found["./"]["hasPart"]:
        assert "é" in part["@id"] and not set(part["@id"]) & set('" <>\\{}#:\n\udcff')
        place = Path(os.fsdecode(unquote_to_bytes(part["@id"])))
        assert (tmp_path / place).is_dir() and place.parts[0] == HOSTILE
    values = [e.get("value") for e in found.values() if e["@type"] == "PropertyValue"]
    assert values.count(note) == 3
    assert found[found["./"]["license"]["@id"]]["name"] == note


def test_an_imported_model_names_the_file_it_came_from(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "lab.pth")
    assert main(["models", "import", str(tmp_path / "lab.pth"), "-o", str(tmp_path / "udvd"), "-q"]) == 0
    assert main(["archive", "add", str(tmp_path / "udvd"), "-A", str(tmp_path / "archive"), "-q"]) == 0
    found = crate_of(tmp_path)
    (made,) = (entity for entity in found.values() if entity["@type"] == "CreateAction")
    assert made["name"] == "tdenoise-pipeline models import"
    assert found[made["object"]["@id"]]["name"] == "lab.pth"


def test_what_lies_elsewhere_or_is_gone_is_described_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    (tmp_path / "data/model").rename(tmp_path / "moved")
    inner = tmp_path / "data"
    words = ["archive", "crate", "-A", str(tmp_path / "archive"), "-o", str(inner)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 parts" in said and "only described: model" in said and "data/model" in said
    found = {e["@id"]: e for e in json.loads((inner / crate.FILE).read_text())["@graph"]}
    (model,) = (e for e in found.values() if e["@id"].startswith("#model-"))
    assert model["@type"] == "Dataset" and model["name"] == "model"
    (denoised,) = (e for e in found.values() if e.get("result") == {"@id": "denoised.zarr/"})
    assert {"@id": model["@id"]} in denoised["object"]


@pytest.mark.parametrize(
    ("stated", "address"),
    [
        ("cc-by-4.0", "https://spdx.org/licenses/CC-BY-4.0"),
        ("https://example.org/terms?a=b", "https://example.org/terms?a=b"),
        ("https://example.org/ <x>", "#licence-"),
        ("ask us", "#licence-"),
    ],
)
def test_a_licence_is_an_address_or_stays_words(tmp_path: Path, stated: str, address: str) -> None:
    make(tmp_path, "license=MIT")
    found = crate_of(tmp_path, "--license", stated)
    assert found["./"]["license"]["@id"].startswith(address)
    assert found["data/model/"]["license"] == {"@id": "https://spdx.org/licenses/MIT"}


def test_without_a_licence_the_crate_says_that_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    found = crate_of(tmp_path)
    assert found[found["./"]["license"]["@id"]]["name"] == "No licence stated"
    assert "licence: none; state one with --license" in capsys.readouterr().out


def test_nothing_is_overwritten_and_no_store_is_written_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = str(make(tmp_path))
    crate_of(tmp_path)
    for folder, words in (
        (tmp_path, "exists already. Use --force"),
        (tmp_path / "data/movie.zarr", "is itself a store"),
        (tmp_path / "data/model", "is itself a store or a model"),
        (tmp_path / "nowhere", "is no folder"),
    ):
        assert main(["archive", "crate", "-A", archive, "-o", str(folder)]) == 2
        assert words in capsys.readouterr().err
    assert main(["archive", "crate", "-A", str(tmp_path / "data"), "-o", str(tmp_path / "data")]) == 3
    assert not (tmp_path / "data" / crate.FILE).exists()
