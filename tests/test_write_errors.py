"""Whoever could not write is told so, whatever the command; whoever could not read is told something else."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from tdenoise_pipeline.errors import ResourceError, UsageError
from tdenoise_pipeline.files.write_errors import of_writing

SOMEBODY = 54_323


@pytest.mark.parametrize("what", ["new file", "new folder", "closed file", "closed folder"])
def test_only_what_was_to_be_made_is_called_a_failure_to_write(what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "closed").mkdir(mode=0o700)
        (folder / "secret").touch(mode=0o600)
        os.seteuid(SOMEBODY)
        try:
            with pytest.raises(PermissionError) as raised:
                {
                    "new file": (folder / "x").touch,
                    "new folder": (folder / "x").mkdir,
                    "closed file": (folder / "secret").read_bytes,
                    "closed folder": (folder / "closed/x").read_bytes,
                }[what]()
            told = of_writing(raised.value)
        finally:
            os.seteuid(0)
    if what.startswith("new"):
        assert isinstance(told, UsageError) and f"{folder}: you may not write here" in str(told)
    else:
        assert told is None


def test_a_read_only_or_full_disk_is_named_also_where_the_file_is_not() -> None:
    assert isinstance(of_writing(OSError(errno.EROFS, "read-only", "/x")), UsageError)
    assert isinstance(of_writing(OSError(errno.ENOSPC, "no space", "/x")), ResourceError)
    assert of_writing(OSError(errno.EIO, "broken", "/x")) is None
