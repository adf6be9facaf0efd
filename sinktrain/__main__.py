"""`python -m sinktrain`: the same as the command `sinktrain`, for launchers that start Python modules."""

import sys

from sinktrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
