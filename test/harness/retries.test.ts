/** Failures of the model that pass, and those that do not: what is tried again in place, what costs an attempt, what ends the run. */
import type { LogEvent, RunOptions } from "@drover/harness";
import { backoffMs } from "@drover/harness/worker";
import fc from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type ModelServer, type ScriptEntry, startModelServer } from "../support/model-server.ts";
import { eventsOf, harnessOn, openLog, overloaded, tool, types } from "./scripted.ts";

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());
afterEach(() => server.reset());

const note = tool("note", () => "noted");
const again = { toolCalls: [{ name: "note" }] };

async function run(script: ScriptEntry[], options: RunOptions = {}, retry = {}) {
  server.script(script);
  const log = openLog();
  const harness = harnessOn(server, {
    tools: [note],
    retry: { maxAttempts: 3, backoffMs: 2, maxBackoffMs: 4, ...retry },
  });
  const result = await harness.run("Do it.", { log, ...options });
  return { result, events: log.events, count: server.count };
}

const attempts = (events: LogEvent[]) => eventsOf(events, "run.retrying").map(({ attempt }) => attempt);

describe("in place", () => {
  it("a 429 with a small Retry-After is waited for, and costs no attempt", async () => {
    const { result, events, count } = await run([{ status: 429, headers: { "retry-after": "0.05" } }, "Done."]);
    expect(result).toMatchObject({ status: "success", output: "Done.", iterations: 1 });
    expect(count).toBe(2);
    expect(types(events)).toEqual(["run.queued", "run.started", "model.failed", "model.call", "run.completed"]);
    expect(eventsOf(events, "model.failed")).toMatchObject([
      { iteration: 1, code: "model_error", message: expect.stringMatching(/answered 429/), retry_in_ms: 50 },
    ]);
  });

  it("two 500s are tried again, with growing pauses", async () => {
    const { result, events, count } = await run([{ status: 500 }, { status: 503 }, "Done."]);
    expect(result).toMatchObject({ status: "success", output: "Done." });
    expect(count).toBe(3);
    expect(attempts(events)).toEqual([]);
    const [first, second] = eventsOf(events, "model.failed").map(({ retry_in_ms }) => retry_in_ms!);
    expect(first).toBeGreaterThanOrEqual(200);
    expect(first).toBeLessThanOrEqual(400);
    expect(second).toBeGreaterThanOrEqual(400);
    expect(second).toBeLessThanOrEqual(800);
  });

  it.each<[string, ScriptEntry]>([
    ["a stream cut in the middle", { text: ["Half ", "an ", "answer"], cutAfter: 2 }],
    ["a stream that ends without its end", { text: ["Half ", "an ", "answer"], endAfter: 2 }],
    [
      "a stream that says it is overloaded",
      { text: ["Half ", "an "], errorAfter: { chunks: 1, type: "overloaded_error", message: "Overloaded" } },
    ],
    ["a reset connection", { connection: "reset" }],
  ])("%s is tried again from its beginning", async (_what, broken) => {
    let streamed = "";
    const { result, events, count } = await run([again, broken, "The whole answer."], {
      onText: (delta) => {
        streamed += delta;
      },
    });
    expect(result).toMatchObject({
      status: "success",
      output: "The whole answer.",
      iterations: 2,
      tools_called: ["note"],
    });
    expect(streamed).toMatch(/The whole answer\.$/);
    expect(count).toBe(3);
    expect(server.calls[2]!.rawBody).toBe(server.calls[1]!.rawBody);
    expect(attempts(events)).toEqual([]);
    expect(eventsOf(events, "model.failed")).toMatchObject([{ iteration: 2, code: "model_error" }]);
  });

  it("is done twice at most for one call, and anew for the next", async () => {
    const bad = [overloaded, overloaded];
    const { result, events, count } = await run([...bad, again, ...bad, "Done."]);
    expect(result.status).toBe("success");
    expect(count).toBe(6);
    expect(attempts(events)).toEqual([]);
  });
});

