# SPDX-License-Identifier: Apache-2.0
"""The `generate` of a folder that `python -m speckv export --to hf-custom-generate` wrote.

transformers copies the modules of such a folder to a place of its own, and nothing else, so the policy is in one of
them.
"""

import copy
import tempfile
from base64 import b64decode
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from speckv.errors import ConfigError, SpecKVError
from speckv.integrations.transformers.control import control
from speckv.runtime.exported import Policy
from speckv.runtime.kinds import offer


class Embedded:
    """A policy in the program's text, at work in transformers' assisted generation.

    Args:
        files: The policy's two files: name -> content in base 64.
        kinds: Objects whose `unpack` puts controllers together that `speckv.runtime` does not know.
    """

    def __init__(self, files: Mapping[str, str], kinds: Collection[Any] = ()) -> None:
        self._files = files
        self._policy: Policy | None = None
        for kind in kinds:
            offer(kind)

    @property
    def policy(self) -> Policy:
        """The policy, read and tried when it is first asked for.

        Raises:
            SpecKVError: if it is damaged, or decides otherwise here than where it was exported.
        """
        if self._policy is None:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in self._files.items():
                    Path(folder, name).write_bytes(b64decode(content))
                try:
                    self._policy = Policy.load(folder)
                except SpecKVError as error:
                    raise type(error)(f"The policy inside this custom_generate folder: {error}") from error
        return self._policy

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
        """Generates as `model.generate(inputs, assistant_model=...)` does, drafting as many tokens as the policy says.

        Args:
            model: The target.
            inputs: As for `generate`, and so is all that is not named here.
            assistant_model: The draft, with the target's vocabulary.
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
            raise ConfigError("Expected assistant_model=DRAFT, a small model with the target's vocabulary, got none.")
        _require_assisted(model, assistant_model, generation_config, options)
        with control(model, assistant_model, self.policy, compression=compression, cost_ratio=cost_ratio):
            # Of the class: where the folder lies in the target's own repository, `model.generate` leads back here.
            return type(model).generate(
                model, inputs, generation_config=generation_config, assistant_model=assistant_model, **options
            )


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
