import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const { BASE_URL, MODEL } = process.env;
const model = createOpenAICompatible({ name: "served", baseURL: BASE_URL, apiKey: "unused" })(MODEL);
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
await tried("generateObject", async () =>
  (await generateObject({ model, prompt, schema: z.object({ room: z.string() }) })).object,
);
