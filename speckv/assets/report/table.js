// SPDX-License-Identifier: Apache-2.0
// The comparison table: every column sorts, by mouse and by keyboard, and says so in aria-sort.
"use strict";

const COLUMNS = [
  { key: "controller", title: "Controller", value: (group, row) => titleOf(row.controller) },
  { key: "rate", title: "Tokens/s", value: (group, row) => row.throughput_tokens_per_s, cell: rate },
  { key: "plain", title: "× plain decoding [95 %]", value: (group, row) => overPlain(group, row).estimate },
  { key: "fixed", title: "× best fixed gamma [95 %]", value: (group, row) => overBestFixed(group, row).estimate },
  { key: "tokens", title: "Tokens/ step", value: (group, row) => row.tokens_per_step, cell: (value) => fixed(value, 2) },
  { key: "drafted", title: "Drafted/ token", value: (group, row) => row.drafted_per_token, cell: (value) => fixed(value, 2) },
  { key: "accepted", title: "Accepted", value: (group, row) => row.acceptance_rate, cell: (value) => fixed(value, 3) },
  { key: "gamma", title: "Gamma", value: (group, row) => row.mean_gamma, cell: (value) => fixed(value, 2) },
  {
    key: "share",
    title: "Headroom",
    value: (group, row) => (row.controller === PLAIN ? null : row.headroom_share),
    cell: (value) => (value === null ? "" : `${(100 * value).toFixed(1)} %`),
  },
];

// No column at first: rows then stand as in the text table, baselines first and the bound last.
const sorting = { key: null, descending: true };

function sortBy(column) {
  if (sorting.key === column.key) sorting.descending = !sorting.descending;
  else Object.assign(sorting, { key: column.key, descending: column.key !== "controller" });
  drawTable();
  byId("table").querySelector(`button[data-key="${column.key}"]`).focus();
}

function sorted(group, rows) {
  const column = COLUMNS.find(({ key }) => key === sorting.key);
  if (!column) return rows;
  const way = sorting.descending ? -1 : 1;
  return [...rows].sort((one, two) => {
    const [a, b] = [column.value(group, one), column.value(group, two)];
    if (a === null || b === null) return (a === null) - (b === null); // what is not there stands last either way
    return way * (typeof a === "string" ? a.localeCompare(b) : a - b);
  });
}

function headerCell(column) {
  const active = sorting.key === column.key;
  const state = active ? (sorting.descending ? "descending" : "ascending") : "none";
  const arrow = el("span", { "aria-hidden": "true", class: "arrow" }, active ? (sorting.descending ? "▼" : "▲") : "↕");
  const button = el("button", { type: "button", "data-key": column.key, click: () => sortBy(column) }, column.title, "\u00a0", arrow);
  return el("th", { scope: "col", "aria-sort": state, class: column.key === "controller" ? "name" : "number" }, button);
}

function bodyCell(column, group, row, bounds) {
  if (column.key === "controller") return el("th", { scope: "row", class: "name" }, titleOf(row.controller));
  if (column.key === "plain") return el("td", { class: "number" }, interval(overPlain(group, row)));
  if (column.key === "fixed") {
    const value = overBestFixed(group, row);
    return el("td", { class: "number withwhisker" }, el("span", {}, interval(value)), whisker(value, bounds));
  }
  return el("td", { class: "number" }, column.cell(column.value(group, row)));
}

function rowClass(row) {
  if (TESTED.includes(row.controller) || RUNS.includes(row.controller)) return "tested";
  return row.controller === FIXED ? "baseline" : row.controller === BOUND ? "bound" : null;
}

function drawTable() {
  const [compression, task] = [byId("compression").value, byId("task").value];
  const group = groupOf(compression, task);
  if (!group) {
    byId("table-note").textContent = "Nothing was recorded for this choice.";
    show("table");
    return;
  }
  const every = byId("every").checked;
  const listed = every ? group.rows : DATA.listed.map((name) => rowOf(group, name));
  const bounds = whiskerBounds(listed.map((row) => overBestFixed(group, row)));
  const words = compression === "all" ? "Ratios over all compressions are geometric means; tokens a second are sums over sums. " : "";
  byId("table-note").textContent =
    `${group.num_prompts} test prompts. ${words}The line beside the numbers marks 1: the best fixed gamma, tuned on other `
    + "prompts. Accepted: of the drafted tokens that the target judged. Gamma: mean. Headroom: share of what lies between the best "
    + "fixed gamma and the clairvoyant bound. An arrow at the edge: slower than is drawn. An interval speaks of one row by itself; "
    + "what may be claimed of many stands below.";
  const head = el("thead", {}, el("tr", {}, ...COLUMNS.map(headerCell)));
  const body = sorted(group, listed).map((row) =>
    el("tr", { class: rowClass(row) }, ...COLUMNS.map((column) => bodyCell(column, group, row, bounds))));
  show("table", el("table", {}, head, el("tbody", {}, ...body)));
}
