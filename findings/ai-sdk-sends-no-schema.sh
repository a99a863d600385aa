#!/usr/bin/env bash
# ai 7.0.173 with @ai-sdk/openai-compatible 3.0.92: `generateText` with `Output.object` sends the schema it is given
# nowhere, neither as a field nor in words to the model (as earlier versions did): only `response_format:
# {"type": "json_object"}`, and a warning on the console. What comes back is held to the schema all the same, so a
# model that could not know it fails with "response did not match schema". Only a provider made with
# `supportsStructuredOutputs: true` sends it.
# Seen: by default a request without the schema's property, with that setting one with it.
# Fails when that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
npm install --silent --no-audit --no-fund --prefix "$work" ai@7.0.173 @ai-sdk/openai-compatible@3.0.92 zod@4.1.12
cat > "$work/try.mjs" <<'JS'
import assert from "node:assert";
import http from "node:http";
import { createRequire } from "node:module";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output } from "ai";
import { z } from "zod";

const asked = [];
const message = { role: "assistant", content: '{"room": "kitchen"}' };
const answer = { id: "1", created: 1, model: "m", choices: [{ index: 0, message, finish_reason: "stop" }] };
const server = http.createServer((request, response) => {
  let body = "";
  request.on("data", (part) => (body += part));
  request.on("end", () => {
    asked.push(body);
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify(answer));
  });
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;
const output = Output.object({ schema: z.object({ room: z.string() }) });
for (const supportsStructuredOutputs of [undefined, true]) {
  const provider = createOpenAICompatible({ name: "local", baseURL, supportsStructuredOutputs });
  const answered = await generateText({ model: provider("m"), prompt: "Where is the cat?", output });
  assert.deepEqual(answered.output, { room: "kitchen" });
}
server.close();
const version = (name) => createRequire(import.meta.url)(`${name}/package.json`).version;
console.log(`ai ${version("ai")}, @ai-sdk/openai-compatible ${version("@ai-sdk/openai-compatible")}`);
console.log(`by default: ${asked[0]}\nwith supportsStructuredOutputs: ${asked[1]}`);
assert.equal(asked.length, 2);
assert.deepEqual(JSON.parse(asked[0]).response_format, { type: "json_object" });
assert(!asked[0].includes("room"), "the schema is sent by default now");
assert(asked[1].includes('"room"'));
JS
cd "$work" && node try.mjs
