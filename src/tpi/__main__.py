"""``python -m tpi`` is the command ``tpi``."""

import sys

from tpi.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
