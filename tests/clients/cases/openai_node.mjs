import OpenAI from "openai";

const { BASE_URL, EMBEDDER, MODEL } = process.env;
const client = new OpenAI({ baseURL: BASE_URL, apiKey: "unused" });
const messages = [{ role: "user", content: "Where is the cat?" }];

async function tried(what, run) {
  let verdict = "works";
  try {
    if (!(await run())) throw new Error("nothing came back");
  } catch (error) {
    verdict = `fails: ${error.constructor.name}: ${String(error.message).slice(0, 200)}`;
  }
  console.log("@" + JSON.stringify({ tried: what, verdict }));
}

await tried("chat", async () => {
  const answer = await client.chat.completions.create({ model: MODEL, messages });
  return answer.choices[0].message.content;
});
await tried("chat, streamed", async () => {
  let pieces = 0;
  for await (const _ of await client.chat.completions.create({ model: MODEL, messages, stream: true })) pieces++;
  return pieces;
});
await tried("stream helper", async () =>
  client.chat.completions.stream({ model: MODEL, messages }).finalContent(),
);
await tried("responses", async () =>
  (await client.responses.create({ model: MODEL, input: "Where is the cat?" })).output_text,
);
await tried("embeddings", async () =>
  (await client.embeddings.create({ model: EMBEDDER, input: "cat" })).data[0].embedding.length,
);
