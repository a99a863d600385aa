// Corpus: documents, where their KV is, their chunks; upload and delete.

import { getJson, path, postJson, remove, send } from "./api.js";
import { confirmed } from "./confirm.js";
import { byId, el, say, share } from "./elements.js";
import { bytes, count, many, moment } from "./format.js";
import { openChunk, placeOf } from "./passage.js";
import { refreshStores } from "./stores.js";

const PAGE = 50;
const CHUNKS = 20;
let cursor = null; // the last document shown

export async function show() {
  await guarded(async () => {
    await refreshStores();
    await list(true);
  });
}

byId("corpus-store").addEventListener("change", () => guarded(() => list(true)));
byId("corpus-refresh").addEventListener("click", show);
byId("corpus-more").addEventListener("click", () => guarded(() => list(false)));
byId("upload").addEventListener("change", (event) => guarded(() => upload(event.target)));

const store = () => byId("corpus-store").value || "default";

async function guarded(task) {
  try {
    await task();
  } catch (error) {
    say(byId("corpus-status"), error.message, "problem");
  }
}

async function list(anew) {
  const asked = { limit: PAGE, after: anew ? null : cursor };
  const page = await getJson(path(["v1", "vector_stores", store(), "files"], asked));
  const rows = page.data.map(documentRow);
  if (anew) byId("documents").replaceChildren(...rows);
  else byId("documents").append(...rows);
  cursor = page.last_id;
  byId("corpus-more").hidden = !page.has_more;
  const shown = byId("documents").querySelectorAll("tr.document").length;
  say(
    byId("corpus-status"),
    shown ? `${many(shown, "document")} shown.` : "No documents yet. Upload some, or run chunkcache ingest.",
  );
  await fillStates(page.data);
}

const documentOf = (file) => file.chunkcache.document;
const nameOf = (file) =>
  documentOf(file)?.title || file.chunkcache.filename || documentOf(file)?.document_id || file.id;

function documentRow(file) {
  const found = documentOf(file);
  const open = found
    ? el("button", {
        type: "button", class: "plain", "aria-expanded": "false",
        on: { click: (event) => toggle(event.currentTarget, found) },
      }, nameOf(file))
    : nameOf(file);
  const path_ = file.chunkcache.filename;
  return el(
    "tr",
    { class: "document", "data-document": found?.document_id ?? "" },
    el("td", { class: "name" }, open, path_ && path_ !== nameOf(file) ? el("div", { class: "small" }, path_) : null,
      file.last_error ? el("div", { class: "small" }, `Not read: ${file.last_error.message}`) : null),
    el("td", { class: "n" }, found ? count(found.num_chunks) : "–"),
    el("td", { class: "n" }, found ? count(found.num_tokens) : "–"),
    el("td", { class: "n" }, found ? bytes(found.size_bytes) : "–"),
    el("td", { class: "kv" }, found ? "…" : "–"),
    el("td", { class: "when" }, moment(found?.added_at ?? file.created_at)),
    el("td", { class: "n" }, el("button", {
      type: "button", class: "plain delete", "aria-label": `Delete ${nameOf(file)}`,
      on: { click: () => guarded(() => forget(file)) },
    }, "Delete")),
  );
}

async function fillStates(files) {
  const ids = files.map((file) => documentOf(file)?.document_id).filter(Boolean);
  if (!ids.length) return;
  const asked = { vector_store_id: store(), document_id: ids };
  const states = await getJson(path(["v1", "chunkcache", "kv"], asked));
  const cells = new Map(
    [...byId("documents").querySelectorAll("tr.document")].map((row) => [row.dataset.document, row]),
  );
  for (const state of states.data) {
    cells.get(state.document_id)?.querySelector(".kv").replaceChildren(...stateOf(state));
  }
}

