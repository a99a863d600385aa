// Cache: hit rate by tier over time, bytes, evictions, misses, and the sizing curve if there is one.

import { getJson, path } from "./api.js";
import { drawChart } from "./chart.js";
import { byId, el, figures, say } from "./elements.js";
import { bytes, count, moment, percent, reason } from "./format.js";

const POLL_MS = 5000;
const MIB = 1024 * 1024;
const BUCKETS = 60; // a point for each sample would show every single question
let timer = null;

export async function show() {
  hide();
  try {
    const span = document.querySelector('input[name="span"]:checked').value;
    draw(await getJson(path(["v1", "chunkcache", "figures"], { span })));
    say(byId("cache-status"), "");
  } catch (error) {
    say(byId("cache-status"), error.message, "problem");
  }
  if (!byId("cache").hidden) timer = setTimeout(show, POLL_MS);
}

export function hide() {
  clearTimeout(timer);
}

for (const choice of document.querySelectorAll('input[name="span"]')) {
  choice.addEventListener("change", show);
}

function draw(found) {
  const now = found.samples.at(-1);
  const tiers = tiersOf(now);
  drawFigures(now, tiers, found.started_at);
  drawHits(found.samples, tiers);
  drawBytes(found.samples, tiers);
  drawEvictions(found.samples, tiers);
  drawSizing(found.sizing);
  drawTables(now, tiers, found.capacity_bytes);
}

/** Tiers from the top: the one that is asked first has the most look-ups, disk is the last. */
function tiersOf(sample) {
  const names = new Set([...Object.keys(sample.queries), ...Object.keys(sample.size_bytes)]);
  return [...names].sort((a, b) => (a === "disk") - (b === "disk") || a.localeCompare(b));
}

const colorOf = (tier) => (tier === "disk" ? "--tier-disk" : "--tier-top");
const kindOf = (tier) => (tier === "disk" ? "disk" : "top");
const sum = (values) => Object.values(values).reduce((total, n) => total + n, 0);
const lookups = (sample) => Math.max(0, ...Object.values(sample.queries));

function drawFigures(now, tiers, startedAt) {
  const asked = lookups(now);
  figures(byId("cache-figures"), [
    ["Passages looked up", count(asked)],
    ["Hit rate", percent(sum(now.hits), asked)],
    ...tiers.map((tier) => [`From ${tier}`, percent(now.hits[tier] ?? 0, asked)]),
    ["Rows reused", percent(now.rows.reused ?? 0, sum(now.rows))],
    ["Requests", count(sum(now.requests))],
    ["Since", moment(startedAt)],
  ]);
}

/** At most `BUCKETS` pairs of samples, each with what happened between them. */
function buckets(samples) {
  const step = Math.max(1, Math.ceil(samples.length / BUCKETS));
  const picked = samples.filter((_, i) => i % step === 0 || i === samples.length - 1);
  return picked.slice(1).map((after, i) => [picked[i], after]);
}

function drawHits(samples, tiers) {
  const busy = buckets(samples).filter(([before, after]) => lookups(after) > lookups(before));
  const share = (grown) =>
    busy.map(([before, after]) => (100 * grown(before, after)) / (lookups(after) - lookups(before)));
  const lines = tiers.map((tier) => ({
    name: tier,
    color: colorOf(tier),
    kind: kindOf(tier),
    values: share((before, after) => (after.hits[tier] ?? 0) - (before.hits[tier] ?? 0)),
  }));
  const missed = (before, after) =>
    lookups(after) - lookups(before) - (sum(after.hits) - sum(before.hits));
  lines.push({ name: "no tier", color: "--tier-none", kind: "none", values: share(missed) });
  const newest = lines.map(({ name, values }) => `${name} ${Math.round(values.at(-1) ?? 0)} %`);
  drawChart(byId("chart-hits"), busy.map(([, after]) => after.at), lines, {
    max: 100,
    stacked: true,
    words: `Look-ups by tier over time; at the end: ${newest.join(", ")}`,
  });
}

function drawBytes(samples, tiers) {
  drawOverTime("chart-bytes", samples, tiers, "Bytes held", (sample, tier) => {
    const held = sample.size_bytes[tier];
    return held === null || held === undefined ? null : held / MIB;
  });
}

function drawEvictions(samples, tiers) {
  drawOverTime("chart-evictions", samples, tiers, "Records evicted", (s, tier) => s.evictions[tier] ?? 0);
}

function drawOverTime(id, samples, tiers, what, valueOf) {
  const lines = tiers.map((tier) => ({
    name: tier,
    color: colorOf(tier),
    kind: kindOf(tier),
    values: samples.map((sample) => valueOf(sample, tier)),
  }));
  const newest = lines.map(({ name, values }) => `${name} ${Math.round(values.at(-1) ?? 0)}`);
  drawChart(byId(id), samples.map((sample) => sample.at), lines, {
    words: `${what} over time; at the end: ${newest.join(", ")}`,
  });
}

function drawSizing(sizing) {
  byId("sizing").hidden = sizing === null;
  if (sizing === null) return;
  byId("sizing-caption").textContent =
    `Hit rate by memory, % (${sizing.trace}, ${moment(sizing.made_at)})`;
  const points = [...sizing.points].sort((a, b) => a.capacity_bytes - b.capacity_bytes);
  const last = points.at(-1);
  drawChart(
    byId("chart-sizing"),
    points.map((point) => point.capacity_bytes),
    [{ name: "hit rate", color: "--tier-top", kind: "top", values: points.map((p) => 100 * p.hit_rate) }],
    {
      max: 100,
      xText: bytes,
      words: `Hit rate by memory; ${percent(last.hit_rate, 1)} with ${bytes(last.capacity_bytes)}`,
    },
  );
}

function drawTables(now, tiers, capacity) {
  const cell = (text) => el("td", { class: "n" }, text);
  const unknown = (n) => (n === null || n === undefined ? "unknown" : count(n));
  const rows = tiers.map((tier) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, tier),
      cell(count(now.queries[tier] ?? 0)),
      cell(`${count(now.hits[tier] ?? 0)} (${percent(now.hits[tier] ?? 0, now.queries[tier] ?? 0)})`),
      cell(unknown(now.records[tier])),
      cell(bytes(now.size_bytes[tier])),
      cell(capacity[tier] === undefined ? "–" : bytes(capacity[tier])),
      cell(count(now.evictions[tier] ?? 0)),
    ),
  );
  byId("tiers").replaceChildren(...rows);
  const misses = Object.entries(now.misses).sort(([, a], [, b]) => b - a);
  const none = el("tr", {}, el("td", { colspan: "2", class: "soft" }, "None yet."));
  byId("misses").replaceChildren(
    ...(misses.length
      ? misses.map(([why, n]) => el("tr", {}, el("td", {}, reason(why)), cell(count(n))))
      : [none]),
  );
}
