// The dialog that shows a passage, and links to it that are followed only if they are web addresses.

import { byId } from "./elements.js";
import { count, reason } from "./format.js";

byId("passage-close").addEventListener("click", () => byId("passage").close());

/** Show a citation. `span`: what the passage got in the prompt, if that is known. */
export function openPassage(citation, number, link, span) {
  show(`[${number}] ${placeOf(citation)}`, citation.text, link, [
    `characters ${count(citation.start_char)} to ${count(citation.end_char)}`,
    ...(span ? [`${span.rung}: ${rowWords(span)}`] : []),
    ...(span?.tier ? [`from ${span.tier}`] : []),
    ...(span?.codec ? [`rounded by ${span.codec}`] : []),
    ...(span?.miss ? [`miss: ${reason(span.miss)}`] : []),
  ]);
}

/** Where a chunk stands: its document's title, or else id, and the headings above it. */
export const placeOf = (chunk) =>
  [...new Set([chunk.title || chunk.document_id, ...(chunk.headings ?? [])])].filter(Boolean).join(" › ") || chunk.chunk_id;

/** Show a chunk of the corpus. */
export function openChunk(chunk) {
  show(placeOf(chunk), chunk.text, null, [
    `chunk ${count(chunk.ordinal + 1)}`,
    `characters ${count(chunk.start_char)} to ${count(chunk.end_char)}`,
    `${count(chunk.tokens)} tokens`,
    chunk.tier ? `KV in ${chunk.tier}` : "no KV yet",
  ]);
}

function show(title, text, link, facts) {
  byId("passage-title").textContent = title;
  byId("passage-meta").textContent = facts.join(" · ");
  byId("passage-text").textContent = text;
  const anchor = byId("passage-link");
  anchor.parentElement.hidden = !isWebAddress(link);
  if (isWebAddress(link)) anchor.href = link;
  else anchor.removeAttribute("href");
  byId("passage").showModal();
  byId("passage-text").scrollTop = 0;
}

const rowWords = (span) =>
  [
    [span.reused, "reused"],
    [span.recomputed, "recomputed"],
    [span.computed, "computed"],
  ]
    .filter(([n]) => n > 0)
    .map(([n, word]) => `${count(n)} rows ${word}`)
    .join(", ");

/** A document may name any address as its own, `javascript:` too. */
function isWebAddress(link) {
  return Boolean(link) && URL.canParse(link) && /^https?:$/.test(new URL(link).protocol);
}
