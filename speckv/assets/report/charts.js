// SPDX-License-Identifier: Apache-2.0
// Charts as inline SVG, drawn at the width that there is. Colours are classes: the theme decides.
"use strict";

function widthOf(id, most) {
  return Math.max(280, Math.min(most, byId(id).clientWidth || most));
}

function scale(low, high, from, to) {
  return (value) => from + ((value - low) / (high - low || 1)) * (to - from);
}

// Round numbers between two bounds, about as many as asked for.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((factor) => rough <= factor * unit);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) {
    found.push(Number(value.toPrecision(12)));
  }
  return found;
}

function text(x, y, content, attributes) {
  return svg("text", { x, y, ...attributes }, content);
}

function line(x1, y1, x2, y2, name) {
  return svg("line", { x1, y1, x2, y2, class: name });
}

function extent(intervals) {
  const values = intervals.flatMap((value) => [value.estimate, value.low, value.high]).filter((value) => value !== null);
  const low = Math.min(1, ...values);
  const high = Math.max(1, ...values);
  const margin = (high - low || 0.1) * 0.04;
  return [low - margin, high + margin];
}

const isBelow = (value) => value.estimate < 0.9995; // what is shown as 1.000 is not behind

// Far slower constants would squeeze all others into a point: they get an arrow at the edge instead.
function whiskerBounds(intervals) {
  const [low, high] = extent(intervals);
  return [Math.max(low, 1 - 1.25 * (high - 1)), high];
}

// An estimate between its bounds, and where the best fixed gamma stands.
function whisker(value, [low, high]) {
  const [width, height] = [100, 20];
  const x = scale(low, high, 6, width - 6);
  const y = height / 2;
  const drawn = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "whisker", "aria-hidden": "true" });
  drawn.append(line(x(1), 1, x(1), height - 1, "reference"));
  if (value.estimate < low) {
    drawn.append(svg("path", { d: `M1 ${y}l8 -4.5v9z`, class: "dot below" }));
    return drawn;
  }
  if (value.low !== null) {
    const ends = [Math.max(value.low, low), value.high];
    drawn.append(line(x(ends[0]), y, x(ends[1]), y, "bound"));
    for (const end of ends) drawn.append(line(x(end), y - 5, x(end), y + 5, "bound"));
  }
  drawn.append(svg("circle", { cx: x(value.estimate), cy: y, r: 3, class: isBelow(value) ? "dot below" : "dot" }));
  return drawn;
}

function headroomChart() {
  const task = byId("task").value;
  const groups = DATA.comparison.groups.filter((group) => group.task === task);
  const names = [...TESTED, BOUND];
  const width = widthOf("headroom", 860);
  const left = width < 520 ? 8 : 190;
  const rows = groups.flatMap((group) => [
    { group },
    ...names.map((name) => ({ group, name, value: overBestFixed(group, rowOf(group, name)) })),
  ]);
  const [low, high] = extent(rows.filter((row) => row.name).map((row) => row.value));
  const step = left === 8 ? 40 : 24;
  const height = rows.length * step + 38;
  const right = 66;
  const x = scale(low, high, left, width - right);
  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  chart.append(svg("title", {}, `Headroom, task ${task}: speed over the best fixed gamma of ${names.join(", ")}`));
  for (const value of ticks(low, high, 5)) {
    chart.append(line(x(value), 4, x(value), height - 34, "grid"));
    chart.append(text(x(value), height - 20, String(value), { "text-anchor": "middle", class: "tick" }));
  }
  chart.append(text((left + width - right) / 2, height - 4, "times the best fixed gamma", { "text-anchor": "middle", class: "tick" }));
  chart.append(line(x(1), 4, x(1), height - 34, "reference"));
  rows.forEach((row, k) => {
    const y = k * step + step / 2 + 6;
    if (!row.name) {
      const gamma = DATA.comparison.best_fixed_gammas[row.group.compression];
      const label = row.group.compression === "all" ? "all, geometric mean" : `${row.group.compression}, best fixed gamma ${gamma}`;
      chart.append(text(left === 8 ? 8 : 0, y + 4, label, { class: "strong" }));
      return;
    }
    const bound = row.name === BOUND;
    const labelled = left === 8 ? [left, y - 10] : [10, y + 4];
    chart.append(text(...labelled, clip(titleOf(row.name), left === 8 ? 44 : 27), { class: "label" }));
    const share = rowOf(row.group, row.name).headroom_share;
    const said = bound || share === null ? "" : ` (${(100 * share).toFixed(0)} %)`;
    chart.append(line(x(1), y, x(row.value.estimate), y, bound ? "room" : "taken"));
    if (row.value.low !== null && !bound) {
      chart.append(line(x(row.value.low), y, x(row.value.high), y, "bound"));
    }
    const mark = bound
      ? svg("path", { d: `M${x(row.value.estimate)} ${y - 5}l5 5l-5 5l-5 -5z`, class: "diamond" })
      : svg("circle", { cx: x(row.value.estimate), cy: y, r: 4, class: isBelow(row.value) ? "dot below" : "dot" });
    chart.append(mark);
    const ends = [x(1), x(row.value.estimate), row.value.high === null ? 0 : x(row.value.high)];
    const beside = Math.max(...ends) + 8;
    chart.append(text(Math.min(beside, width - 78), y + 4, fixed(row.value.estimate, 3) + said, { class: "value" }));
  });
  show("headroom", chart);
}

function clip(words, most) {
  return words.length > most ? `${words.slice(0, most - 1)}…` : words;
}

function panel(title, chart) {
  return el("figure", {}, el("figcaption", {}, title), chart);
}

function panelWidth(id) {
  const whole = byId(id).clientWidth || 860;
  const columns = whole < 640 ? 1 : whole < 1000 ? 2 : 3;
  return Math.max(270, Math.floor((whole - 16 * (columns - 1)) / columns));
}

