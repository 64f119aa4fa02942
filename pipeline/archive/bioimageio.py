"""Models as files of bioimage.io, which other programs for microscopists open, and back again.

The specification of models, 0.5: https://bioimage-io.github.io/spec-bioimage-io/. Such a file holds the network as
TorchScript, a test input and what it has to give, and our own model beside them: from that alone a model is imported,
so nothing of the TorchScript is ever run here.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdenoise.files.atomic import make_folder, written_whole
from tdenoise.inference.standalone import Standalone, to_torchscript
from tdenoise.network import checkpoint
from tdenoise.network.card import CARD, CURVE, WEIGHTS, ModelCard
from tdenoise.network.registry import architecture_of

from ..errors import InputError, UsageError
from ..files.write_errors import named_failures
from ..runs import progress
from ..settings.licences import LICENCES, known_licence
from ..settings.result_settings import ModelsExportConfig, ModelsImportConfig
from ..step_control import Control
from .works import Work, all_works, works_for

FORMAT = "0.5.3"  # the oldest that has all we say, so that older programs read it
DESCRIPTION, NETWORK, README = "rdf.yaml", "network.pt", "README.md"
TEST_INPUT, TEST_OUTPUT = "test_input.npy", "test_output.npy"
MOST_BYTES = {CARD: 2**26, CURVE: 2**28, WEIGHTS: 2**31}  # of a file in a package, when it is unpacked
KINDS = {
    "split-blind": "split-blind video network",
    "thinned": "network trained on thinned counts",
    "udvd": "UDVD",
}
METHODS = {
    "split-blind": ("denoising", "blind spot", "video", "neighbours seen"),
    "thinned": ("denoising",),
    "udvd": ("denoising", "blind spot", "video"),
}
TAGS = [
    "denoising",
    "self-supervised",
    "electron-microscopy",
    "transmission-electron-microscopy",
    "2d",
    "pytorch",
]


def export_model(config: ModelsExportConfig, control: Control | None = None) -> dict[str, Any]:
    """Write a model as a package of bioimage.io.

    Returns
    -------
    dict
        ``file``, ``bytes``, ``model`` (its id), ``license`` and ``authors`` as the file says them, and ``warnings``.

    Raises
    ------
    InputError
        If the model is missing or damaged.
    UsageError
        If the file exists, does not end in .zip, or the licence is none that bioimage.io knows.
    """
    licence = _checked_licence(config)
    try:
        model = checkpoint.load_model(config.model)
        own = {name: (config.model / name).read_bytes() for name in (CARD, WEIGHTS)}
        if (config.model / CURVE).exists():
            own[CURVE] = (config.model / CURVE).read_bytes()
    except checkpoint.ModelError as error:
        raise InputError(*str(error).split(": ", 1)) from None
    if architecture_of(model.card).far_bins:
        raise UsageError(
            f"{config.model}: sees frames up to {architecture_of(model.card).reach} frames away, and programs for "
            "bioimage.io give a model one window. Train without --far-frames to export it."
        )
    curve = hashlib.sha256(own[CURVE]).hexdigest() if CURVE in own else None
    if curve != model.card.get("curve_sha256"):  # what nobody can compare is not handed on
        own.pop(CURVE, None)
    authors, warnings = list(config.author), []
    if model.id == checkpoint.read_card(checkpoint.BASE)["sha256"]:  # which is ours
        work = all_works()[0]
        ours, authors = work.fields["license"], list(dict.fromkeys([*work.authors, *authors]))
        if licence not in (None, ours):
            warnings.append(f"these are the weights that come with tdenoise, so the licence stays {ours}.")
        licence = ours
    files = {**_network_and_tests(model), **own}
    files[README] = _readme(model.card, config.model.name).encode()
    described = _describe(model, config.model.name, files, licence, authors)
    with named_failures(config.output):
        make_folder(config.output.parent)
        _write(config.output, {DESCRIPTION: _yaml(described).encode(), **files})
    warnings += [
        f"the file does not say {what}, which bioimage.io asks for. Use {option}."
        for what, option, given in (
            ("who made it", "--author NAME", authors),
            ("a licence", "--license NAME", licence),
        )
        if not given
    ]
    return {
        "file": str(config.output),
        "bytes": config.output.stat().st_size,
        "model": model.id,
        "license": licence,
        "authors": authors,
        "warnings": warnings,
    }


def _checked_licence(config: ModelsExportConfig) -> str | None:
    """Refuse what cannot be written; the licence by its SPDX name."""
    if config.output.suffix.lower() != ".zip":
        raise UsageError(
            f"{config.output}: a package of bioimage.io is a ZIP file. Choose a name that ends in .zip."
        )
    if config.output.exists() and not config.force:
        raise UsageError(f"{config.output}: exists already. Choose another name, or --force to replace it.")
    if not all(author.strip() and author.isprintable() for author in config.author):
        raise UsageError("--author: must be one line of readable text.")
    if any(set(author) & set("/\\") for author in config.author):
        raise UsageError(f"--author {' '.join(config.author)}: a name of bioimage.io has no / and no \\.")
    licence = None if config.license is None else known_licence(config.license)
    if config.license is not None and licence is None:
        raise UsageError(
            f"--license {config.license}: bioimage.io takes names of SPDX. Use one of {', '.join(LICENCES)}."
        )
    return licence


def _write(file: Path, content: dict[str, bytes]) -> None:
    with written_whole(file) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as package:
        for name, data in content.items():
            package.writestr(name, data)


def _network_and_tests(model: checkpoint.Model) -> dict[str, bytes]:
    """The network for other programs, counts, and what it has to make of them."""
    a = model.network.architecture
    side = smallest(a.spatial_halo, a.stride)
    rows, columns = np.ogrid[:side, : side + a.stride]
    expected = 2 + np.sin(columns / 5) * np.cos(rows / 7)  # electrons, of columns of atoms more or less
    frames = np.random.default_rng(0).poisson(expected, (1, 2 * a.window + 1, side, side + a.stride))
    counts = frames.astype(np.float32)
    with torch.no_grad():
        output = Standalone(model.network)(torch.from_numpy(counts)).numpy()
    return {
        NETWORK: to_torchscript(model.network),
        TEST_INPUT: _npy(counts),
        TEST_OUTPUT: _npy(output),
    }


def smallest(halo: int, stride: int) -> int:
    """The smallest height and width of a frame that leaves something between its halos [pixels]."""
    return 2 * halo + stride


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _describe(
    model: checkpoint.Model, name: str, files: dict[str, bytes], licence: str | None, authors: list[str]
) -> dict[str, Any]:
    """What the specification asks for."""
    a = model.network.architecture

    def file(source: str) -> dict[str, str]:
        return {"source": source, "sha256": hashlib.sha256(files[source]).hexdigest()}

    least = smallest(a.spatial_halo, a.stride)
    seen = [{"type": "space", "id": axis, "size": {"min": least, "step": a.stride}} for axis in "yx"]
    shown = [
        {
            "type": "space",
            "id": axis,
            "halo": a.spatial_halo,
            "size": {"tensor_id": "counts", "axis_id": axis},
        }
        for axis in "yx"
    ]
    time = {"type": "time", "id": "time", "size": 2 * a.window + 1}
    channel = {"type": "channel", "id": "channel", "channel_names": ["expected_counts"]}
    inputs = {
        "id": "counts",
        "description": f"Raw counts of {2 * a.window + 1} successive frames; the one in the middle is denoised",
        "axes": [{"type": "batch", "size": None}, time, *seen],
        "test_tensor": file(TEST_INPUT),
        "data": {"type": "float32"},
    }
    outputs = {
        "id": "denoised",
        "description": "Expected counts of the frame in the middle",
        "axes": [{"type": "batch", "size": None}, channel, *shown],
        "test_tensor": file(TEST_OUTPUT),
        "data": {"type": "float32"},
    }
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": f"tdenoise {_plain(name)} {model.id[:12]}",
        "description": _summary(model.card),
        "documentation": README,
        "authors": [{"name": author} for author in authors],
        **({"license": licence} if licence else {}),
        "cite": [_citation(work) for work in works_for(METHODS[model.card["kind"]]).values()],
        "tags": TAGS,
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "inputs": [inputs],
        "outputs": [outputs],
        "weights": {"torchscript": {**file(NETWORK), "pytorch_version": torch.__version__.partition("+")[0]}},
        "attachments": [file(source) for source in (CARD, WEIGHTS, CURVE) if source in files],
        "config": {"tdenoise": {"model": model.id, "software": model.card.get("software", {})}},
    }


def _plain(name: str) -> str:
    """A name with the characters that the specification allows."""
    return re.sub(r"[^A-Za-z0-9_+() -]+", "-", name)[:60].strip("- ") or "model"


def _summary(card: ModelCard) -> str:
    n_movies = len(card["movies"])
    learned = f"{n_movies} noisy movie{'s' * (n_movies != 1)}" if n_movies else "simulated or unknown movies"
    metrics: dict[str, Any] = dict(card.get("metrics") or {})
    if n_movies and metrics.get("share") == 0:
        learned = f"what model {str(card.get('parent'))[:12]} did: of a later training nothing was kept"
    return (
        f"Denoises in situ electron microscopy movies. A {KINDS[card['kind']]} that learned from {learned}. It sees "
        f"{2 * card['halo']['frames'] + 1} frames of counts and gives the expected counts of the one in the middle."
    )


def _citation(work: Work) -> dict[str, str]:
    fields, others = work.fields, " et al." if len(work.authors) > 3 else ""
    text = f"{', '.join(work.authors[:3])}{others}: {fields['title']}. {work.year}"
    return {"text": text, **{key: str(fields[key]) for key in ("doi", "url") if fields.get(key)}}


def _readme(card: ModelCard, name: str) -> str:
    n_frames = 2 * card["halo"]["frames"] + 1
    return f"""# {_plain(name)}

