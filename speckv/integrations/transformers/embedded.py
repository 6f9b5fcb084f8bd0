# SPDX-License-Identifier: Apache-2.0
"""The `generate` of a folder that `python -m speckv export --to hf-custom-generate` wrote.

transformers copies the modules of such a folder to a place of its own, and nothing else, so the policy is in one of
them.
"""

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
    """A policy in the program's text, for transformers' assisted generation.

    Several threads may generate at the same time.

    Args:
        files: The policy's two files: name -> content in base 64.
        kinds: Kind -> class of controllers that are not among those of `speckv.runtime`.
    """

    def __init__(self, files: Mapping[str, str], kinds: Mapping[str, type[Storable]] | None = None) -> None:
        self._files, self._kinds = files, kinds
        self._policy: Policy | None = None
        self._loading, self._learning = threading.Lock(), threading.Lock()

    @property
    def policy(self) -> Policy:
        """The policy, read and tested at the first use.

        Raises:
            SpecKVError: if it is damaged, or its decisions differ here from those where it was exported.
        """
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
        """Generates as `model.generate(inputs, assistant_model=...)` does; the policy chooses how many tokens to draft.

        Args:
            model: The target.
            inputs: As for `generate`, and so is all that is not named here.
            assistant_model: The draft, with the target's tokenizer.
            compression: Of the target: "fp16" (unquantised), "int8" or "nf4"; the policy's first by default.
            cost_ratio: One draft pass over one target pass; what the policy was trained with by default.
            generation_config: As for `generate`.
            custom_generate: Another way to generate, which there cannot be.
            **options: As for `generate`.

        Raises:
            ConfigError: before anything is decoded, for settings that cannot be served.
            SpecKVError: if the policy cannot be used.
        """
        if custom_generate is not None:
            raise ConfigError(f"Expected no other custom_generate beside this one, got {custom_generate!r}.")
        if assistant_model is None:
            raise ConfigError("Expected assistant_model=DRAFT, a small model with the target's tokenizer, got none.")
        # Of the class: where the folder lies in the target's own repository, `model.generate` leads back here.
        owner = model if hasattr(type(model), "generate") else unwrapped(model)
        _require_assisted(owner, assistant_model, generation_config, options)
        with (
            self._turn(),
            control(model, assistant_model, self.policy, compression=compression, cost_ratio=cost_ratio),
        ):
            return type(owner).generate(
                owner, inputs, generation_config=generation_config, assistant_model=assistant_model, **options
            )

    def _turn(self) -> AbstractContextManager[object]:
        """Held for a whole text where the policy learns and the steps of its requests cannot interleave."""
        return nullcontext() if self.policy.interleaves else self._learning


def _require_assisted(model: Any, draft: Any, given: Any, options: Mapping[str, Any]) -> None:
    """Passes if transformers would decode with the draft; with beams, say, it warns, and decodes without one."""
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
