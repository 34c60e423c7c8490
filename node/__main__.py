"""`python -m node`: the same as `parallax node`, without the terminal package."""

import sys

from node.command_line import main

if __name__ == "__main__":
    sys.exit(main())
