"""Hostile models, stores and neighbours are refused before they can do anything."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tdenoise_pipeline
import torch
from small import TINY, counts, model_folder, movie_store, network
from tdenoise_pipeline.apply.block_work import ModelPlugin
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.cli import command_line
from tdenoise_pipeline.errors import InputError, ResourceError, UsageError, VerificationError
from tdenoise_pipeline.inputs.model_fit import open_model
from tdenoise_pipeline.runs import progress
from tdenoise_pipeline.settings.config import ApplyConfig, ModelsImportConfig, ResumeConfig, VerifyConfig
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.slurm.site_profile import load_site
from tdenoise_pipeline.store import integrity, store
from tdenoise_pipeline.train.import_udvd import import_model
from tdenoise_pipeline.workers.cluster import connect

from tdenoise.files.atomic import SEAL, seal


class Canary:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def claim(folder: Path, weights: bytes) -> None:
    """Put other weights into a model, with a card that says they are the right ones."""
    import hashlib

    (folder / "weights.safetensors").write_bytes(weights)
    card = json.loads((folder / "card.json").read_text())
    card["sha256"] = hashlib.sha256(weights).hexdigest()
    card["seal"] = SEAL
    (folder / "card.json").write_bytes(seal(json.dumps(card).encode()))


def tensors(**changes: Any) -> bytes:
    """The weights of a small network, with some tensors replaced, added, or (None) left out."""
    from safetensors.torch import save

    values = {**network().state_dict(), **changes}
    return save({k: v.contiguous() for k, v in values.items() if v is not None})


def header(described: Any, announced: int | None = None) -> bytes:
    """A safetensors file without data."""
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text) if announced is None else announced) + text


NAME = next(iter(network().state_dict()))
WEIGHT = network().state_dict()[NAME]
FLOAT = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}


@pytest.mark.parametrize(
    "weights",
    [
        header({}, 2**40),
        header({NAME: FLOAT}),
        header({"a": {**FLOAT, "shape": [1], "data_offsets": [0, 4]}, "b": {**FLOAT, "shape": [1]}}),
        b"",
        tensors(extra=torch.zeros(3)),
        tensors(**{NAME: None}),
        tensors(**{NAME: WEIGHT.flatten()}),
        tensors(**{NAME: torch.full_like(WEIGHT, torch.nan)}),
        tensors(**{NAME: torch.full_like(WEIGHT, torch.inf)}),
    ],
    ids=["header bomb", "shape lie", "overlap", "empty", "extra", "missing", "shape", "nan", "inf"],
)
def test_weights_that_lie_are_refused(tmp_path: Path, weights: bytes) -> None:
    folder = model_folder(tmp_path / "model")
    claim(folder, weights)
    before = psutil.Process().memory_info().rss
    with pytest.raises(InputError):
        open_model(folder)
    assert psutil.Process().memory_info().rss - before < 200e6


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch legacy", "joblib"])
@pytest.mark.parametrize("name", ["weights.safetensors", "model.pth", "model.pt", "model.sav"])
def test_a_pickled_model_never_runs(tmp_path: Path, kind: str, name: str) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / name
    if kind.startswith("torch"):
        torch.save({"a": Canary(canary)}, file, _use_new_zipfile_serialization=kind == "torch")
    else:
        file.write_bytes((b"\x80\x04" if kind == "joblib" else b"") + pickle.dumps(Canary(canary)))
    with pytest.raises(InputError):
        import_model(ModelsImportConfig(weights=file, output=tmp_path / "out"))
    folder = model_folder(tmp_path / "model")
    claim(folder, file.read_bytes())
    with pytest.raises(InputError):
        open_model(folder)
    assert not canary.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_every_changed_bit_of_a_model_is_found(tmp_path: Path, name: str) -> None:
    file = model_folder(tmp_path / "model") / name
    whole = file.read_bytes()
    card = json.loads((tmp_path / "model/card.json").read_text())
    rng = np.random.default_rng(0)
    for place in rng.integers(8 * len(whole), size=100).tolist():
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            opened = open_model(tmp_path / "model")
        except InputError:
            continue
        assert opened.card == card, f"bit {place}"  # of white space, which says nothing


def pickle_store(path: Path, canary: Path) -> None:
    """A Zarr v2 store whose chunk runs code when it is decoded."""
    (path / "counts").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    filters = [{"id": "pickle", "protocol": 5}]
    described = {"zarr_format": 2, "shape": [4, 8, 8], "chunks": [4, 8, 8], "dtype": "|O", "order": "C"}
    described |= {"compressor": None, "fill_value": 0, "filters": filters}
    (path / "counts/.zarray").write_text(json.dumps(described))
    (path / "counts/0.0.0").write_bytes(pickle.dumps(Canary(canary)))


def add_v2(path: Path, canary: Path) -> None:
    """The same beside a movie, where only xarray would look."""
    array = json.loads((path / "t/zarr.json").read_text())
    array["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    (path / "extra").mkdir()
    (path / "extra/zarr.json").write_text(json.dumps(array))
    (path / "extra/c").write_bytes(pickle.dumps(Canary(canary)))
    root = json.loads((path / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["extra"] = array
    (path / "zarr.json").write_text(json.dumps(root))


def link_chunk(path: Path, canary: Path) -> None:
    chunk = path / "counts/c/0/0/0"
    chunk.rename(canary.with_name("elsewhere"))
    chunk.symlink_to(canary.with_name("elsewhere"))


def link_group(path: Path, canary: Path) -> None:
    (path / "counts").rename(canary.with_name("elsewhere"))
    (path / "counts").symlink_to(canary.with_name("elsewhere"))


def traverse(path: Path, canary: Path) -> None:
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["tdenoise"]["arrays"]["../../outside"] = "0" * 32
    (path / "zarr.json").write_text(json.dumps(root))


def change_type(path: Path, canary: Path) -> None:
    for file in (path / "zarr.json", path / "t/zarr.json"):
        text = file.read_text()
        file.write_text(text.replace('"float64"', '"string"'))


def beside(path: Path, canary: Path) -> None:
    import shutil

    shutil.rmtree(path)
    pickle_store(path, canary)


def check(path: Path) -> None:
    verify(VerifyConfig(store=path, deep=True))


ATTACKS = [add_v2, link_group, traverse, change_type, beside]


@pytest.mark.parametrize(
    ("attack", "use"),
    [*((a, tdenoise_pipeline.open) for a in ATTACKS), *((a, check) for a in [*ATTACKS, link_chunk])],
)
def test_a_hostile_store_is_refused_before_it_is_decoded(tmp_path: Path, attack: Any, use: Any) -> None:
    path = movie_store(tmp_path, counts((8, 16, 16)))
    use(path)  # as it was made, it is fine
    canary = tmp_path / "canary"
    attack(path, canary)
    with pytest.raises((InputError, VerificationError)):
        use(path)
    assert not canary.exists()


def test_a_symlink_to_a_whole_store_is_followed(tmp_path: Path) -> None:
    path = movie_store(tmp_path / "a", counts((8, 16, 16)))
    (tmp_path / "link").symlink_to(path)
    assert store.open_store(tmp_path / "link", store.MOVIE).shape == (8, 16, 16)


def listening() -> dict[int, str]:
    """Ports on which this process and its children listen, and where."""
    me = psutil.Process()
    return {
        connection.laddr.port: connection.laddr.ip
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("cluster")
    before = listening()  # of clusters that other tests have
    with connect(
        Workers.of("local:1"),
        scratch=folder / "s",
        worker_memory_bytes=None,
        profile=None,
        log_dir=folder / "l",
    ) as client:
        client.ports = {port: where for port, where in listening().items() if port not in before}
        yield client


def test_strangers_find_loopback_and_tls_only(cluster: Any) -> None:
    from distributed import Client, Security

    address = cluster.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    assert len(cluster.ports) > 2 and int(address.rpartition(":")[2]) in cluster.ports
    assert set(cluster.ports.values()) <= {"127.0.0.1", "::1"}
    for port in cluster.ports:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                answer = plain.recv(100)
                assert answer.startswith(b"HTTP/1.1 404") or not answer, "says nothing to anyone without keys"
    for stranger in (address.replace("tls", "tcp"), address):
        security = Security.temporary() if stranger == address else None
        with pytest.raises(OSError):
            Client(stranger, security=security, timeout=2, set_as_default=False).close()
    assert cluster.submit(sum, [1, 2]).result() == 3, "the run goes on"


def threads() -> dict[str, int]:
    from numcodecs import blosc

    return {
        "torch": torch.get_num_threads(),
        "blosc": 1 if blosc.use_threads is False else blosc.get_nthreads(),
        "OMP": int(os.environ["OMP_NUM_THREADS"]),
    }


def test_a_worker_computes_and_compresses_with_one_thread(cluster: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    cluster.register_plugin(ModelPlugin(folder, open_model(folder).id, "cpu", []))
    (found,) = cluster.run(threads).values()
    assert found == {"torch": 1, "blosc": 1, "OMP": 1}
    (per_worker,) = cluster.nthreads().values()
    assert per_worker == 1


def placed(workers: str, **settings: Any) -> ApplyConfig:
    """Settings of apply that say where to compute."""
    return ApplyConfig(**{"movie": Path("m.zarr"), "output": Path("d.zarr"), "workers": workers, **settings})


def test_plain_tcp_to_another_machine_needs_insecure() -> None:
    with pytest.raises(UsageError, match="--insecure"):
        placed("tcp://node7:8786")
    assert placed("tcp://node7:8786", insecure=True).workers == Workers("address", address="tcp://node7:8786")


def test_tcp_to_this_machine_needs_insecure_too() -> None:
    with pytest.raises(UsageError, match="--insecure"):
        placed("tcp://127.0.0.1:8786")
    with pytest.raises(UsageError, match="--insecure"):
        ResumeConfig(Path("d.zarr"), workers="tcp://127.0.0.1:8786")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--insecure"):
        VerifyConfig(Path("d.zarr"), workers="tcp://127.0.0.1:8786")  # type: ignore[arg-type]


def test_what_answers_nonsense_is_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdenoise_pipeline.workers.cluster.CONNECT_TIMEOUT_S", 5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = server.accept()
                    caller.sendall(b"HTTP/1.1 404 Not Found\r\nServer: something else entirely\r\n\r\n" * 9)
                    caller.close()

        threading.Thread(target=answer, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        places = {"scratch": tmp_path, "log_dir": tmp_path, "worker_memory_bytes": None, "profile": None}
        with (
            pytest.raises(ResourceError, match="no Dask scheduler answers"),
            connect(Workers.of(address), **places),
        ):
            pass
        server.shutdown(socket.SHUT_RDWR)


NESTED, DIGITS = "[" * 100_000, "9" * 100_000


@pytest.mark.parametrize(
    "text", [NESTED, f'{{"n": {DIGITS}}}', f'{{"n": {NESTED}'], ids=["list", "digits", "inner"]
)
@pytest.mark.parametrize("file", ["model/card.json", "movie.zarr/zarr.json", "movie.zarr/counts/zarr.json"])
def test_json_that_python_gives_up_on_is_damaged_input(
    tmp_path: Path, file: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    movie_store(tmp_path, counts((8, 16, 16)))
    model_folder(tmp_path / "model")
    (tmp_path / file).write_text(text)
    words = ["apply", tmp_path / "movie.zarr", "--model", tmp_path / "model", "-o", tmp_path / "out.zarr"]
    assert command_line.main([*map(str, words), "-n"]) == 3
    assert str(tmp_path / file.partition("/")[0]) in capsys.readouterr().err
    if "movie" in file:
        assert command_line.main(["verify", str(tmp_path / "movie.zarr"), "--deep", "-q"]) in (3, 4)
        assert "should not have happened" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [f"frames: {NESTED[:2000]}", NESTED[:2000], 'frames: "a\\0b"', 'frame_time: "\\0"'],
    ids=["deep", "list", "nul", "nul2"],
)
def test_a_settings_file_that_python_gives_up_on_is_a_wrong_setting(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(text)
    words = ["ingest", "x.npy", "-o", str(tmp_path / "x.zarr"), "-c", str(tmp_path / "s.yaml")]
    assert command_line.main(words) == 2
    assert str(tmp_path / "s.yaml") in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", [NESTED[:2000], f"time: {DIGITS}", 'setup: ["a\\0b"]'], ids=["deep", "digits", "nul"]
)
def test_a_profile_that_python_gives_up_on_is_a_wrong_setting(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UsageError):
        load_site(tmp_path / "p.yaml")


@pytest.mark.parametrize("shape", [2**40, 2**62])
def test_a_store_that_announces_more_shards_than_can_be_listed_is_refused(tmp_path: Path, shape: int) -> None:
    path = movie_store(tmp_path, counts((8, 16, 16)))
    for file in (path / "zarr.json", path / "counts/zarr.json", path / "integrity/counts/zarr.json"):
        document = json.loads(file.read_text())
        for node in [document, *document.get("consolidated_metadata", {}).get("metadata", {}).values()]:
            if len(node.get("shape", ())) > 1:
                node["shape"][0] = shape
        file.write_text(json.dumps(document))
    with pytest.raises(InputError, match="announces"):
        store.open_store(path, store.MOVIE)
    root = json.loads((path / "zarr.json").read_text())["attributes"]["tdenoise"]
    # Its seals made right again: what a hostile hand would do.
    root["files"] = {name: integrity.file_hash(path / name) for name in root["files"]}
    (path / "integrity/zarr.json").unlink()
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["tdenoise"] = root | {"seal": SEAL}
    (path / "zarr.json").write_bytes(seal(json.dumps(document).encode()))
    with pytest.raises(VerificationError, match="announce"):
        verify(VerifyConfig(store=path, deep=True))


def test_names_reach_the_terminal_spelled_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "a\x1b]0;pwned\x07\nexit 0.npy"
    movie = counts((8, 16, 16)).astype(np.float32)
    movie[2] = 0.5  # blank: there is something to warn of
    np.save(raw, movie)
    assert command_line.main(["ingest", str(raw), "-o", str(tmp_path / "x.zarr")]) == 0
    said = capfd.readouterr()
    assert "blank" in said.err and r"a\x1b]0;pwned\x07\nexit 0.npy" in said.err
    assert not {"\x1b", "\x07"} & set(said.err + said.out)
    assert not any(line.startswith("exit 0") for line in said.err.splitlines())


def test_only_the_owner_sees_the_folder_of_a_run(tmp_path: Path) -> None:
    with progress.OutputRun(tmp_path / "out", {"step": "test"}) as run:
        assert run.folder.stat().st_mode & 0o777 == 0o700


def test_the_small_network_is_what_these_tests_lie_about() -> None:
    assert network().architecture == TINY and NAME in network().state_dict()
