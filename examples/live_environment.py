# SPDX-License-Identifier: Apache-2.0
"""Real models in a Gymnasium environment: a stop rule that calibrates itself while it decodes three prompts.

    python examples/live_environment.py TARGET DRAFT

TARGET and DRAFT are hub ids, folders or GGUF files of two models with one tokenizer, such as
Qwen/Qwen2.5-Coder-1.5B-Instruct and Qwen/Qwen2.5-Coder-0.5B-Instruct. Some minutes on two cores.
"""

import logging
import sys

import gymnasium as gym

from speckv import envs
from speckv.agents.bandits.calibrated import CalibratedStopping
from speckv.agents.registry import default_settings
from speckv.agents.token_by_token import TokenByToken
from speckv.cost import CostTable
from speckv.cost.times import StepTimes
from speckv.decoding import Engine, draft_source
from speckv.envs.live import LivePrompt
from speckv.models import PairConfig, load_pair
from speckv.profiling.prompts import EXAMPLES, read_prompts

MAX_NEW_TOKENS = 48
logger = logging.getLogger(__name__)


def main() -> None:
    """Decodes and prints the speed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    pair = load_pair(PairConfig(target=sys.argv[1], draft=sys.argv[2]))
    read = read_prompts([EXAMPLES])[:3]
    prompts = [LivePrompt(prompt_id=p.prompt_id, tokens=tuple(pair.encode(p.text))) for p in read]
    cost = CostTable.load("cpu-2core")
    env = gym.make(
        envs.LIVE_DECODING,
        engine=Engine(pair.target, draft_source(pair), eos_token_ids=pair.eos_token_ids),
        prompts=prompts,
        cost=cost,
        max_new_tokens=MAX_NEW_TOKENS,
        decides="per_token",
    )
    player = TokenByToken(CalibratedStopping(default_settings("calibrated_stopping"), StepTimes.of(cost, ["fp16"]), 0))
    for index in range(len(prompts)):
        observation, info = env.reset(seed=0, options={"prompt": index})
        player.reset()
        ended, tokens, seconds = False, 0, 0.0
        while not ended:
            observation, _, terminated, truncated, step = env.step(player.act(observation))
            tokens, seconds, ended = tokens + step["num_emitted"], seconds + step["seconds"], terminated or truncated
            if step["num_emitted"]:
                player.controller.learn(step["outcome"])
        logger.info("%s: %d tokens in %.1f s, %.2f tokens/s", info["prompt_id"], tokens, seconds, tokens / seconds)


if __name__ == "__main__":
    main()
