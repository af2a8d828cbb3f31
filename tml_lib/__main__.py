"""`python -m tml_lib`: see `tml_lib.tools.cli`."""

import sys

from tml_lib.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
