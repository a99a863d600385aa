// The prompt as it was served: a bar to scale, a legend with row counts, and a table of its spans.

import { el, svg } from "./elements.js";
import { count, reason } from "./format.js";
import { openPassage } from "./passage.js";

const KINDS = { head: "head", history: "earlier turns", question: "question" };
const WORDS = {
  exact: "exact, reused",
  reused: "reused as it was",
  recomputed: "reused and recomputed",
  computed: "computed",
};

/** Rows by what was done to them. They add up to the prompt. */
export function rowCounts(report) {
  const rows = { exact: 0, reused: 0, recomputed: 0, computed: 0 };
  for (const span of report.spans) {
    rows[span.rung === "repaired" ? "reused" : "exact"] += span.reused;
    rows.recomputed += span.recomputed;
    rows.computed += span.computed;
  }
  return rows;
}

/** The whole picture. `cited`: the answer's citations, which give passages their numbers. */
export function ribbon(report, cited = [], links = []) {
  const rows = rowCounts(report);
  const legend = Object.entries(rows)
    .filter(([, amount]) => amount > 0)
    .map(([kind, amount]) => el("li", { class: kind }, `${WORDS[kind]} ${count(amount)}`));
  return el(
    "div",
    { class: "ribbon" },
    el("h2", {}, `Prompt, ${count(report.prompt_tokens)} rows`),
    bar(report, rows),
    el("ul", { class: "legend" }, ...legend),
    el(
      "div",
      { class: "scroll", role: "region", "aria-label": "Spans of the prompt", tabindex: "0" },
      spanTable(report, cited, links),
    ),
  );
}

function bar(report, rows) {
  const total = Math.max(1, report.prompt_tokens);
  const words = Object.entries(rows).map(([kind, amount]) => `${count(amount)} ${WORDS[kind]}`);
  const picture = svg("svg", {
    viewBox: `0 0 ${total} 10`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `Rows of the prompt: ${words.join(", ")}`,
  });
  for (const span of report.spans) picture.append(...pieces(span));
  for (const span of report.spans.slice(1)) picture.append(rect("edge", span.start, total / 500));
  return picture;
}

/** Rectangles of one span: first what came from a cache, then what was run, at its place. */
function pieces(span) {
  const kept = span.rung === "repaired" ? "reused" : "exact";
  const drawn = [];
  if (span.reused > 0) {
    drawn.push(rect(kept, span.start, span.tokens));
    if (span.computed > 0) {
      drawn.push(rect("computed", span.start + span.tokens - span.computed, span.computed));
    }
  } else {
    drawn.push(rect("computed", span.start, span.tokens));
  }
  for (const [first, length] of runs(span.recomputed_positions)) {
    drawn.push(rect("recomputed", first, length));
  }
  return drawn;
}

const rect = (kind, x, width) => svg("rect", { class: kind, x, y: 0, width, height: 10 });

/** Consecutive positions as `[first, length]`. */
function runs(positions) {
  const found = [];
  for (const position of positions) {
    const last = found.at(-1);
    if (last && last[0] + last[1] === position) last[1] += 1;
    else found.push([position, 1]);
  }
  return found;
}

/** One row for each span: what it got, from where, and why if it was a miss. */
export function spanTable(report, cited = [], links = []) {
  const heads = ["Span", "Rows", "Reused", "Recomputed", "Computed", "Rung", "From"];
  const numbers = new Set(["Rows", "Reused", "Recomputed", "Computed"]);
  return el(
    "table",
    { class: "spans" },
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        ...heads.map((head) => el("th", { scope: "col", class: numbers.has(head) && "n" }, head)),
      ),
    ),
    el("tbody", {}, ...report.spans.map((span) => spanRow(span, cited, links))),
  );
}

function spanRow(span, cited, links) {
  const cells = [span.tokens, span.reused, span.recomputed, span.computed];
  return el(
    "tr",
    {},
    el("td", {}, spanName(span, cited, links)),
    ...cells.map((n) => el("td", { class: "n" }, count(n))),
    el("td", {}, span.rung),
    el("td", {}, originOf(span)),
  );
}

function originOf(span) {
  const tier = span.tier ?? (span.miss ? `miss: ${reason(span.miss)}` : "–");
  return span.codec ? `${tier}, ${span.codec}` : tier;
}

function spanName(span, cited, links) {
  if (span.kind !== "chunk") return KINDS[span.kind] ?? span.kind;
  const index = cited.findIndex((citation) => citation.chunk_id === span.chunk_id);
  if (index < 0) return span.title || "a passage";
  const open = () => openPassage(cited[index], index + 1, links[index], span);
  const name = `[${index + 1}] ${span.title || cited[index].document_id}`;
  return el("button", { type: "button", class: "plain", on: { click: open } }, name);
}
