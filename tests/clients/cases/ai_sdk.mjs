import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const { BASE_URL, EMBEDDER, MODEL } = process.env;
const settings = { name: "served", baseURL: BASE_URL, apiKey: "unused" };
const model = createOpenAICompatible(settings)(MODEL);
const structured = createOpenAICompatible({ ...settings, supportsStructuredOutputs: true })(MODEL);
const prompt = "Where is the cat?";

async function tried(what, run) {
  let verdict = "works";
  try {
    if (!(await run())) throw new Error("nothing came back");
  } catch (error) {
    verdict = `fails: ${error.constructor.name}: ${String(error.message).slice(0, 200)}`;
  }
  console.log("@" + JSON.stringify({ tried: what, verdict }));
}

await tried("generateText", async () => (await generateText({ model, prompt })).text);
await tried("streamText", async () => {
  let text = "";
  for await (const piece of streamText({ model, prompt }).textStream) text += piece;
  return text;
});
await tried("tools", async () => {
  const look = tool({ description: "look", inputSchema: z.object({}), execute: async () => "kitchen" });
  return generateText({ model, prompt, tools: { look } });
});
const schema = z.object({ room: z.enum(["kitchen", "garden"]) });
await tried("generateObject, defaults (any JSON: it sends no schema)", async () => {
  try {
    return (await generateObject({ model, prompt, schema })).object;
  } catch (error) {
    return typeof JSON.parse(error.text) === "object";  // JSON all the same
  }
});
await tried("generateObject, supportsStructuredOutputs", async () =>
  (await generateObject({ model: structured, prompt, schema })).object.room,
);
await tried("embed", async () =>
  (await embed({ model: createOpenAICompatible(settings).textEmbeddingModel(EMBEDDER), value: prompt })).embedding.length,
);
