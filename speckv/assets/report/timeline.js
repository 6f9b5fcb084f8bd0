// SPDX-License-Identifier: Apache-2.0
// A prompt, step by step, as one controller decoded it, and what the others would have done in its place.
"use strict";

const TIMELINE = DATA.timeline;
const shown = { sequence: 0, player: 0, step: 0 };

// A step as timelines.py lists it, with the names that this file uses.
function stepAt(walk, index, player) {
  const [position, emitted, choices, rejected] = walk[index];
  const [gamma, drafted, accepted, time] = choices[player];
  return { position, emitted, choices, rejected, gamma, drafted, accepted, time };
}

function sequenceNow() {
  return TIMELINE.sequences[shown.sequence];
}

function walkOf(player) {
  return sequenceNow().walks[player];
}

function covering(player, position) {
  const walk = walkOf(player);
  const index = walk.findIndex(([start, emitted]) => start <= position && position < start + emitted);
  let elapsed = 0;
  for (let k = 0; k <= index; k += 1) elapsed += walk[k][2][player][3];
  return { ...stepAt(walk, index, player), index, elapsed };
}

// What a step emits: the accepted tokens and one of the target's own, as far as the text goes.
function emittedBy(accepted, position) {
  return Math.min(accepted + 1, sequenceNow().texts.length - position);
}

