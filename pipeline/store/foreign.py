"""Refuse what this project does not write: foreign codecs, which could run code when a store is opened, and links."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

from tdenoise.files.json_documents import parse_json

MOST_FILES = 10_000_000  # of an array; whoever lists more of them runs out of memory


def check_nodes(path: Path) -> None:
    """Refuse a store that holds anything but what this project writes: a foreign codec could run code on opening.

    Raises
    ------
    ValueError, KeyError, TypeError
        With what is wrong.
    """
    root = _read_node(path)
    if not all(re.fullmatch(r"\w+", name) for name in root["attributes"]["tdenoise"].get("arrays", {})):
        raise ValueError("it names arrays that lie outside of it")
    consolidated = root.get("consolidated_metadata") or {}
    for node in consolidated.get("metadata", {}).values():
        _check_node(node)
    groups = [path]
    while groups:
        for child in groups.pop().iterdir():
            if child.is_symlink():
                raise ValueError(f"{child.name} is a symbolic link")
            if child.is_dir():
                node = _read_node(child)
                _check_node(node)
                if node["node_type"] == "group":
                    groups.append(child)


def links_in(path: Path) -> list[Path]:
    """Symbolic links inside a folder: what they lead to is not part of it."""
    return [
        Path(folder) / name
        for folder, folders, files in os.walk(path)
        for name in (*folders, *files)
        if (Path(folder) / name).is_symlink()
    ]


def _read_node(folder: Path) -> dict[str, Any]:
    file = folder / "zarr.json"
    if file.is_symlink():
        raise ValueError(f"{folder.name}/zarr.json is a symbolic link")
    node = parse_json(file.read_bytes())
    if not isinstance(node, dict):
        raise ValueError(f"{folder.name}/zarr.json is not an object")
    return node


def _check_node(node: dict[str, Any]) -> None:
    if node["zarr_format"] != 3 or node["node_type"] not in ("group", "array"):
        raise ValueError("it is not Zarr v3")
    if node["node_type"] == "array":
        grid = zip(node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"], strict=True)
        if (n_files := math.prod(-(-size // step) for size, step in grid)) > MOST_FILES:
            raise ValueError(f"an array announces {n_files:.3g} files")
        if not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", str(node["data_type"])):
            raise ValueError(f"an array holds {str(node['data_type'])[:40]!r} and no numbers")
        if node.get("storage_transformers"):
            raise ValueError("storage transformers are not what tdenoise writes")
        check_codecs(node["codecs"])


def check_codecs(codecs: list[dict[str, Any]]) -> None:
    """Refuse codecs that this project does not write; such a one could run code when the array is opened."""
    for codec in codecs:
        if codec["name"] not in {"bytes", "blosc", "crc32c", "sharding_indexed"}:
            raise ValueError(f"codec {codec['name']!r} is not one that tdenoise writes")
        for key in ("codecs", "index_codecs"):
            check_codecs(codec.get("configuration", {}).get(key, []))
