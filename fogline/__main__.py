"""`python -m fogline`: the `fogline` command."""

from __future__ import annotations

import sys

from fogline.cli import main

if __name__ == "__main__":
    sys.exit(main())
