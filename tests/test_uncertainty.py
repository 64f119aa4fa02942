"""Denoised stores that state their variance: what `evaluate` and `report` make of them, against the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import denoised_store, movie_store, truth_file
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import VerificationError
from tdenoise_pipeline.evaluate.evaluate import evaluate
from tdenoise_pipeline.evaluate.report import write_report
from tdenoise_pipeline.settings.config import EvaluateConfig, ReportConfig, VerifyConfig
from tdenoise_pipeline.store import writing

from tdenoise.simulation.nanoparticle import Simulation, simulate


@pytest.fixture(scope="module")
def scene() -> Simulation:
    from test_evaluate import SCENE

    return simulate(SCENE)


@pytest.fixture(scope="module")
def stores(scene: Simulation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Predictions off by known amounts, half of the field by three times as much."""
    folder = tmp_path_factory.mktemp("stores")
    movie = movie_store(folder / "m.zarr", scene.counts)
    truth = truth_file(folder / "t.npz", scene)
    level = float(json.loads(str(np.load(truth)["attrs"]))["noise"][0]["dose"])
    clean = level * scene.clean.astype(np.float64)
    rng = np.random.default_rng(0)
    deviation = np.full(clean.shape, 0.1)
    deviation[:, :, clean.shape[2] // 2 :] = 0.3
    # The truth scatters around the prediction as the stated distribution says, here nearly so.
    blind = np.maximum(clean + deviation * rng.standard_normal(clean.shape), 0.05)
    kept = {
        name: writing.round_mantissa(values.astype(np.float32))
        for name, values in {
            "blind": blind,
            "stated": deviation**2,
        }.items()
    }
    return {
        "movie": movie,
        "truth": truth,
        "folder": folder,
        "blind": denoised_store(folder / "b.zarr", movie, kept["blind"], variance=kept["stated"]),
        "bold": denoised_store(folder / "o.zarr", movie, kept["blind"], variance=kept["stated"] / 4),
    }


def test_the_stated_variance_is_compared_with_the_errors(stores: dict[str, Any]) -> None:
    movie, truth = stores["movie"], stores["truth"]
    found = evaluate(EvaluateConfig(stores["blind"].path, movie.path, truth))["uncertainty"]
    assert found["ratio"]["low"] < 1.02 and found["ratio"]["high"] > 0.98
    assert found["true_ratio"] == pytest.approx(1, abs=0.02)
    assert found["covered_95"] == pytest.approx(0.95, abs=0.01)
    low, high = found["groups"]
    assert low["stated"] == pytest.approx(0.01, rel=0.01) and high["true"] == pytest.approx(0.09, rel=0.03)
    bold = evaluate(EvaluateConfig(stores["bold"].path, movie.path, truth))["uncertainty"]
    assert bold["true_ratio"] == pytest.approx(4, abs=0.1) and bold["covered_95"] < 0.75
    without = evaluate(EvaluateConfig(stores["bold"].path, movie.path))["uncertainty"]
    assert without["ratio"] == bold["ratio"] and without["covered_95"] is without["true_ratio"] is None
    assert bold["ratio"]["low"] > 1.5, "seen without the truth"


def test_a_variance_store_is_verified_and_reported(stores: dict[str, Any], tmp_path: Path) -> None:
    verify(VerifyConfig(store=stores["blind"].path, deep=True))
    page = tmp_path / "report.html"
    write_report(ReportConfig(stores["blind"].path, stores["movie"].path, page))
    assert "Does the stated variance match the errors?" in page.read_text()
    file = next(f for f in (stores["bold"].path / "variance/c").rglob("*") if f.is_file())
    file.rename(file.with_name("gone"))

    with pytest.raises(VerificationError, match="'variance' are damaged"):
        verify(VerifyConfig(store=stores["bold"].path))