/** A bar and its words: how many of the chunks have their KV in which tier. */
function stateOf({ chunks, counted, tiers }) {
  const none = counted - Object.values(tiers).reduce((sum, n) => sum + n, 0);
  const parts = Object.entries(tiers).map(([tier, n]) => `${count(n)} ${tier}`);
  if (none > 0) parts.push(`${count(none)} none`);
  const top = counted - none - (tiers.disk ?? 0);
  const words = parts.join(", ") + (counted < chunks ? `, of the first ${counted}` : "");
  return [
    share([["top", top], ["disk", tiers.disk ?? 0], ["none", none]]),
    el("div", { class: "small" }, words),
  ];
}

/** Show the chunks of a document in a row below its own, or hide them. */
async function toggle(button, found) {
  const row = button.closest("tr");
  if (button.getAttribute("aria-expanded") === "true") {
    row.nextElementSibling.remove();
    button.setAttribute("aria-expanded", "false");
    return;
  }
  button.setAttribute("aria-expanded", "true");
  const chunks = el("ol", { class: "chunks" });
  const more = el("button", { type: "button", hidden: true }, "More chunks");
  const cell = el("td", { colspan: "7" }, el("div", { class: "inner" }, chunks, more));
  row.after(el("tr", { class: "chunk-row" }, cell));
  const next = () => guarded(async () => {
    const offset = chunks.childElementCount;
    const asked = { vector_store_id: store(), offset, limit: CHUNKS };
    const page = await getJson(path(["v1", "chunkcache", "documents", found.document_id, "chunks"], asked));
    chunks.append(...page.data.map(chunkItem));
    more.hidden = !page.has_more;
  });
  more.addEventListener("click", next);
  await next();
}

function chunkItem(chunk) {
  const facts = `${many(chunk.tokens, "token")} · ${chunk.tier ? `KV in ${chunk.tier}` : "no KV yet"}`;
  const open = { type: "button", class: "plain", on: { click: () => openChunk(chunk) } };
  return el(
    "li",
    {},
    el("div", {},
      el("button", open, `${chunk.ordinal + 1}. ${placeOf(chunk)}`), " ",
      el("span", { class: "small" }, facts)),
    el("div", { class: "snippet soft" }, chunk.text),
  );
}

/** Upload and attach one file after the other; a problem with one is said and does not stop the rest. */
async function upload(input) {
  const files = [...input.files];
  const problems = [];
  for (const [index, file] of files.entries()) {
    say(byId("corpus-status"), `Reading ${file.name}, ${index + 1} of ${files.length}…`);
    const problem = await uploadOne(file);
    if (problem) problems.push(problem.startsWith(file.name) ? problem : `${file.name}: ${problem}`);
  }
  input.value = "";
  byId("upload-problems").replaceChildren(...problems.map((problem) => el("li", {}, problem)));
  await list(true);
  say(byId("corpus-status"), `${many(files.length - problems.length, "file")} added.`);
}

async function uploadOne(file) {
  const form = new FormData();
  form.set("purpose", "assistants");
  form.set("file", file, file.name);
  try {
    const kept = await (await send("v1/files", { method: "POST", body: form })).json();
    const response = await postJson(path(["v1", "vector_stores", store(), "files"]), { file_id: kept.id });
    const attached = await response.json();
    if (attached.status !== "failed") return null;
    await remove(path(["v1", "files", kept.id]));
    return attached.last_error.message;
  } catch (error) {
    return error.message;
  }
}

async function forget(file) {
  const text = "Its chunks can no longer be found. This cannot be undone.";
  if (!(await confirmed(`Delete ${nameOf(file)}?`, text))) return;
  await remove(path(["v1", "vector_stores", store(), "files", file.id]));
  if (file.id.startsWith("file-")) await removeUnlessShared(file.id);
  await list(true);
  say(byId("corpus-status"), `${nameOf(file)} is deleted.`);
  byId("corpus-title").focus();
}

/** An upload that another vector store still has is kept for that one. */
async function removeUnlessShared(fileId) {
  const kept = await getJson(path(["v1", "files", fileId]));
  if (kept.chunkcache.vector_store_ids.length === 0) await remove(path(["v1", "files", fileId]));
}
