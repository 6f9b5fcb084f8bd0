# SPDX-License-Identifier: Apache-2.0
"""The `generate` of a folder that `speckv export --to hf-custom-generate` wrote."""

import copy
import tempfile
import threading
from base64 import b64decode
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from speckv.errors import ConfigError, SpecKVError
from speckv.integrations.transformers.control import control
from speckv.models.parts import unwrapped
from speckv.runtime.policy import Policy
from speckv.runtime.state import Storable


class Embedded:
    """A policy stored in a module, because transformers copies only the modules of a folder; for many threads.

    `files` holds the policy's two files in base 64, and `kinds` the controllers that `speckv.runtime` does not define.
    """

    def __init__(self, files: Mapping[str, str], kinds: Mapping[str, type[Storable]] | None = None) -> None:
        self._files, self._kinds = files, kinds
        self._policy: Policy | None = None
        self._loading, self._learning = threading.Lock(), threading.Lock()

    @property
    def policy(self) -> Policy:
        """Loaded and tested at the first use."""
        with self._loading:
            if self._policy is None:
                self._policy = self._loaded()
            return self._policy

    def _loaded(self) -> Policy:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self._files.items():
                Path(folder, name).write_bytes(b64decode(content))
            try:
                return Policy.load(folder, kinds=self._kinds)
            except SpecKVError as error:
                raise type(error)(f"The policy inside this custom_generate folder: {error}") from error

    def generate(
        self,
        model: Any,
        inputs: Any,
        assistant_model: Any,
        *,
        compression: str | None = None,
        cost_ratio: float | None = None,
        generation_config: Any = None,
        custom_generate: object = None,
        **options: Any,
    ) -> Any:
        """Generates like `model.generate(inputs, assistant_model=...)`, with drafts chosen by the policy.

        Args:
            assistant_model: The draft, with the target's tokenizer.
            compression: Of the target: "fp16" (unquantised), "int8" or "nf4"; the policy's first by default.
            cost_ratio: One draft pass over one target pass; by default that of the policy's training.
            custom_generate: Refused.

        Raises:
            ConfigError: before decoding, for unsupported settings.
            SpecKVError: if the policy is damaged, or its decisions differ from those where it was exported.
        """
        if custom_generate is not None:
            raise ConfigError(f"Expected no other custom_generate beside this one, got {custom_generate!r}.")
        if assistant_model is None:
            raise ConfigError("Expected assistant_model=DRAFT, a small model with the target's tokenizer, got none.")
        # Of the class: if the folder is in the target's own repository, `model.generate` calls this function.
        owner = model if hasattr(type(model), "generate") else unwrapped(model)
        _require_assisted(owner, assistant_model, generation_config, options)
        # A lock for a whole text if the policy learns and the steps of its requests cannot interleave.
        lock: AbstractContextManager[object] = nullcontext() if self.policy.interleaves else self._learning
        with (
            lock,
            control(model, assistant_model, self.policy, compression=compression, cost_ratio=cost_ratio),
        ):
            return type(owner).generate(
                owner, inputs, generation_config=generation_config, assistant_model=assistant_model, **options
            )


def _require_assisted(model: Any, draft: Any, given: Any, options: Mapping[str, Any]) -> None:
    """Checks that transformers would use the draft; with beams, for example, it only warns."""
    config = copy.deepcopy(model.generation_config)
    if given is not None:
        config.update(**{name: value for name, value in given.to_dict().items() if value is not None})
    config.update(**options)
    mode = config.get_generation_mode(draft)
    if mode != "assisted_generation":
        raise ConfigError(
            f"Expected greedy decoding or sampling, got settings of {str(getattr(mode, 'value', mode))!r}, where "
            "transformers uses no draft. Set num_beams=1 and leave constraints out, or custom_generate."
        )
