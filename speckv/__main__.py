# SPDX-License-Identifier: Apache-2.0
"""Runs `speckv` as `python -m speckv COMMAND [key=value ...]`."""

import sys

from speckv.commands.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
