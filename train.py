# SPDX-License-Identifier: Apache-2.0
"""Trains a controller and evaluates it once on the test prompts: `python train.py agent=ppo`, as `speckv train`."""

import sys

from speckv.commands.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
