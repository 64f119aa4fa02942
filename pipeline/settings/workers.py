"""Where the work runs, as ``--workers`` says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import urlsplit

from ..errors import UsageError

Kind = Literal["local", "slurm", "pbs", "lsf", "array", "address"]


@dataclass(frozen=True)
class Workers:
    """Workers on this machine, as jobs of a batch system, or behind a running Dask scheduler.

    Its text is what was given.
    """

    kind: Kind
    count: int = 0  # 0: one for each core, or as many as the scheduler has
    address: str = ""  # of the scheduler

    def __str__(self) -> str:
        if self.kind == "address":
            return self.address
        return f"{self.kind}:{self.count}" if self.count else self.kind

    @classmethod
    def of(cls, text: str) -> Workers:
        """Read the ``--workers`` option.

        Parameters
        ----------
        text : str
            ``local`` (one worker per core), ``local:N``, ``slurm:N``, ``pbs:N``, ``lsf:N``, ``array:N``, or the
            address of a running Dask scheduler, ``tls://HOST:PORT``.

        Raises
        ------
        UsageError
            If the text is none of these.

        Examples
        --------
        >>> Workers.of("local:4")
        Workers(kind='local', count=4, address='')
        >>> str(Workers.of("tls://node7:8786"))
        'tls://node7:8786'
        """
        if text == "local":
            return LOCAL
        if match := re.fullmatch(r"(local|slurm|pbs|lsf|array):([1-9][0-9]{0,4})", text):
            return cls(cast("Kind", match[1]), int(match[2]))
        if re.fullmatch(r"(tcp|tls)://([^\s/?#@]+)", text):
            if not _has_host_and_port(text):
                raise UsageError(f"--workers {text!r}: write the address as tls://HOST:PORT.")
            return cls("address", address=text)
        raise UsageError(
            f"--workers {text!r} is not one of local, local:N, slurm:N, pbs:N, lsf:N, array:N, tls://HOST:PORT."
        )

    @property
    def system(self) -> str | None:
        """The batch system that has their jobs, if one has."""
        if self.kind in ("local", "address"):
            return None
        return "slurm" if self.kind == "array" else self.kind

    def check_secure(self, insecure: bool) -> None:
        """Refuse a scheduler without TLS, unless ``insecure`` says that it is meant.

        Raises
        ------
        UsageError
        """
        if (
            self.address.startswith("tcp:") and not insecure
        ):  # on this machine too: others may have opened the port
            raise UsageError(
                f"--workers {self}: tcp is neither encrypted nor authenticated, and whoever opened that port can run "
                "code as you. Start the scheduler with TLS and use tls://. (Where you trust everyone who can reach "
                "it: --insecure.)"
            )


LOCAL = Workers("local")


def _has_host_and_port(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return bool(parts.hostname and parts.port)
    except ValueError:
        return False
