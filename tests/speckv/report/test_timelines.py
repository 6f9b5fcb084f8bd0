# SPDX-License-Identifier: Apache-2.0
"""What a reader steps through is what was evaluated, and every answer to "and here?" is the controller's own."""

import numpy as np
import pytest

from speckv.cost import CompiledCost
from speckv.evaluation.replays import BEST_FIXED, CLAIRVOYANT, compile_pair, tune_fixed
from speckv.replay import CompiledTraces, ReplayBatch, clairvoyant, plan_optimum
from speckv.replay.runs import Choice, run_to_end
from speckv.report.timelines import Player, Step, follow, players_of
from speckv.runtime.constant import ConstantGamma, ConstantPerCompression
from speckv.types import Controller, OnlineLearner
from tests.fakes_report import COST, compared, made, splits

# Once a step, token by token, with a memory of its own, and learning from request to request in both ways.
NAMES = ("fixed", "svip", "gammatune", "transformers_heuristic", "ucb1", "hazard_thompson", "calibrated_stopping")


def everyone(*names: str) -> tuple[list[Controller], list[Player], list[list[tuple[Step, ...]]], list[int]]:
    """Controllers, players and the walks of each player through some test prompts."""
    controllers = made(*names)
    compiled, cost = compile_pair(splits()[1], COST)
    sequences = list(range(0, len(compiled), 3))
    fixed = ConstantPerCompression(tune_fixed(splits()[0], COST).best(), name=BEST_FIXED)
    players = [*players_of([fixed, *controllers], compiled, cost, sequences), Player(CLAIRVOYANT)]
    return controllers, players, [follow(p, players, compiled, cost, sequences) for p in players], sequences


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_steps_add_up_to_what_the_comparison_says(name: str) -> None:
    controllers, players, walks, sequences = everyone(name)
    comparison = compared(controllers)
    by_name = {sums.name: sums for sums in comparison.sums}
    rows, columns = comparison.grid.rows, comparison.grid.columns
    for number, (player, walk) in enumerate(zip(players, walks, strict=True)):
        sums = by_name[player.name]
        for sequence, steps in zip(sequences, walk, strict=True):
            cell = rows[sequence], columns[sequence]
            assert sum(s.num_emitted for s in steps) == sums.tokens[cell]
            assert len(steps) == sums.steps[cell]
            assert sum(s.chosen[number].seconds for s in steps) == pytest.approx(sums.seconds[cell], rel=1e-12)
            assert sum(s.chosen[number].num_drafted for s in steps) == sums.drafted[cell]
            assert sum(s.chosen[number].num_accepted for s in steps) == sums.accepted[cell]
            gammas = np.bincount([s.chosen[number].gamma for s in steps], minlength=17)
            assert gammas.tolist() == sums.gammas[cell].tolist()


def test_steps_cover_the_text_without_gaps() -> None:
    _, _, walks, sequences = everyone("svip")
    _, test = splits()
    for walk in walks:
        for sequence, steps in zip(sequences, walk, strict=True):
            ends = [step.position + step.num_emitted for step in steps]
            assert [step.position for step in steps] == [1, *ends[:-1]]
            assert ends[-1] == len(test.sequences[sequence].tokens)


@pytest.mark.parametrize("name", ["svip", "gammatune", "kangaroo"])
def test_an_answer_in_another_s_place_depends_on_the_state_alone(name: str) -> None:
    """Where a controller follows itself, its answers are its own choices: so they are in the place of a twin."""
    (controller,) = made(name)
    (twin,) = made(name)
    twin.name = "twin"
    compiled, cost = compile_pair(splits()[1], COST)
    sequences = [0, 5]
    players = players_of([controller, twin], compiled, cost, sequences)
    for steps in follow(players[0], players, compiled, cost, sequences):
        assert all(step.chosen[0] == step.chosen[1] for step in steps)


def test_a_constant_answers_itself_anywhere_and_its_step_is_cut_where_the_draft_is() -> None:
    _, players, walks, sequences = everyone("svip")
    compiled, cost = compile_pair(splits()[1], COST)
    constant = Player("deep", ConstantGamma(16))
    asked = [*players, constant]
    for steps, sequence in zip(follow(players[1], asked, compiled, cost, sequences), sequences, strict=True):
        recorded = compiled.traces.sequences[sequence]
        for step in steps:
            answer = step.chosen[-1]
            drafted, _ = recorded.draft_from(step.position, 16)
            room = len(recorded.tokens) - 1 - step.position
            assert answer.gamma == 16
            assert answer.num_drafted == min(16, max(room, 0), len(drafted))
            assert answer.num_accepted == min(answer.num_drafted, int(recorded.accepted_length[step.position]))
    assert walks  # the players' own walks are left as they were


def test_the_bound_answers_with_the_fastest_way_on() -> None:
    """From the driver's state on, the bound's answers, taken one after the other, lead to the end in the least time."""
    compiled, cost = compile_pair(splits()[1], COST)
    bound = Player(CLAIRVOYANT)
    record = clairvoyant(compiled, cost)
    sequences = list(range(len(compiled)))
    for sequence, steps in zip(sequences, follow(bound, [bound], compiled, cost, sequences), strict=True):
        assert sum(s.chosen[0].seconds for s in steps) == pytest.approx(record.seconds[sequence], rel=1e-12)
    # In the state after one plain step of another, no first choice followed by the best way on is faster.
    plain = Player("plain", ConstantGamma(0))
    (steps,) = follow(plain, [plain, bound], compiled, cost, [0])
    answer = steps[1].chosen[1].gamma
    times = [_seconds_from_second_step(compiled, cost, gamma) for gamma in range(17)]
    assert times[answer] == pytest.approx(min(times), rel=1e-12)


def _seconds_from_second_step(compiled: CompiledTraces, cost: CompiledCost, gamma: int) -> float:
    """One plain step, then a step of some gamma, then as the bound plans: seconds of all but the first."""
    batch = ReplayBatch(compiled, cost, 1)
    batch.assign([0], [0])
    plan = plan_optimum(batch)
    forced = [0, gamma]

    def choose(running: ReplayBatch) -> Choice:
        return Choice(gammas=np.array([forced.pop(0)])) if forced else plan.choice(running)

    log = run_to_end(batch, choose, log=True).log
    assert log is not None
    return float(log.seconds[1:].sum())


def test_learners_are_asked_as_they_stood_and_are_left_as_they_were() -> None:
    (controller,) = made("ucb1")
    assert isinstance(controller, OnlineLearner)
    compiled, cost = compile_pair(splits()[1], COST)
    players = players_of([controller], compiled, cost, [3, 4])
    first = follow(players[0], players, compiled, cost, [3, 4])
    assert first == follow(players[0], players, compiled, cost, [3, 4])
    again = players_of([controller], compiled, cost, [3, 4])
    assert first == follow(again[0], again, compiled, cost, [3, 4])
