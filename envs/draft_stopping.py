# SPDX-License-Identifier: Apache-2.0
"""The environment of one request, token by token: after each drafted token, draft another one or verify."""

from envs.scalar import ReplayEnv
from envs.stopping_core import StoppingCore


class DraftStoppingEnv(ReplayEnv):
    """Decides after each drafted token of a recorded request whether to draft another one.

    ## Description
    As `SpecKV/GammaSelection-v0`, with the decision inside the decode step: the draft's certainty at the tokens drafted
    so far is known when the next one is decided on. That is where most of the information is.

    ## Action space
    `Discrete(2)`: 0 verifies what has been drafted (plain decoding if that is nothing), 1 drafts another token. A draft
    that can grow no further, at `gamma_max`, at a drafted end of text, at the token budget or where the draft has
    nothing to propose, is verified at once.

    ## Observation space
    `Box(25,)`, float32: the 17 features of `SpecKV/GammaSelection-v0` as they were when the decode step began, then the
    draft so far.

    | Num | Observation | Unit | Min | Max |
    |-----|-------------|------|-----|-----|
    | 0 to 16 | As in `SpecKV/GammaSelection-v0`, at the decode step's start | | | |
    | 17 | Tokens drafted so far, over 16 | 1 | 0 | 1 |
    | 18 | Draft's entropy at the newest drafted token | nats | 0 | 12 |
    | 19 | Draft's confidence (top-1 probability) there | 1 | 0 | 1 |
    | 20 | Draft's margin (top-1 minus top-2 probability) there | 1 | 0 | 1 |
    | 21 | Draft's mean entropy over the tokens drafted so far | nats | 0 | 12 |
    | 22 | Draft's greatest entropy over them | nats | 0 | 12 |
    | 23 | Draft's least confidence over them | 1 | 0 | 1 |
    | 24 | Sum of the logarithms of its confidences over them | nats | -12 | 0 |

    Before the first token 18, 21, 22 and 24 are 0, 19, 20 and 23 are 1.

    ## Rewards
    Drafting costs its pass when it happens; tokens come, and the target's pass is paid, when a draft is verified.
    `lambda_throughput` (the default), `time`, `tokens_minus_cost` and `tokens` add up so; `throughput` is a ratio of a
    whole decode step and is refused. Every action pays the cost table's time for deciding.

    ## Starting state, episode end, info
    As in `SpecKV/GammaSelection-v0`; `num_drafted` and `seconds` of an action are its own, `num_steps` of an episode
    counts decode steps.

    ## Version history
    * v0: first release.
    """

    core_class = StoppingCore
