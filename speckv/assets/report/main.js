// SPDX-License-Identifier: Apache-2.0
// Fills the page, and draws again what a choice or another width changes.
"use strict";

function drawCharts() {
  headroomChart();
  gammaCharts();
  curveCharts();
}

function startHeader() {
  byId("title").textContent = DATA.title;
  byId("verdict").textContent = DATA.verdict;
  const list = (facts) => facts.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)]);
  show("facts", ...list(DATA.facts));
  show("runs", ...DATA.runs.map((run) => [el("h3", {}, run.name), el("dl", {}, ...list(run.facts))]).flat());
}

// In the words of the text table, and with its line breaks by verdict.
function startJudged() {
  const { note, parts } = DATA.verdicts;
  byId("verdicts-section").hidden = !parts.length;
  byId("verdicts-note").textContent = `${note[0].toUpperCase()}${note.slice(1)}.`;
  show("verdicts", ...parts.flatMap(([where, lines]) => [
    el("h3", {}, where),
    el("ul", { class: "verdicts" }, ...lines.map(([outcome, text]) => el("li", { class: outcome.split(" ")[0] || "first" }, text))),
  ]));
}

function startControls() {
  const groups = DATA.comparison.groups;
  const names = (field) => [...new Set(groups.map((group) => group[field]))];
  const allFirst = (values) => ["all", ...values.filter((value) => value !== "all")];
  options(byId("compression"), allFirst(names("compression")));
  options(byId("task"), allFirst(names("task")));
  byId("every-label").textContent = TESTED.length < RUNS.length ? "every fixed gamma and seed" : "every fixed gamma";
  for (const id of ["compression", "task"]) {
    byId(id).addEventListener("change", () => { drawTable(); drawCharts(); });
  }
  byId("every").addEventListener("change", drawTable);
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function startTheme() {
  const button = byId("theme");
  const say = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    say();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);
  say();
}

function startResizing() {
  let [width, waiting] = [innerWidth, 0];
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar changes the height alone
    width = innerWidth;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      drawCharts();
      if (TIMELINE.sequences.length) drawStep();
    });
  });
}

startTheme();
startHeader();
startJudged();
startControls();
drawTable();
drawCharts();
startTimeline();
startResizing();