// Counts of gammas over all decode steps of the test prompts.
function histogram(name, compression) {
  const byCompression = DATA.comparison.gamma_histograms[name];
  const chosen = compression === "all" ? Object.keys(byCompression) : [compression];
  const counts = byCompression[chosen[0]].map((_, gamma) => chosen.reduce((sum, c) => sum + byCompression[c][gamma], 0));
  const total = counts.reduce((sum, count) => sum + count, 0) || 1;
  const shares = counts.map((count) => count / total);
  const [width, height, left, bottom] = [panelWidth("gammas"), 170, 46, 34];
  const peak = Math.max(...shares);
  const x = scale(0, counts.length, left, width - 6);
  const y = scale(0, peak, height - bottom, 16);
  const mean = shares.reduce((sum, share, gamma) => sum + share * gamma, 0);
  const said = counts.map((count, gamma) => `${gamma}: ${(100 * count / total).toFixed(1)} %`).join(", ");
  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  chart.append(svg("title", {}, `Share of the steps of ${titleOf(name)} that chose each gamma: ${said}`));
  for (const value of ticks(0, peak, 3)) {
    chart.append(line(left, y(value), width - 6, y(value), "grid"));
    chart.append(text(left - 5, y(value) + 4, `${Math.round(100 * value)} %`, { "text-anchor": "end", class: "tick" }));
  }
  shares.forEach((share, gamma) => {
    const bar = { x: x(gamma) + 1, y: y(share), width: Math.max(1, x(1) - x(0) - 2), height: y(0) - y(share), class: "bar" };
    chart.append(svg("rect", bar));
    if (gamma % (width < 330 ? 4 : 2) === 0) {
      chart.append(text(x(gamma + 0.5), height - bottom + 14, String(gamma), { "text-anchor": "middle", class: "tick" }));
    }
  });
  for (const c of chosen) {
    const gamma = DATA.comparison.best_fixed_gammas[c];
    const tip = Math.max(10, y(shares[gamma]) - 3);
    chart.append(svg("path", { d: `M${x(gamma + 0.5)} ${tip}l-5 -8h10z`, class: "mark" }));
  }
  chart.append(text((left + width) / 2, height - 5, "gamma", { "text-anchor": "middle", class: "tick" }));
  return panel(`${titleOf(name)}, mean ${mean.toFixed(2)}`, chart);
}

function gammaCharts() {
  const compression = byId("compression").value;
  byId("gammas-note").textContent =
    "Share of decode steps that asked for each gamma, on all test prompts, "
    + `${compression === "all" ? "all compressions" : compression}; triangles: the best fixed gamma. `
    + "A controller that decides token by token counts where it stopped.";
  show("gammas", ...[...RUNS, BOUND].map((name) => histogram(name, compression)));
}

function curveChart(curve, compression) {
  const points = curve.points[compression];
  const [width, height, left, bottom] = [panelWidth("curves"), 220, 44, 34];
  const values = points.map(([, estimate, low, high]) => ({ estimate, low, high }));
  const [low, high] = extent(values);
  const x = scale(points[0][0], points[points.length - 1][0], left, width - 12);
  const y = scale(low, high, height - bottom, 8);
  const chart = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const last = values[values.length - 1];
  chart.append(svg("title", {}, `Validation of ${curve.controller}: ${interval(values[0])} at first, ${interval(last)} at last`));
  for (const value of ticks(low, high, 4)) {
    chart.append(line(left, y(value), width - 12, y(value), "grid"));
    chart.append(text(left - 5, y(value) + 4, String(value), { "text-anchor": "end", class: "tick" }));
  }
  for (const value of ticks(points[0][0], points[points.length - 1][0], width < 330 ? 2 : 4)) {
    chart.append(text(x(value), height - bottom + 14, steps(value), { "text-anchor": "middle", class: "tick" }));
  }
  if (points[0][2] !== null) {
    const above = points.map(([step, , , top]) => `${x(step)},${y(top)}`);
    const below = points.map(([step, , bottomEnd]) => `${x(step)},${y(bottomEnd)}`).reverse();
    chart.append(svg("polygon", { points: [...above, ...below].join(" "), class: "band" }));
  }
  chart.append(line(left, y(1), width - 12, y(1), "reference"));
  chart.append(svg("polyline", { points: points.map(([step, value]) => `${x(step)},${y(value)}`).join(" "), class: "curve" }));
  const best = points.find(([step]) => step === curve.best_step);
  chart.append(svg("circle", { cx: x(best[0]), cy: y(best[1]), r: 4, class: "dot" }));
  chart.append(text((left + width) / 2, height - 5, "environment steps", { "text-anchor": "middle", class: "tick" }));
  return panel(`${curve.controller}, ${curve.num_prompts} validation prompts`, chart);
}

function steps(value) {
  if (value >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`;
  return value >= 1e3 ? `${Number((value / 1e3).toPrecision(3))} k` : String(value);
}

function curveCharts() {
  const compression = byId("compression").value;
  const drawn = DATA.curves.filter((curve) => Object.hasOwn(curve.points, compression));
  const without = DATA.without_curve.map(titleOf).join(", ");
  byId("curves-note").textContent = [
    drawn.length
      ? "Speed over the best fixed gamma on validation prompts, "
        + `${compression === "all" ? "geometric mean over compressions" : compression}, all tasks; band: 95 % interval; `
        + "dot: the evaluation with the best mean over compressions, whose policy is kept."
      : "",
    without ? `No curve for ${without}: not evaluated along the way on this clock, or nothing was learned step by step.` : "",
  ].join(" ");
  show("curves", ...drawn.map((curve) => curveChart(curve, compression)));
}
