"""Settings mean the same from Python, from YAML and on the command line, and nothing without a meaning is taken."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
from tdenoise_pipeline.cli.commands import COMMANDS
from tdenoise_pipeline.errors import UsageError
from tdenoise_pipeline.readers import FORMATS
from tdenoise_pipeline.settings import config as settings
from tdenoise_pipeline.settings import recorded_settings
from tdenoise_pipeline.settings.config import ApplyConfig, IngestConfig, RunConfig, TrainConfig
from tdenoise_pipeline.settings.setting import SettingError, Settings
from tdenoise_pipeline.settings.yaml_file import read_yaml


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bin": -3}, "bin -3 is not valid: it must be a positive number"),
        ({"bin": 1.5}, "a whole number"),
        ({"bin": True}, "a number"),
        ({"gain_orientation": "banana"}, "one of as-is, rot90"),
        ({"frame_time": "13"}, "needs a unit, such as 13s or 13ms; 13 frames per second are 0.07692s"),
        ({"frame_time": float("inf")}, "finite"),
        ({"frames": (5, 2)}, "larger than the first"),
        ({"frames": (1, 2, 3)}, "have 2 values"),
        ({"roi": "3:1,2:4"}, "larger than the first"),
        ({"force": 1}, "true or false"),
        ({"dark": 7}, "a path"),
        ({"channel": -1}, "0 or more"),
        ({"voltage": "x" * 500}, "... is not valid"),
        ({"raw": "a\0.tif"}, "raw PosixPath('a\\x00.tif') is not valid: it holds a NUL character"),
        ({"fram_time": 3}, "Did you mean frame_time?"),
        ({"colour": 3}, "The settings are: frame_time"),
        ({"output": "."}, "end in the name"),
        ({"output": "out.tif"}, "a store is a Zarr folder; call it out.zarr"),
        ({"output": "s3://bucket/out.zarr"}, "it must be a local path"),
        ({"raw": "https://host/movie.tif"}, "it must be a local path"),
    ],
)
def test_settings_from_python_are_checked(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError) as error:
        IngestConfig(**{"raw": "a.tif", "output": "b.zarr", **wrong})
    assert says in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value, UsageError)


@pytest.mark.parametrize("suffix", [suffix for form in FORMATS for suffix in form.suffixes])
def test_no_store_is_called_as_a_raw_movie_of_any_format(suffix: str) -> None:
    with pytest.raises(SettingError, match=r"a store is a Zarr folder; call it out\.zarr"):
        IngestConfig(raw=Path("a.tif"), output=Path(f"out{suffix.upper()}"))


@pytest.mark.parametrize(
    ("kind", "wrong", "says"),
    [
        (TrainConfig, {"blind_radius": "banana"}, "0, 1, 2, frame or auto"),
        (TrainConfig, {"device": "tpu"}, "auto, cpu, cuda"),
        (TrainConfig, {"least_dose": 3}, "at most 1"),
        (TrainConfig, {"time_limit": "90"}, "needs a unit, such as 90s, 90ms or 90m"),
        (TrainConfig, {"movie": ()}, "at least one"),
        (TrainConfig, {"processes": "many"}, "or slurm"),
        (ApplyConfig, {"ensemble": 3}, "1, 2, 4, 8 or 16"),
        (ApplyConfig, {"worker_memory": "much"}, "a size such as 4GiB"),
    ],
)
def test_all_settings_are_checked(kind: type[Any], wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        kind(**{"movie": "m.zarr", "output": "o", **wrong})


def test_a_setting_that_must_be_given_is_named_with_what_it_is() -> None:
    with pytest.raises(SettingError, match="IngestConfig needs output: movie store to write"):
        IngestConfig(raw="a.tif")


def test_text_and_values_of_python_give_the_same_settings() -> None:
    text = RunConfig(
        raw="a.tif", output="b", frames="2:10", roi="0:4,1:", frame_time="13ms", steps="20", variance="true"
    )
    value = RunConfig(
        raw=Path("a.tif"),
        output=Path("b"),
        frames=(2, 10),
        roi=((0, 4), (1, None)),
        frame_time=0.013,
        steps=20,
        variance=True,
    )
    assert text == value
    assert pickle.loads(pickle.dumps(text)) == text  # noqa: S301  (its own)


def test_settings_are_frozen_and_a_changed_copy_is_checked() -> None:
    config = IngestConfig(raw="a.tif", output="b.zarr")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.bin = 2  # type: ignore[misc]
    assert dataclasses.replace(config, bin="2").bin == 2
    with pytest.raises(SettingError, match="bin"):
        dataclasses.replace(config, bin=0)


def test_recorded_settings_come_back_and_damaged_ones_are_refused() -> None:
    config = RunConfig(raw="a.tif", output="b", frames="2:10", time_limit="20m", truth="t.npz")
    document = recorded_settings.record(config)
    again = recorded_settings.recall(document, raw=config.raw, output=config.output, truth=config.truth)
    assert again == config
    for wrong in ({"bin": -1}, {"colour": "red"}, {"frames": "all"}):
        document["settings"] |= wrong
        with pytest.raises(ValueError, match=next(iter(wrong))):
            recorded_settings.recall(document)
        document = recorded_settings.record(config)
    document["settings"] |= {"gone": False, "gone_too": None}  # settings of an earlier version, not used
    assert recorded_settings.recall(document, output="b").output == Path("b")


@pytest.mark.parametrize("text", ["local", "local:2", "slurm:8", "tls://node7:8786"])
def test_workers_are_recorded_as_they_were_written(text: str) -> None:
    config = ApplyConfig(movie="m", output="d.zarr", workers=text)
    document = recorded_settings.record(config)
    assert document["settings"]["workers"] == text == str(config.workers)
    assert recorded_settings.recall(document).workers == config.workers


def test_workers_are_given_as_text() -> None:
    with pytest.raises(SettingError, match="workers 4 is not valid: it must be text"):
        ApplyConfig(movie="m", output="d.zarr", workers=4)


def test_every_setting_of_every_command_says_what_it_is() -> None:
    kinds = [
        kind for kind in vars(settings).values() if isinstance(kind, type) and issubclass(kind, Settings)
    ]
    assert len(kinds) > 20
    for kind in kinds:
        if kind is Settings:
            continue
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            assert field.metadata["description"], (kind, field.name)
            assert not field.metadata["description"].endswith("."), (kind, field.name)
            assert field.metadata["positional"] or field.metadata["group"], (kind, field.name)


def test_every_command_has_settings_and_one_sentence() -> None:
    for name, command in COMMANDS.items():
        assert issubclass(command.config, Settings), name
        assert command.summary[0].isupper() and command.summary.endswith(".") and len(command.summary) < 90


def test_the_schema_of_settings_carries_their_descriptions() -> None:
    from pydantic import TypeAdapter

    schema = TypeAdapter(IngestConfig).json_schema()
    assert schema["additionalProperties"] is False
    assert schema["properties"]["bin"]["description"] == "sum squares of N x N pixels"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 10:50", "10:50"),
        ("a: 10:30:00", "10:30:00"),
        ("a: 007", "007"),
        ("a: yes", "yes"),
        ("a: 'null'", "null"),
        ("a: null", None),
        ("a:", None),
        ("a: [1, x]", ["1", "x"]),
        ("a: {b: 0o7}", {"b": "0o7"}),
        ("a: &x 1\nb: *x", "1"),
    ],
)
def test_yaml_means_what_it_says(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "s.yaml").write_text(text)
    assert read_yaml(tmp_path / "s.yaml")["a"] == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "a is set twice"),
        ("a-b: 1\na_b: 2", "a_b is set twice"),
        ("a: {b: 1, b: 2}", "b is set twice"),
        ("a: !!python/object/apply:os.system [x]", "line 1 has the tag"),
        ("a: 1\nb: [[[[1]]]]", "line 2 is nested too deeply"),
        ("a: [", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("- a", "'name: value'"),
        ("? [a]\n: b", "no name before its colon"),
        ('a: "x\\0y"', "NUL"),
        ('a: "\\U99999999"', "not valid YAML"),
        ("a: \xff", "cannot be read"),
    ],
)
def test_yaml_with_a_mistake_is_refused_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "s.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as error:
        read_yaml(tmp_path / "s.yaml")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_empty_yaml_file_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "s.yaml") == {}
