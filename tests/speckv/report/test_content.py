# SPDX-License-Identifier: Apache-2.0
"""What the page holds: the comparison's record, prompts by rule, texts, curves; and nothing that breaks it."""

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from speckv.errors import DataError
from speckv.evaluation.metrics import ALL
from speckv.evaluation.replays import BEST_FIXED
from speckv.evaluation.results import comparison_json
from speckv.evaluation.significance import AHEAD, BEHIND, EQUAL, VS_BEST_FIXED
from speckv.evaluation.summary import verdict
from speckv.evaluation.text import render_comparison
from speckv.report.content import choose_prompts, describe_rule
from speckv.report.page import embedded_json, render_page
from speckv.report.texts import ASSETS, TokenTexts, Vocabulary, shipped_vocabulary, tokens_of
from speckv.traces import ASSETS as TRACES
from speckv.traces import TraceSet
from tests.fakes_report import HOSTILE, PIECES, compared, made, splits, toy_content


def test_the_page_holds_the_comparison_as_it_is_saved() -> None:
    controllers = made("fixed", "svip")
    content = toy_content(controllers)
    assert content["comparison"] == comparison_json(compared(controllers))
    assert render_page(content) == render_page(toy_content(made("fixed", "svip")))


def test_the_verdict_names_the_best_run_with_its_interval_and_the_bound() -> None:
    controllers = made("fixed", "svip")
    comparison = compared(controllers)
    rows = [comparison.group(ALL, ALL).row(c.name) for c in controllers]
    best = max(rows, key=lambda row: row.geomean_vs_best_fixed.estimate)
    text = verdict(comparison)
    assert best.controller in text
    assert f"{best.geomean_vs_best_fixed.estimate:.3f} [{best.geomean_vs_best_fixed.low:.3f}, " in text
    assert "geometric mean over fp16, nf4" in text
    assert f"{comparison.group(ALL, ALL).row('clairvoyant').geomean_vs_best_fixed.estimate:.3f}." in text
    assert "clairvoyant bound is" in verdict(compared([]))


def test_the_sentence_claims_what_the_family_claims_whatever_the_interval_says() -> None:
    comparison = compared(made("fixed", "svip"))
    family = comparison.overall(VS_BEST_FIXED)
    assert family is not None
    assert (family.compression, family.num_comparisons) == ("all", 2)
    first = max(family.pairs, key=lambda v: v.speedup)
    assert f"is {first.outcome} it (" in verdict(comparison)
    for word in (AHEAD, BEHIND, EQUAL):
        pairs = tuple(replace(v, outcome=word, p_holm=0.0123) if v is first else v for v in family.pairs)
        other = replace(family, pairs=pairs)
        families = tuple(other if f is family else f for f in comparison.families)
        assert f"{first.controller}, the first of 2" in verdict(replace(comparison, families=families))
        assert f"is {word} it (p=0.012)" in verdict(replace(comparison, families=families))


def test_verdicts_are_those_of_the_text_table_word_for_word() -> None:
    comparison = compared(made("fixed", "svip", "gammatune"))
    judged = toy_content(made("fixed", "svip", "gammatune"))["verdicts"]
    assert isinstance(judged, dict)
    table = " ".join(render_comparison(comparison).split())
    for where, lines in judged["parts"]:
        assert " ".join([where, *(said for _, said in lines)]) in table
    assert judged["note"] in table
    assert [where for where, _ in judged["parts"]] == ["fp16", "nf4", "all compressions, weighed alike"]
    claims = [(f.compression, v.outcome) for f in comparison.families for v in f.pairs]
    shown = [(where.split(",")[0].split()[0], word) for where, lines in judged["parts"] for word, _ in lines if word]
    assert set(shown) == set(claims)
    assert toy_content([])["verdicts"] == {"note": judged["note"], "parts": ()}


def test_prompts_are_those_nearest_to_their_tasks_median() -> None:
    controllers = made("svip")
    comparison = compared(controllers)
    chosen = choose_prompts(comparison, 2)
    by_name = {s.name: s for s in comparison.sums}
    ours, fixed = (by_name[name].seconds.sum(axis=1) for name in (controllers[0].name, BEST_FIXED))
    ratio = dict(zip(comparison.grid.prompt_ids, fixed / ours, strict=True))
    task_of = dict(zip(comparison.grid.prompt_ids, comparison.grid.tasks, strict=True))
    for task in set(comparison.grid.tasks):
        inside = [name for name in comparison.grid.prompt_ids if task_of[name] == task]
        median = float(np.median([ratio[name] for name in inside]))
        nearest = sorted(inside, key=lambda name: abs(ratio[name] - median))[:2]
        assert [name for name in chosen if task_of[name] == task] == nearest
    assert "median speed-up of svip" in describe_rule(comparison, 2)


