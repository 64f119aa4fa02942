"""The command line: parse, run one step, show what came of it; may import everything."""

from .command_line import main as main
