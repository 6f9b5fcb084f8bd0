# SPDX-License-Identifier: Apache-2.0
"""The record of live requests: whole lines, and nothing twice."""

from pathlib import Path

from speckv.agents.runs.requests import COMPARE, LEARN, DecodedRequest, RequestLog


def decoded(number: int, phase: str = LEARN) -> DecodedRequest:
    return DecodedRequest(number=number, prompt_id="p", phase=phase, arm="ucb1")


def test_a_log_reads_what_was_appended_and_forgets_what_comes_again(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "decoded.jsonl")
    assert log.read() == []
    log.drop_from(0)
    for number in range(3):
        log.append(decoded(number).line([1, 2], "length"))
    log.append(decoded(0, COMPARE).line([3], "eos"))
    assert [line["request"] for line in log.read()] == [0, 1, 2, 0]
    log.drop_from(2)
    assert [(line["request"], line["phase"]) for line in log.read()] == [(0, LEARN), (1, LEARN)]


def test_half_a_line_is_no_line(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "decoded.jsonl")
    log.append(decoded(0).line([], None))
    with (tmp_path / "decoded.jsonl").open("a") as file:
        file.write('{"request": 1, "to')
    assert [line["request"] for line in log.read()] == [0]
    log.drop_from(1)
    log.append(decoded(1).line([], "eos"))
    assert [line["finish"] for line in log.read()] == [None, "eos"]