def test_a_timeline_shows_what_the_recording_holds() -> None:
    content = toy_content(made("svip"))
    timeline = content["timeline"]
    assert isinstance(timeline, dict)
    _, test = splits()
    recorded = {s.key: s for s in test.sequences}
    assert {s["compression"] for s in timeline["sequences"]} == {"fp16", "nf4"}
    for one in timeline["sequences"]:
        sequence = recorded[one["compression"], one["prompt_id"]]
        assert "".join(one["texts"]) == b"".join(PIECES[t] for t in sequence.tokens.tolist()).decode(errors="replace")
        for player, walk in enumerate(one["walks"]):
            for position, _, choices, rejected in walk:
                _, drafted, accepted, _ = choices[player]
                assert len(rejected) == drafted - accepted
                tokens, signals = sequence.draft_from(position, drafted)
                assert [sure for _, sure in rejected] == [round(100 * s[1]) for s in signals[accepted:].tolist()]
                if accepted < drafted:
                    assert tokens[accepted] != sequence.tokens[position + accepted]


@pytest.mark.parametrize(
    ("before", "tokens", "expected"),
    [
        ([], [7, 8], ["", "é"]),
        ([7], [8], ["é"]),
        ([], [7, 2], ["", "\ufffd w2"]),
        ([], [2, 7], [" w2", "\ufffd"]),
        ([], [99, 9], ["⟨99⟩", "\n"]),
        ([7], [99], ["\ufffd⟨99⟩"]),
        ([], [], []),
    ],
)
def test_characters_across_tokens_appear_with_their_last_token(
    before: list[int], tokens: list[int], expected: list[str]
) -> None:
    texts = TokenTexts(PIECES)
    assert texts.after(before, tokens) == expected
    assert texts.missing == {99} & {*before, *tokens}


class _Page(HTMLParser):
    """Collects a page's tags, scripts and attributes as a browser would split them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        del tag
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)


def test_no_text_can_break_out_and_nothing_is_fetched() -> None:
    content = {**toy_content(made("fixed")), "title": HOSTILE}
    page = _Page(render_page(content))
    data, program = page.scripts
    assert json.loads(data) == json.loads(json.dumps(content))
    assert "<" not in data
    assert "use strict" in program
    assert [tag for tag, _ in page.tags if tag in ("img", "b", "iframe", "object", "base", "form")] == []
    assert [
        name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"
    ] == []
    addresses = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert sorted(map(str, addresses)) == ["#main", "data:,"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", render_page(content))


def test_the_policy_allows_exactly_the_pages_own_script_and_style() -> None:
    import base64
    import hashlib

    page = render_page(toy_content(made("fixed")))
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])  # type: ignore[index]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, source in (("script", r"<script>(.*)</script>\n</body>"), ("style", r"<style>(.*)</style>")):
        found = re.search(source, page, re.DOTALL)
        assert found is not None
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_embedded_json_reads_back() -> None:
    content = {"a": [HOSTILE, "\u2029", 1.5, None]}
    assert json.loads(embedded_json(content)) == content


def test_a_vocabulary_reads_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    everything = {number: bytes([number]) for number in range(256)}
    vocabulary = Vocabulary(tokenizer_sha256="ab", pieces={**PIECES, **everything})
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    path.write_text(path.read_text(encoding="utf-8").replace("speckv-vocabulary", "other"), encoding="utf-8")
    with pytest.raises(DataError, match="speckv vocabulary"):
        Vocabulary.load(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="expected a vocabulary"):
        Vocabulary.load(path)


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.parquet")), ids=lambda path: path.stem)
def test_shipped_recordings_have_a_text_for_every_token(path: Path) -> None:
    traces = TraceSet.load(path)
    vocabulary = shipped_vocabulary(traces.metadata.tokenizer_sha256)
    assert vocabulary is not None
    assert set(tokens_of([traces])) <= set(vocabulary.pieces)
    texts = TokenTexts(vocabulary.pieces)
    whole = ["".join(texts.emitted(s.tokens.tolist())) for s in traces.sequences if s.finish == "eos"]
    assert all(text.endswith(("<|im_end|>", "<|endoftext|>")) for text in whole)
    assert sum("\ufffd" in text for text in whole) == 0


def test_shipped_vocabularies_hold_nothing_else() -> None:
    recorded = [TraceSet.load(path) for path in sorted(TRACES.glob("*.parquet"))]
    for path in ASSETS.glob("*.json"):
        vocabulary = Vocabulary.load(path)
        same = [t for t in recorded if t.metadata.tokenizer_sha256 == vocabulary.tokenizer_sha256]
        assert sorted(vocabulary.pieces) == tokens_of(same)
    assert shipped_vocabulary("") is None
    assert shipped_vocabulary("0" * 64) is None
