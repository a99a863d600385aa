// The same question from the cache and in full: times, work, and the words that differ.

import { difference } from "./difference.js";
import { el } from "./elements.js";
import { count, milliseconds, percent } from "./format.js";

/** Fill `place` and show it. Both are what `answer` gives. */
export function showComparison(place, cached, full) {
  const cell = (text) => el("td", { class: "n" }, text);
  const row = (name, of) =>
    el("tr", {}, el("th", { scope: "row" }, name), cell(of(cached)), cell(of(full)));
  place.replaceChildren(
    el("h2", {}, "Asked again in full"),
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, el("td", {}), head("As asked"), head("In full"))),
      el(
        "tbody",
        {},
        row("First token", ({ report }) => milliseconds(report.timings.ttft_ms)),
        row("In all", ({ report }) => milliseconds(report.timings.total_ms)),
        row("Rows run, of full", ({ report }) => percent(report.cost_ratio, 1)),
        row("Rows from the cache", ({ report }) => count(report.reused_tokens)),
        row("Rung", ({ report }) => report.rung),
      ),
    ),
    el("p", {}, verdict(cached, full)),
    ...differenceOf(cached.text, full.text),
  );
  place.hidden = false;
}

const head = (text) => el("th", { scope: "col", class: "n" }, text);

function verdict(cached, full) {
  const times = full.report.timings.ttft_ms / cached.report.timings.ttft_ms;
  const speed =
    times >= 1
      ? `The first token came ${times.toFixed(1)} times as fast as in full.`
      : `The first token took ${(1 / times).toFixed(1)} times as long as in full.`;
  return `${speed} ${cached.text === full.text ? "Both answers are the same text." : "The answers differ:"}`;
}

function differenceOf(before, after) {
  if (before === after) return [];
  const names = { same: "span", removed: "del", added: "ins" };
  return [
    el(
      "p",
      { class: "difference" },
      ...difference(before, after).map(({ kind, text }) => el(names[kind], {}, text)),
    ),
    el(
      "p",
      { class: "small" },
      el("del", {}, "only in the answer as asked"),
      " ",
      el("ins", {}, "only in full"),
    ),
  ];
}
