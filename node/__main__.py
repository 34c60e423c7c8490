"""`python -m node`: the same as `parallax node`, without the terminal package."""

import sys

from node.early_end import end_quietly_on_signals

if __name__ == "__main__":
    end_quietly_on_signals()  # before the imports that take long

    from node.command_line import main

    sys.exit(main())
