// One answer from the server, as a stream.

import { events, postJson } from "./api.js";

/**
 * Ask. `wishes` are fields of the request's `chunkcache` object, null where the server decides.
 * `onStart(citations)` and `onText(piece)` are called as the answer comes.
 * Gives `{text, finish, citations, links, report, total_ms, first_ms}`, times as this page saw them.
 */
export async function answer(question, wishes, { maxTokens, signal, onStart, onText }) {
  const said = Object.entries(wishes).filter(([, value]) => value !== null && value !== "");
  const began = performance.now();
  const response = await postJson(
    "v1/chat/completions",
    {
      messages: [{ role: "user", content: question }],
      stream: true,
      chunkcache: Object.fromEntries(said),
      ...(maxTokens ? { max_tokens: maxTokens } : {}),
    },
    signal,
  );
  const found = { text: "", finish: null, citations: [], links: [], report: null, first_ms: null };
  for await (const chunk of events(response)) {
    const choice = chunk.choices[0];
    if (chunk.chunkcache?.citations) found.citations = chunk.chunkcache.citations;
    if (chunk.chunkcache?.spans) found.report = chunk.chunkcache;
    else if (chunk.chunkcache) onStart(found.citations);
    if (choice?.delta.annotations) found.links = linksOf(choice.delta.annotations);
    found.finish = choice?.finish_reason ?? found.finish;
    if (choice?.delta.content) {
      found.first_ms ??= performance.now() - began;
      found.text += choice.delta.content;
      onText(choice.delta.content);
    }
  }
  return { ...found, total_ms: performance.now() - began };
}

/** Annotations come one for each passage, in prompt order, as citations do. */
const linksOf = (annotations) =>
  annotations.filter((note) => note.type === "url_citation").map((note) => note.url_citation.url);
