/** What an operator reads at three in the morning: one line for each request, and for each start and end of a run, with ids as clients know them. */
import { createLogger } from "@drover/telemetry";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Carried, startCarried } from "./carried.ts";

// biome-ignore lint/suspicious/noExplicitAny: as they are written.
type Line = any;
const lines: Line[] = [];
let world: Carried;
beforeAll(async () => {
  const to = { write: (line: string) => void lines.push(JSON.parse(line)) };
  world = await startCarried({ deps: { logger: createLogger({ name: "test", to }) } });
});
afterAll(() => world.close());

const about = (taskId: string, msg: string) =>
  expect.poll(() => lines.filter((line) => line.task_id === taskId && line.msg === msg));

test("a run: a line at its start, one at its end with all totals", async () => {
  world.models.script(() => ({ text: "an answer", usage: { input: 20, output: 30 } }));
  const id = await world.submit();
  await world.end(id);
  await about(id, "run started").toMatchObject([
    { level: 30, tenant: "default", agent: "default", epoch: 1, attempt: 1 },
  ]);
  await about(id, "run completed").toMatchObject([
    {
      level: 30,
      status: "completed",
      tenant: "default",
      agent: "default",
      attempt: 1,
      iterations: 1,
      steps: 1,
      input_tokens: 20,
      output_tokens: 30,
      cached_tokens: 0,
      cost_usd: expect.any(Number),
      duration_ms: expect.any(Number),
      active_ms: expect.any(Number),
    },
  ]);
});

test("a run that fails is a warning, and says why", async () => {
  world.models.script(() => ({ status: 401, text: "no" }));
  const id = await world.submit();
  await world.end(id);
  await about(id, "run failed").toMatchObject([{ level: 40, status: "failed", stop_reason: "auth_failed" }]);
});

test("each request is one line, with what it made or was about; probes are none", async () => {
  world.models.script(() => ({ text: "an answer" }));
  const { body, headers } = await world.post("/query", { query: "hello" });
  const of = (requestId: string | null) => expect.poll(() => lines.filter((line) => line.request_id === requestId));
  await of(headers.get("x-request-id")).toMatchObject([
    {
      msg: "request",
      method: "POST",
      route: "/query",
      status: 202,
      tenant: "default",
      key_id: expect.stringMatching(/^key_/),
      task_id: body.task_id,
    },
  ]);
  const refused = await world.get("/query/status/run_0", { key: "drv_wrong" });
  await of(refused.headers.get("x-request-id")).toMatchObject([
    { status: 401, route: "/query/status/:id", task_id: "run_0" },
  ]);
  await fetch(`${world.url}/health`);
  await world.get("/budget");
  await expect.poll(() => lines.some((line) => line.route === "/budget")).toBe(true);
  expect(lines.some((line) => line.route === "/health")).toBe(false);
  expect(JSON.stringify(lines)).not.toContain("drv_wrong");
});
