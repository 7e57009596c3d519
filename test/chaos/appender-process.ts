/** Appends an event to each of `RUNS` (ids; all of epoch 1) at every line of standard input, and says `appended <rounds so far>`. */
import { createInterface } from "node:readline";
import { openPool, postgresBlobs } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { createLogWriter } from "../../packages/runs/src/log/append.ts";

const logger = createLogger({ name: "appender", level: "silent" });
const pool = openPool({ url: process.env.DATABASE_URL!, logger, max: 4, answerTimeoutMs: 2000 });
const append = createLogWriter(pool, postgresBlobs(pool), new AbortController().signal);
const told = new Map(process.env.RUNS!.split(",").map((id) => [id, 0]));
let rounds = 0;
console.log("ready");
for await (const _ of createInterface({ input: process.stdin })) {
  await Promise.all(
    [...told].map(async ([runId, lastSeq]) => {
      const usage = { input: 1, output: 1, cached: 0 };
      const reply = { iteration: rounds, model: "x/y", text: "", tool_calls: [], finish_reason: "stop" };
      const event = { type: "model.call" as const, data: { ...reply, usage, cost_usd: 0.001, duration_ms: 1 } };
      told.set(runId, (await append({ runId, epoch: 1, tenant: "default", lastSeq, event })).seq);
    }),
  );
  console.log(`appended ${++rounds}`);
}