describe("by giving back", () => {
  it("a third failure costs an attempt: the log says which and when", async () => {
    const { result, events, count } = await run([overloaded, overloaded, overloaded, "Done."]);
    expect(result).toMatchObject({ status: "success", output: "Done." });
    expect(count).toBe(4);
    expect(eventsOf(events, "model.failed").map(({ retry_in_ms }) => retry_in_ms)).toEqual([1, 1, null]);
    const [retrying] = eventsOf(events, "run.retrying");
    expect(retrying).toMatchObject({
      attempt: 2,
      error: { code: "model_error", message: expect.stringMatching(/529/) },
    });
    expect(retrying!.delay_ms).toBeGreaterThanOrEqual(1);
    expect(retrying!.delay_ms).toBeLessThanOrEqual(2);
  });

  it("a long Retry-After is kept, and not waited for in place", async () => {
    const stop = new AbortController();
    const { events, count } = await run([{ status: 429, headers: { "retry-after": "6" } }, "Done."], {
      signal: stop.signal,
      onEvent: (event) => event.type === "run.retrying" && stop.abort(),
    });
    expect(count).toBe(1);
    expect(eventsOf(events, "model.failed")).toMatchObject([{ retry_in_ms: null }]);
    expect(eventsOf(events, "run.retrying")).toMatchObject([{ attempt: 2, delay_ms: 6000 }]);
  });

  it("attempts start again once a step has finished", async () => {
    const fails = [overloaded, overloaded, overloaded];
    const { result, events } = await run([...fails, again, ...fails, again, ...fails, "Done."], {}, { maxAttempts: 2 });
    expect(result).toMatchObject({ status: "success", output: "Done." });
    expect(attempts(events)).toEqual([2, 2, 2]);
  });

  it("ends when the attempts are used up; what is finished stays", async () => {
    const fails = Array.from({ length: 9 }, () => overloaded);
    const { result, events, count } = await run([again, ...fails]);
    expect(result).toMatchObject({ status: "partial", stop_reason: "model_error", tools_called: ["note"] });
    expect(count).toBe(10);
    expect(attempts(events)).toEqual([2, 3]);
  });

  it("keeps what a broken stream had said when no other comes", async () => {
    const cut = { text: ["As far ", "as I ", "came"], cutAfter: 2 };
    const { result, events } = await run([cut, cut, cut], {}, { maxAttempts: 1 });
    expect(result).toMatchObject({ status: "partial", output: "As far as I ", stop_reason: "model_error" });
    expect(eventsOf(events, "model.partial")).toEqual([{ iteration: 1, text: "As far as I ", cut: true }]);
  });

  it("drops what a broken stream had said when another call succeeds", async () => {
    const cut = { text: ["As far ", "as I ", "came"], cutAfter: 2 };
    const { result } = await run([cut, cut, cut, "No, rather this."]);
    expect(result).toMatchObject({ status: "success", output: "No, rather this." });
  });
});

describe("not at all", () => {
  it.each([[400], [401], [402], [403], [404], [413], [422]])("%i ends the run at once", async (status) => {
    const { result, events, count } = await run([{ status }, "never"]);
    expect(result.status).toBe("error");
    expect(count).toBe(1);
    expect(eventsOf(events, "model.failed")).toMatchObject([{ retry_in_ms: null }]);
    expect(attempts(events)).toEqual([]);
  });
});

describe("backoffMs", () => {
  const settings = fc.record({
    max_attempts: fc.integer({ min: 1, max: 10 }),
    backoff_ms: fc.integer({ min: 1, max: 600_000 }),
    max_backoff_ms: fc.integer({ min: 1, max: 3_600_000 }),
  });
  const attempt = fc.integer({ min: 1, max: 2000 });
  const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });

  it("lies between half of the ceiling and the ceiling, and is a whole number", () => {
    fc.assert(
      fc.property(settings, attempt, random, (retry, n, r) => {
        const ceiling = Math.min(retry.max_backoff_ms, retry.backoff_ms * 2 ** (n - 1));
        const ms = backoffMs(retry, n, undefined, () => r);
        expect(ms).toBeGreaterThanOrEqual(Math.floor(ceiling / 2));
        expect(ms).toBeLessThanOrEqual(Math.round(ceiling));
        expect(Number.isSafeInteger(ms)).toBe(true);
      }),
    );
  });

  it("never shrinks with the attempts, chance left aside", () => {
    fc.assert(
      fc.property(settings, attempt, random, (retry, n, r) => {
        expect(backoffMs(retry, n + 1, undefined, () => r)).toBeGreaterThanOrEqual(
          backoffMs(retry, n, undefined, () => r),
        );
      }),
    );
  });

  it("spreads: two draws of chance give two pauses", () => {
    const retry = { max_attempts: 3, backoff_ms: 1000, max_backoff_ms: 60_000 };
    expect(new Set(Array.from({ length: 50 }, () => backoffMs(retry, 3, undefined))).size).toBeGreaterThan(10);
    expect([0, 0.5, 0.999999].map((r) => backoffMs(retry, 1, undefined, () => r))).toEqual([500, 750, 1000]);
  });

  it("is never shorter than the provider's wish, up to an hour, and never longer than both", () => {
    fc.assert(
      fc.property(settings, attempt, random, fc.double({ min: 0, max: 1e12, noNaN: true }), (retry, n, r, wish) => {
        const ms = backoffMs(retry, n, wish, () => r);
        const own = backoffMs(retry, n, undefined, () => r);
        expect(ms).toBe(Math.max(own, Math.round(Math.min(wish, 3_600_000))));
      }),
    );
  });
});
