# SPDX-License-Identifier: Apache-2.0
"""Prints up to how many tokens a model reads at once with the very logits of reading them one by one.

python -m benchmarks.llamacpp.exact MODEL.gguf --threads 1 2 --widest 9
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from benchmarks.llamacpp.models import CACHES, Setting
from speckv.integrations.llama_cpp import exact_width

logger = logging.getLogger(__name__)
CONTEXTS = (8, 200, 512)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries every model at every number of threads, type of cache and context."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--widest", type=int, default=9)
    options = parser.parse_args(arguments)
    for path in options.models:
        for threads in options.threads:
            for cache in CACHES:
                setting = Setting(target=path, draft=path, context=768, threads=threads, cache=cache)
                llama = setting.load_target(logits_all=True)
                found = {context: exact_width(llama, widest=options.widest, contexts=[context]) for context in CONTEXTS}
                llama.close()
                widths = ", ".join(f"{width} behind {context} tokens" for context, width in found.items())
                logger.info("%s, %d threads, %s cache: %s", path.name, threads, cache, widths)


if __name__ == "__main__":
    main()
