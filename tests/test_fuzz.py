"""Damaged files of every format: a movie, or one sentence, in bounded time and memory."""

from __future__ import annotations

import time
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


def test_the_fuzzer_sees_what_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def climb(*_: object) -> None:
        while True:
            pass

    monkeypatch.setattr("fuzz.SECONDS", 0.2)
    monkeypatch.setattr("fuzz._read", climb)
    _, violations = fuzz("npy", 2)
    assert len(violations) == 2 and all("processor time, in climb" in violation for violation in violations)


def test_the_fuzzer_sees_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.HANG_SECONDS", 1)
    monkeypatch.setattr("fuzz._read", lambda *_: time.sleep(60))
    _, violations = fuzz("npy", 1)
    assert violations and "no answer within 1 s" in violations[0]


def test_the_fuzzer_ingests_what_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz._ingest", lambda *_: "made up")
    _, violations = fuzz("npy", 60)
    assert violations and all("made up" in violation for violation in violations)
