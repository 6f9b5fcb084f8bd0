# SPDX-License-Identifier: Apache-2.0
"""Compares controllers on the test prompts: `python evaluate.py controllers=[runs/my-run]`, as `speckv evaluate`."""

import sys

from speckv.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
