"""A script that calls a step needs a guard: every worker process runs the script again to find its functions."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from ..errors import UsageError


def check_main_guard() -> None:
    """Refuse to start worker processes from unguarded lines of a script, which each of them would run again.

    Raises
    ------
    UsageError
        With the lines to write.
    """
    main = sys.modules["__main__"]
    file, spec = getattr(main, "__file__", None), getattr(main, "__spec__", None)
    if file is None or (spec is not None and spec.name.endswith("__main__")):
        return  # a notebook, a prompt, or python -m PACKAGE: workers do not run these again
    frame = sys._getframe()
    while not (frame.f_globals is main.__dict__ and frame.f_code.co_name == "<module>"):
        if frame.f_back is None:
            return
        frame = frame.f_back
    try:
        lines = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return  # not a script that could be read again
    for node in lines:
        if node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno) and not (
            isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        ):
            raise UsageError(
                f"{file}: line {frame.f_lineno} starts worker processes, and each of them runs this script again. Put "
                "the call into a function, say main, and end the script with: if __name__ == '__main__': main()"
            )
