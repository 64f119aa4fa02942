"""Shared fixtures."""

from __future__ import annotations

import os

# Before torch is imported: tests run beside workers, and threads that wait for each other lose most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import hypothesis
import pytest

# Nothing timed is asserted: on a busy machine any example may take long.
hypothesis.settings.register_profile("tdenoise", deadline=None)
hypothesis.settings.load_profile("tdenoise")


@pytest.fixture(scope="session")
def workers() -> Iterator[str]:
    """Address of a Dask scheduler with two worker processes, shared by the tests of a session."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
    ) as cluster:
        yield cluster.scheduler_address
