"""Damaged files of every format: a movie, or one sentence, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import FAMILIES, fuzz

SLOW = {"hdf5", "video"}  # each file is read in a process of its own


@pytest.mark.parametrize("family", FAMILIES)
def test_a_damaged_file_never_crashes_hangs_or_lies(family: str) -> None:
    n = 20 if family in SLOW else 50
    counts, violations = fuzz(family, n)
    if not counts:
        pytest.skip("no file of this format can be written here")
    assert violations == []
    assert counts.total() == n


def test_the_fuzzer_sees_a_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz._wrong", lambda *_: "made up")
    _, violations = fuzz("npy", 30)
    assert violations and all("made up" in violation for violation in violations)
