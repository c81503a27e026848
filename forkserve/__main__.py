"""`python -m forkserve`."""

import sys

from forkserve.cli.serve import main

if __name__ == "__main__":
    sys.exit(main())
