"""``python -m torchnpy``: the command line."""

import sys

from torchnpy.cli import main

if __name__ == "__main__":
    sys.exit(main())
