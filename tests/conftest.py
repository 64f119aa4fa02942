"""Shared fixtures."""

from __future__ import annotations

import os

# Before torch is imported: tests run beside workers, and threads that wait for each other lose most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where it finds this, pytest writes out how two values differ, line by line: of two files that takes it hours.
os.environ.pop("CI", None)

from collections.abc import Iterator

import hypothesis
import pytest

# Nothing timed is asserted: on a busy machine any example may take long.
hypothesis.settings.register_profile("tdenoise", deadline=None)
hypothesis.settings.load_profile("tdenoise")


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Dask scheduler with two worker processes, shared by the tests of a session."""
    import dask
    from distributed import LocalCluster, Security

    security = Security.temporary()
    folder = tmp_path_factory.mktemp("keys")
    from tdenoise_pipeline.workers.cluster import WORKER_SETTINGS

    found: dict[str, object] = dict(WORKER_SETTINGS)
    # And where the client looks for its keys.
    for name, text in security.get_tls_config_for_role("client").items():
        if name in ("ca_file", "cert", "key"):
            file = folder / f"{name}.pem"
            file.write_text(text)
            key = name.replace("_", "-") if name == "ca_file" else f"client.{name}"
            found[f"distributed.comm.tls.{key}"] = str(file)
    with (
        dask.config.set(found),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            security=security,
        ) as cluster,
    ):
        yield cluster.scheduler_address