function count(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

function visible(words) {
  return words === "" ? "…" : words.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

function token(words, name, title) {
  return el(name === "rejected" ? "del" : "span", { class: `token ${name}${words === "" ? " part" : ""}`, title }, words || "…");
}

// The text so far: the steps before in their colours, the present one outlined, its rejected tokens struck out.
function textSoFar() {
  const sequence = sequenceNow();
  const walk = walkOf(shown.player);
  const nodes = [token(sequence.texts[0], "own", "token 0: from reading the prompt")];
  for (let k = 0; k <= shown.step; k += 1) {
    const step = stepAt(walk, k, shown.player);
    const now = [];
    for (let place = step.position; place < step.position + step.emitted; place += 1) {
      const drafted = place - step.position < step.accepted;
      const said = drafted
        ? `drafted and accepted; the draft was ${sequence.confidence[place]} % sure`
        : "the target's own";
      if (!drafted && k === shown.step) now.push(...rejectedTokens(step));
      now.push(token(sequence.texts[place], drafted ? "accepted" : "own", `token ${place}: ${said}`));
    }
    nodes.push(k === shown.step ? el("span", { class: "now", id: "now" }, ...now) : now);
  }
  return nodes.flat();
}

function rejectedTokens(step) {
  return step.rejected.map(([words, sure]) => token(words, "rejected", `drafted, not accepted; the draft was ${sure} % sure`));
}

function draftList(step) {
  const sequence = sequenceNow();
  const chip = (words, name, said, sure) =>
    el("li", {}, el("span", { class: `chip ${name}` }, visible(words)), el("small", {}, sure === null ? said : `${said}, ${sure} %`));
  const accepted = Array.from({ length: step.accepted }, (_, k) => step.position + k);
  const own = step.position + step.accepted;
  return el("ol", { class: "chips" },
    ...accepted.map((place) => chip(sequence.texts[place], "accepted", "accepted", sequence.confidence[place])),
    ...step.rejected.map(([words, sure], k) => chip(words, "rejected", k === 0 ? "rejected" : "not tested", sure)),
    step.emitted > step.accepted ? chip(sequence.texts[own], "own", "target's own", null) : null);
}

function choiceRow(player, step) {
  const [gamma, drafted, accepted, time] = step.choices[player];
  const emitted = emittedBy(accepted, step.position);
  const own = covering(player, step.position);
  const span = own.emitted === 1 ? `token ${own.position}` : `tokens ${own.position} to ${own.position + own.emitted - 1}`;
  return el("tr", { class: player === shown.player ? "tested" : null },
    el("th", { scope: "row", class: "name" }, titleOf(TIMELINE.players[player])),
    el("td", { class: "number gamma" }, String(gamma)),
    el("td", { class: "number" }, `${accepted} of ${drafted}`),
    el("td", { class: "number" }, seconds(time)),
    el("td", { class: "number" }, rate((1000 * emitted) / time)),
    el("td", {}, `step ${own.index + 1}, ${span}: drafted ${own.drafted}, kept ${own.accepted}, ${seconds(own.time)}`),
    el("td", { class: "number" }, seconds(own.elapsed)));
}

function choiceTable(step) {
  const head = ["Controller", "Gamma here", "Would keep", "Would take", "Tokens/s", "Its own step at this token", "Clock after it"];
  return el("table", { id: "choices" },
    el("thead", {}, el("tr", {}, ...head.map((title, k) => el("th", { scope: "col", class: k === 0 ? "name" : null }, title)))),
    el("tbody", {}, ...TIMELINE.players.map((_, player) => choiceRow(player, step))));
}

// A lane a controller on one clock: a bar a step, as wide as it took and as high as the tokens that it emitted.
function lanes(position) {
  const width = widthOf("lanes", 1100);
  const [left, right, step] = [4, 62, 54];
  const totals = TIMELINE.players.map((_, player) => walkOf(player).reduce((sum, [, , choices]) => sum + choices[player][3], 0));
  const most = Math.max(...TIMELINE.players.flatMap((_, player) => walkOf(player).map(([, emitted]) => emitted)));
  const x = scale(0, Math.max(...totals), left, width - right);
  const height = TIMELINE.players.length * step + 8;
  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  chart.append(svg("title", {}, TIMELINE.players.map((name, k) => `${titleOf(name)}: ${seconds(totals[k])}`).join(", ")));
  TIMELINE.players.forEach((name, player) => {
    const bottom = (player + 1) * step;
    const here = covering(player, position).index;
    let elapsed = 0;
    chart.append(text(left, bottom - 32, clip(titleOf(name), 48), { class: player === shown.player ? "label strong" : "label" }));
    walkOf(player).forEach(([, emitted, choices], k) => {
      const time = choices[player][3];
      const tall = (24 * emitted) / most;
      const bar = { x: x(elapsed) + 0.5, y: bottom - tall, width: Math.max(0.5, x(elapsed + time) - x(elapsed) - 1), height: tall };
      chart.append(svg("rect", { ...bar, class: k === here ? "bar here" : "bar" }));
      elapsed += time;
    });
    chart.append(line(left, bottom, x(elapsed), bottom, "axis"));
    chart.append(text(x(elapsed) + 5, bottom, seconds(elapsed), { class: "tick" }));
  });
  show("lanes", chart);
}

function drawStep() {
  const walk = walkOf(shown.player);
  const step = stepAt(walk, shown.step, shown.player);
  const after = covering(shown.player, step.position);
  const slider = byId("step");
  slider.max = walk.length;
  slider.value = shown.step + 1;
  slider.setAttribute("aria-valuetext", `step ${shown.step + 1} of ${walk.length}`);
  byId("step-number").textContent = `Step ${shown.step + 1} of ${walk.length}`;
  for (const [id, there] of [["first", 0], ["back", 0], ["next", walk.length - 1], ["last", walk.length - 1]]) {
    byId(id).setAttribute("aria-disabled", String(shown.step === there));
  }
  const cut = step.gamma > step.drafted ? ` (gamma ${step.gamma}, cut to what can be drafted)` : "";
  byId("said").textContent =
    `Token ${step.position}: drafted ${step.drafted}${cut}, accepted ${step.accepted}, rejected ${step.drafted - step.accepted}; `
    + `${count(step.emitted, "token")} in ${seconds(step.time)}. `
    + `Since the prompt was read: ${count(step.position + step.emitted - 1, "token")} in ${seconds(after.elapsed)}.`;
  show("text", ...textSoFar());
  show("drafted", draftList(step));
  byId("here").textContent = `Here, at token ${step.position}, in the state that ${titleOf(TIMELINE.players[shown.player])} is in`;
  show("choices-box", choiceTable(step));
  lanes(step.position);
  const [box, now] = [byId("text"), byId("now")];
  box.scrollTop = Math.max(0, now.offsetTop - box.clientHeight / 2);
}

function go(step) {
  shown.step = Math.max(0, Math.min(walkOf(shown.player).length - 1, step));
  drawStep();
}

// Another controller or compression: stay at the same token.
function keepPlace(change) {
  const [position] = walkOf(shown.player)[shown.step];
  change();
  const last = sequenceNow().texts.length - 1;
  shown.step = covering(shown.player, Math.min(position, last)).index;
  drawStep();
}

function chooseSequence(restart) {
  const [prompt, compression] = [byId("prompt").value, byId("prompt-compression").value];
  const found = TIMELINE.sequences.findIndex((s) => s.prompt_id === prompt && s.compression === compression);
  const change = () => { shown.sequence = found; };
  if (found < 0) return;
  if (restart) {
    change();
    shown.step = 0;
    drawStep();
  } else keepPlace(change);
  const known = sequenceNow().prompt;
  byId("prompt-box").hidden = known === null;
  byId("prompt-text").textContent = known || "";
}

function promptChosen() {
  const prompt = byId("prompt").value;
  const recorded = TIMELINE.sequences.filter((s) => s.prompt_id === prompt).map((s) => s.compression);
  const before = byId("prompt-compression").value;
  options(byId("prompt-compression"), recorded);
  if (recorded.includes(before)) byId("prompt-compression").value = before;
  chooseSequence(true);
}

function timelineKeys(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || ["SELECT", "INPUT"].includes(event.target.tagName)) return;
  const length = walkOf(shown.player).length;
  const moves = { ArrowLeft: shown.step - 1, ArrowRight: shown.step + 1, Home: 0, End: length - 1 };
  if (!Object.hasOwn(moves, event.key)) return;
  event.preventDefault();
  go(moves[event.key]);
}

function stepButton(id, label, sign, move) {
  return el("button", { type: "button", id, "aria-label": label, title: label, click: () => go(move()) }, sign);
}

function buildTimeline() {
  const last = () => walkOf(shown.player).length - 1;
  const slider = el("input", { type: "range", id: "step", min: 1, max: 1, value: 1, "aria-label": "Step", input: (event) => go(event.target.value - 1) });
  const key = (name, words) => el("span", { class: `chip ${name}` }, words);
  show("timeline",
    el("div", { class: "stepper", role: "group", "aria-label": "Steps; arrow keys move" },
      stepButton("first", "First step", "|◀", () => 0),
      stepButton("back", "One step back", "◀", () => shown.step - 1),
      slider,
      stepButton("next", "Next step", "▶", () => shown.step + 1),
      stepButton("last", "Last step", "▶|", last),
      el("output", { id: "step-number", for: "step" })),
    el("p", { id: "said", "aria-live": "polite" }),
    el("details", { id: "prompt-box", hidden: true }, el("summary", {}, "The prompt"), el("pre", { id: "prompt-text" })),
    el("p", { class: "key" }, key("accepted", "drafted, accepted"), " ", key("own", "target's own"), " ", key("rejected", "drafted, not accepted"), " ", key("now", "this step")),
    el("div", { id: "text", class: "text", tabindex: 0, role: "region", "aria-label": "Text so far; arrow keys step" }),
    el("h3", {}, "Drafted at this step"),
    el("div", { id: "drafted" }),
    el("h3", { id: "here" }),
    el("div", { id: "choices-box", class: "scroll", tabindex: 0, role: "region", "aria-labelledby": "here" }),
    el("p", { class: "note" }, meaning()),
    el("h3", {}, "All on one clock"),
    el("p", { class: "note" }, "A bar a step, as wide as it took, as high as the tokens it gave; marked: the step that covers this token."),
    el("div", { id: "lanes", class: "chart" }));
}

function meaning() {
  const learners = TIMELINE.learners.length
    ? ` ${TIMELINE.learners.join(", ")} learns from request to request: it stands here as it had learned when this one began.`
    : "";
  return "“Gamma here” asks every controller in the very state that the followed one is in: the same token, the same past, the same lag of the draft. "
    + "Replay is exact on each controller's own way through the text, whose steps begin elsewhere: “its own step” is the one that covers this token there. "
    + "The clairvoyant's answer is the best way on from here." + learners;
}

function startTimeline() {
  const missing = TIMELINE.num_missing ? ` ${count(TIMELINE.num_missing, "token")} without a text shown as numbers.` : "";
  byId("timeline-rule").textContent = `${TIMELINE.rule} ${TIMELINE.words}${missing}`;
  const prompts = [...new Map(TIMELINE.sequences.map((s) => [s.prompt_id, s])).values()];
  if (!prompts.length) return;
  options(byId("prompt"), prompts.map((s) => s.prompt_id), prompts.map((s) => `${s.task}: ${s.prompt_id}`));
  options(byId("player"), TIMELINE.players.map((_, k) => k), TIMELINE.players.map(titleOf));
  shown.player = Math.min(1, TIMELINE.players.length - 1);
  byId("player").value = shown.player;
  buildTimeline();
  byId("prompt").addEventListener("change", promptChosen);
  byId("prompt-compression").addEventListener("change", () => chooseSequence(false));
  byId("player").addEventListener("change", () => keepPlace(() => { shown.player = Number(byId("player").value); }));
  byId("timeline").addEventListener("keydown", timelineKeys);
  promptChosen();
}
