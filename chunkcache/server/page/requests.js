// Requests: the last ones, what each passage got, and why one was a miss.

import { getJson, path } from "./api.js";
import { byId, el, say, share } from "./elements.js";
import { count, many, milliseconds, moment, reason } from "./format.js";
import { rowCounts, spanTable } from "./ribbon.js";

const PAGE = 50;
let cursor = null;

export const show = () => list(true);

byId("requests-refresh").addEventListener("click", () => list(true));
byId("requests-more").addEventListener("click", () => list(false));

async function list(anew) {
  try {
    const asked = { limit: PAGE, after: anew ? null : cursor };
    const page = await getJson(path(["v1", "chunkcache", "requests"], asked));
    const rows = page.data.map(requestRow);
    if (anew) byId("asked").replaceChildren(...rows);
    else byId("asked").append(...rows);
    cursor = page.last_id ?? cursor;
    byId("requests-more").hidden = !page.has_more;
    const shown = byId("asked").querySelectorAll("tr.asked").length;
    say(byId("requests-status"), shown ? `${many(shown, "request")} shown.` : "No requests yet.");
  } catch (error) {
    say(byId("requests-status"), error.message, "problem");
  }
}

function requestRow(record) {
  const { report } = record;
  const question = record.question || "(blank)";
  const open = {
    type: "button", class: "plain", "aria-expanded": "false",
    on: { click: (event) => toggle(event.currentTarget, report) },
  };
  return el(
    "tr",
    { class: "asked" },
    el("td", { class: "when" }, moment(record.asked_at)),
    el("td", { class: "name" }, report ? el("button", open, question) : question),
    el("td", {}, report ? report.rung : record.outcome),
    el("td", { class: "n" }, report ? milliseconds(report.timings.ttft_ms) : "–"),
    el("td", { class: "n" }, report ? milliseconds(report.timings.total_ms) : "–"),
    el("td", {}, ...(report ? rowsOf(report) : ["–"])),
    el("td", {}, report ? missesOf(report) : "–"),
  );
}

function rowsOf(report) {
  const rows = rowCounts(report);
  const kept = report.reused_tokens;
  return [
    share(Object.entries(rows)),
    el("div", { class: "small" }, `${count(kept)} of ${count(report.prompt_tokens)} reused`),
  ];
}

/** "2 in no tier", or "none". */
function missesOf(report) {
  const reasons = new Map();
  for (const { miss } of report.spans) if (miss) reasons.set(miss, (reasons.get(miss) ?? 0) + 1);
  const words = [...reasons].map(([miss, n]) => `${count(n)} ${reason(miss)}`);
  return words.join(", ") || "none";
}

function toggle(button, report) {
  const row = button.closest("tr");
  if (button.getAttribute("aria-expanded") === "true") {
    row.nextElementSibling.remove();
    button.setAttribute("aria-expanded", "false");
    return;
  }
  button.setAttribute("aria-expanded", "true");
  const notes = report.notes.map((note) => el("p", { class: "small" }, note));
  const inner = el("div", { class: "inner" }, spanTable(report), ...notes);
  row.after(el("tr", {}, el("td", { colspan: "7" }, inner)));
}
