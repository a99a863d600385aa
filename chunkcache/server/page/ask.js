// Ask: a streamed answer, its passages, the prompt's ribbon, and the same question in full.

import { answer } from "./answers.js";
import { showComparison } from "./comparison.js";
import { byId, el, figures, say } from "./elements.js";
import { count, milliseconds, percent } from "./format.js";
import { openPassage, placeOf } from "./passage.js";
import { ribbon } from "./ribbon.js";
import { refreshStores } from "./stores.js";

let running = null; // what stops the answer that is coming
let last = null; // the question, its wishes and its answer, to be asked again in full

export function show() {
  refreshStores().catch((error) => say(byId("ask-status"), error.message, "problem"));
}

byId("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running === null) guarded(ask);
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask-form").requestSubmit();
});
byId("ask-stop").addEventListener("click", () => running?.abort());
byId("ask-compare").addEventListener("change", (event) => {
  if (!event.target.checked) byId("ask-comparison").hidden = true;
  else if (last && running === null) guarded(askInFull);
});

/** Run with the form in its busy state; what fails is said, not thrown. */
async function guarded(task) {
  running = new AbortController();
  setBusy(true);
  try {
    await task(running.signal);
  } catch (error) {
    if (error.name === "AbortError") say(byId("ask-status"), "Stopped.");
    else say(byId("ask-status"), error.message, "problem");
  } finally {
    byId("ask-text").setAttribute("aria-busy", "false");
    running = null;
    setBusy(false);
  }
}

function setBusy(busy) {
  byId("ask-send").disabled = busy;
  byId("ask-stop").hidden = !busy;
}

async function ask(signal) {
  const question = byId("question").value.trim();
  if (!question) return;
  const maxTokens = number("ask-max-tokens");
  const wishes = {
    vector_store_id: byId("ask-store").value || null,
    top_k: number("ask-top-k"),
    budget: number("ask-budget"),
    mode: byId("ask-mode").value,
  };
  last = null;
  clear();
  say(byId("ask-status"), "Looking for passages…");
  const text = byId("ask-text");
  text.setAttribute("aria-busy", "true");
  const found = await answer(question, wishes, {
    maxTokens,
    signal,
    onStart: (citations) => {
      say(byId("ask-status"), "Answering…");
      showPassages(citations, [], null);
    },
    onText: (piece) => text.append(piece),
  });
  last = { question, wishes, maxTokens, found };
  text.setAttribute("aria-busy", "false");
  const cut = found.finish === "length";
  say(byId("ask-status"), cut ? "Answered, and cut at the limit of tokens." : "Answered.");
  showReport(found);
  if (byId("ask-compare").checked) await askInFull(signal);
}

/** The same question with nothing reused. A budget has no meaning then. */
async function askInFull(signal) {
  const { question, wishes, maxTokens, found } = last;
  say(byId("ask-status"), "Asking again in full…");
  const full = await answer(
    question,
    { ...wishes, budget: null, mode: "full" },
    { maxTokens, signal, onStart: () => {}, onText: () => {} },
  );
  showComparison(byId("ask-comparison"), found, full);
  say(byId("ask-status"), "Answered twice.");
}

const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));

function clear() {
  byId("ask-result").hidden = false;
  byId("ask-comparison").hidden = true;
  for (const id of ["ask-text", "ask-sources", "ask-figures", "ask-notes", "ask-passages", "ask-ribbon"]) {
    byId(id).replaceChildren();
  }
}

function showReport({ report, citations, links }) {
  if (!report) return;
  showPassages(citations, links, report);
  byId("ask-sources").replaceChildren(
    ...citations.map((citation, index) =>
      el(
        "button",
        {
          type: "button",
          "aria-label": `Passage ${index + 1}: ${citation.title || citation.document_id}`,
          on: { click: () => openPassage(citation, index + 1, links[index], spanOf(report, citation)) },
        },
        `${index + 1}`,
      ),
    ),
  );
  const times = report.timings;
  figures(byId("ask-figures"), [
    ["First token", milliseconds(times.ttft_ms)],
    ["In all", milliseconds(times.total_ms)],
    ["From the cache", `${count(report.reused_tokens)} of ${count(report.prompt_tokens)} rows`],
    ["Work, of full", percent(report.cost_ratio, 1)],
    ["Rung", report.rung],
    ["Policy", report.rung === "repaired" ? `${report.policy} at ${percent(report.budget, 1)}` : report.policy],
    ["Expected drift", report.predicted_drift === null ? null : `${report.predicted_drift.toFixed(3)} nats`],
  ]);
  byId("ask-notes").replaceChildren(...report.notes.map((note) => el("li", {}, note)));
  byId("ask-ribbon").replaceChildren(ribbon(report, citations, links));
}

function showPassages(citations, links, report) {
  const items = citations.map((citation, index) => {
    const open = () => openPassage(citation, index + 1, links[index], report && spanOf(report, citation));
    return el(
      "li",
      {},
      el(
        "button",
        { type: "button", on: { click: open } },
        el("span", { class: "number" }, `${index + 1}`),
        el("span", { class: "title" }, placeOf(citation)),
        el("span", { class: "snippet" }, citation.text),
      ),
    );
  });
  const none = el("li", { class: "soft" }, "No passages: the model answers from what it knows.");
  byId("ask-passages").replaceChildren(...(items.length ? items : [none]));
}

const spanOf = (report, citation) => report.spans.find((span) => span.chunk_id === citation.chunk_id);
