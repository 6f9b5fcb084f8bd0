// SPDX-License-Identifier: Apache-2.0
// Makes elements. Text only ever becomes a text node, so nothing in it can be markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const DATA = JSON.parse(document.getElementById("data").textContent);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function byId(id) {
  return document.getElementById(id);
}

function show(id, ...children) {
  byId(id).replaceChildren(...children);
}

function options(select, values, labels) {
  select.replaceChildren(...values.map((value, k) => el("option", { value }, labels ? labels[k] : value)));
}

const fixed = (value, digits) => (value === null ? "" : value.toFixed(digits));

function rate(value) {
  return value.toFixed(value >= 100 ? 1 : value >= 10 ? 2 : value >= 1 ? 3 : 4);
}

function seconds(milliseconds) {
  return milliseconds >= 1000 ? `${(milliseconds / 1000).toFixed(2)} s` : `${milliseconds.toPrecision(3)} ms`;
}

function interval(value) {
  const bounds = value.low === null ? "" : ` [${fixed(value.low, 3)}, ${fixed(value.high, 3)}]`;
  return fixed(value.estimate, 3) + bounds;
}

// The group of the comparison that the reader chose; undefined where it was never recorded.
function groupOf(compression, task) {
  return DATA.comparison.groups.find((group) => group.compression === compression && group.task === task);
}

function rowOf(group, controller) {
  return group.rows.find((row) => row.controller === controller);
}

// Of all compressions together, the geometric mean of theirs: one sum would be ruled by the slowest.
function overBestFixed(group, row) {
  return group.compression === "all" ? row.geomean_speedup_vs_best_fixed : row.speedup_vs_best_fixed;
}

function overPlain(group, row) {
  return group.compression === "all" ? row.geomean_speedup_vs_ar : row.speedup_vs_ar;
}

const RUNS = DATA.comparison.controllers;
const TESTED = DATA.comparison.entrants; // the same, with one name for the runs of one agent
const FIXED = "best-fixed";
const PLAIN = "autoregressive";
const BOUND = "clairvoyant";
const TITLES = {
  autoregressive: "plain decoding",
  "best-fixed": "best fixed gamma",
  clairvoyant: "clairvoyant bound",
  "task-oracle": "best fixed, by task",
  "request-oracle": "best fixed, by prompt",
};

function titleOf(controller) {
  return Object.hasOwn(TITLES, controller) ? TITLES[controller] : controller;
}
