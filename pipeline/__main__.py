"""``python -m tdenoise_pipeline``: the command line, where its script is not on the path."""

import sys

from .cli.command_line import main

if __name__ == "__main__":  # a process that is started for work imports this module, too
    sys.exit(main())
