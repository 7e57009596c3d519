/**
 * Crashes as they happen to whoever has one worker, under a supervisor that starts it again: a `kill -9` with runs in flight, and a run that takes its
 * worker down each time while 2,000 others are inside a model stream.
 */
import { createGate, startModelServer } from "../test/support/model-server.ts";
import { apiKey, type Running, type Stack, startApi, startWorker, until } from "./stack.ts";

const config = new URL("./crash.config.ts", import.meta.url).pathname;

interface Crashing {
  submit(queries: string[]): Promise<void>;
  /** Starts a worker, as its supervisor does. */
  start(slots: number): Promise<Running>;
  /** Labels of the queries whose model was asked at `since` or later (ms since 1970). */
  asked(since: number): Set<string>;
  hold: ReturnType<typeof createGate>;
  holding: boolean;
}

async function open<T>(stack: Stack, work: (world: Crashing) => Promise<T>): Promise<T> {
  const models = await startModelServer({ record: false });
  const requests: { label: string; at: number }[] = [];
  const { url, process: api } = await startApi(stack, "redis");
  const world: Crashing = {
    hold: createGate(),
    holding: true,
    async submit(queries) {
      const answer = await fetch(`${url}/query/batch`, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${apiKey}` },
        body: JSON.stringify({ queries }),
      });
      if (answer.status !== 202) throw new Error(`the batch was answered ${answer.status}: ${await answer.text()}`);
    },
    start: (slots) =>
      startWorker(stack, "redis", {
        ...models.env(),
        DROVER_MODEL: "anthropic/claude-sonnet-4-5",
        DROVER_CONFIG: config,
        WORKER_CONCURRENCY: String(slots),
      }),
    asked: (since) => new Set(requests.filter(({ at }) => at >= since).map(({ label }) => label)),
  };
  models.script(({ query, turn }) => {
    requests.push({ label: query, at: Date.now() });
    if (query === "culprit") return { toolCalls: [{ name: "die", input: {} }] };
    if (query.startsWith("steps") && turn === 0) return { toolCalls: [{ name: "step", input: {} }] };
    return world.holding ? { text: "half a reply", gate: world.hold } : "done";
  });
  try {
    return await work(world);
  } finally {
    world.holding = false;
    world.hold.open();
    await api.stop();
    await models.close();
  }
}

const finished = (stack: Stack, where = "true") =>
  stack.pool
    .query<{ left: number }>(`SELECT count(*) FILTER (WHERE finished_at IS NULL) AS left FROM runs WHERE ${where}`)
    .then(({ rows }) => rows[0]!.left === 0);

/** A lone worker with `runs` three-step runs in their last model call is killed, and started again at once: to all done, ms. */
export async function loneWorker(stack: Stack, runs: number): Promise<number> {
  return await open(stack, async (world) => {
    const worker = await world.start(runs);
    await world.submit(Array.from({ length: runs }, (_, n) => `steps-${n}`));
    await world.hold.arrived(runs);
    const at = performance.now();
    await worker.stop("SIGKILL");
    world.holding = false;
    const next = await world.start(runs);
    await until(() => finished(stack), 10);
    const tookMs = performance.now() - at;
    await next.stop();
    return tookMs;
  });
}

/** From the third death of a worker that holds `innocents` and their culprit to where all innocents are inside a model stream again, and to the culprit's end, ms. */
export async function poison(stack: Stack, innocents: number): Promise<{ movingMs: number; endedMs: number }> {
  return await open(stack, async (world) => {
    const labels = Array.from({ length: innocents }, (_, n) => `calm-${n}`);
    let worker = await world.start(innocents + 10);
    await world.submit(labels);
    await world.hold.arrived(innocents);
    await world.submit(["culprit"]);
    let diedAt = 0;
    for (let death = 1; death <= 3; death++) {
      await worker.ended;
      diedAt = Date.now();
      console.log(`death ${death}`);
      worker = await world.start(innocents + 10);
    }
    const ended = until(() => finished(stack, "stop_reason = 'crash_loop' OR crashes >= 2"), 50).then(
      () => Date.now() - diedAt,
    );
    await until(async () => labels.every((label) => world.asked(diedAt).has(label)), 100);
    const movingMs = Date.now() - diedAt;
    const endedMs = await ended;
    const { rows } = await stack.pool.query("SELECT count(*) AS n FROM runs WHERE stop_reason = 'crash_loop'");
    if (rows[0].n !== 1) throw new Error(`${rows[0].n} runs ended as crash loops`);
    world.holding = false;
    world.hold.open();
    await until(() => finished(stack), 100);
    await worker.stop();
    return { movingMs, endedMs };
  });
}
