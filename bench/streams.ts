/**
 * The two sides of the stream bench, each its own process. `server`: a scripted provider that holds every stream open after its first
 * words. `bare`: N calls of the AI SDK's `streamText`, and nothing else. MODE, COUNT, MODEL_URL.
 */
import { createAnthropic } from "@ai-sdk/anthropic";
import { stepCountIs, streamText } from "ai";
import { startModelServer } from "../test/support/model-server.ts";

const { MODE, COUNT, MODEL_URL } = process.env;

if (MODE === "server") {
  const server = await startModelServer({ record: false });
  server.script(() => ({ text: "some words and then silence", stallAfter: 3 }));
  console.log(`ready ${server.url("anthropic")}`);
  setInterval(() => console.log(`open ${server.open}`), 100);
}

if (MODE === "bare") {
  const provider = createAnthropic({
    apiKey: "sk-ant-scripted-0000000000000000",
    baseURL: MODEL_URL!,
  });
  console.log("ready");
  process.on("message", (message) => {
    if (message !== "open") return;
    for (let index = 0; index < Number(COUNT); index++) {
      const { textStream } = streamText({
        model: provider("claude-sonnet-4-5"),
        prompt: "x".repeat(280),
        maxRetries: 0,
        stopWhen: stepCountIs(1),
      });
      void (async () => {
        for await (const _ of textStream);
      })();
    }
  });
  setInterval(() => {}, 1000);
}