{_summary(card)}

Give it {n_frames} successive raw frames as the camera counted them: not scaled, not averaged, not corrected for drift.
Mean and noise are measured on what you give, so give whole frames or large parts of them. Near the ends of a movie, put
the frames of the other side in place of those that are missing.

tdenoise itself does more than this file: its windows follow the drift, it replaces bad pixels, averages over mirror
images and turns, and gives back what the counts prove.

## Validation

`{TEST_INPUT}` must give `{TEST_OUTPUT}`. On a movie of yours, look at the counts minus what comes out: summed over
places and times, it must be noise, and nothing else.

## Back to tdenoise

`tdenoise-pipeline models import FILE.zip -o model` makes the model again, bit for bit. `{CARD}` tells how it was made.
"""


def _yaml(described: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    text = io.StringIO()
    writer.dump(described, text)
    return text.getvalue()


def is_package(file: Path) -> bool:
    """Whether a file is a package of bioimage.io. PyTorch's own files are ZIP files, too."""
    try:
        with zipfile.ZipFile(file) as package:
            return not {DESCRIPTION, "bioimageio.yaml", "model.yaml"}.isdisjoint(package.namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return _begins_as_ours(file)


def _begins_as_ours(file: Path) -> bool:
    """Whether a damaged file was a package that we wrote: the description comes first."""
    try:
        with file.open("rb") as opened:
            head = opened.read(30 + len(DESCRIPTION))
    except OSError:
        return False
    return head.startswith(b"PK\x03\x04") and head[30:] == DESCRIPTION.encode()


def import_package(config: ModelsImportConfig) -> ModelCard:
    """Make a model of a package that `export_model` wrote: the same files, bit for bit.

    Raises
    ------
    InputError
        If the file is damaged, or a package that another program wrote.
    UsageError
        If the output exists and is another model, or a blind radius is given.
    """
    file = config.weights
    if config.blind_radius is not None:
        raise UsageError(
            "--blind-radius: a package of bioimage.io says itself what is blind. Remove this option."
        )
    files = _own_files(file)
    identity = {
        "step": "models import",
        "files": {n: hashlib.sha256(c).hexdigest() for n, c in sorted(files.items())},
    }
    if not config.force and _is_there(config.output, files):
        return checkpoint.read_card(config.output)
    with progress.OutputRun(config.output, identity, [file], force=config.force) as run:
        run.prepare(lambda path: path.mkdir(parents=True))
        for name in sorted(files, reverse=True):  # the card last
            (run.partial / name).write_bytes(files[name])
        try:
            card = checkpoint.load_model(run.partial).card
        except checkpoint.ModelError as error:
            reason = str(error).split(": ", 1)[-1]
            raise InputError(file, f"{reason}. Export the model again") from None
        curve = hashlib.sha256(files[CURVE]).hexdigest() if CURVE in files else None
        if curve is not None and curve != card.get("curve_sha256"):
            raise InputError(
                file, f"is damaged: {CURVE} is not the one that {CARD} names. Export the model again"
            )
        run.commit()
    return card


def _is_there(model: Path, files: dict[str, bytes]) -> bool:
    try:
        return all((model / name).read_bytes() == content for name, content in files.items())
    except OSError:
        return False


def _own_files(file: Path) -> dict[str, bytes]:
    """The files of our own model in a package."""
    try:
        with zipfile.ZipFile(file) as package:
            known = {info.filename: info for info in package.infolist() if info.filename in MOST_BYTES}
            if not {CARD, WEIGHTS} <= known.keys():
                raise InputError(
                    file,
                    "is a package of bioimage.io that another program wrote. tdenoise imports only those that "
                    "'tdenoise-pipeline models export' wrote: its networks alone see a movie as it does",
                )
            for name, info in known.items():
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise InputError(file, f"packs {name} in a way that tdenoise does not write")
                if info.file_size > MOST_BYTES[name]:
                    raise InputError(
                        file, f"claims that {name} has {info.file_size} bytes, more than a model can have"
                    )
            return {name: _unpacked(package, info) for name, info in known.items()}
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        raise InputError(file, f"is damaged ({' '.join(str(error).split())})") from None


def _unpacked(package: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A file of a package; never more of it than it claims to be."""
    with package.open(info) as opened:
        return opened.read(info.file_size)
