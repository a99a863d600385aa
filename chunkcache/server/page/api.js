// The server's routes: JSON in and out, server-sent events, errors as the server words them.

import { askForKey, storedKey } from "./key.js";

/** What the server said was wrong. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Fetch below the page's own address, so that a proxy may put it anywhere. Asks for a key on 401. */
export async function send(path, options = {}) {
  for (;;) {
    const key = storedKey();
    const headers = new Headers(options.headers);
    if (key) headers.set("authorization", `Bearer ${key}`);
    const response = await reached(new URL(path, document.baseURI), { ...options, headers });
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status !== 401) throw problem;
    // Another request may have been given a key while this one was on its way.
    if (key === storedKey() && !(await askForKey(problem.message))) throw problem;
  }
}

async function reached(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
}

async function problemOf(response) {
  let message = `The server answered with status ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    message += " Something between this page and the server may have answered instead.";
  }
  return new ApiError(message, response.status);
}

export const getJson = async (path) => (await send(path)).json();

export async function postJson(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return send(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

export const remove = (path) => send(path, { method: "DELETE" });

/** A path with its parts and query encoded: `path(["v1", "files", id], {limit: 20})`. */
export function path(parts, query = {}) {
  const asked = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) {
      if (one !== null && one !== undefined) asked.append(name, one);
    }
  }
  return parts.map(encodeURIComponent).join("/") + (asked.size ? `?${asked}` : "");
}

/** The events of a stream, parsed; ends at `[DONE]`. An `error` event is thrown. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError("The answer broke off.", 0);
    buffer += value;
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const { name, data } = fieldsOf(block);
      if (data === "[DONE]") return;
      if (data === "") continue; // a comment, which keeps the connection open
      const parsed = JSON.parse(data);
      if (name === "error") throw new ApiError(parsed.error.message, 200);
      yield parsed;
    }
  }
}

function fieldsOf(block) {
  const lines = block.split("\n");
  const of = (field) =>
    lines
      .filter((line) => line.startsWith(`${field}:`))
      .map((line) => line.slice(field.length + 1).trimStart())
      .join("\n");
  return { name: of("event"), data: of("data") };
}
