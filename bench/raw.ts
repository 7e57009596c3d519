/**
 * The floor: BullMQ alone, nothing durable but the job. `front`: an HTTP server that adds a job and answers 202. `work`: a worker whose jobs
 * have three steps, each checkpointed into the job. `pickup`: adds one job at a time to an idle worker. Runs as a process: MODE, BACKEND.
 */
import { createServer } from "node:http";
import { type BackendFactory, createPostgresBackend, type Job, Queue, Worker } from "bullmq";
import { percentiles } from "./load.ts";

const { MODE, REDIS_URL, DATABASE_URL, PORT, JOBS } = process.env;
const name = "floor";
const connection = REDIS_URL
  ? { host: "127.0.0.1", port: Number(new URL(REDIS_URL).port), maxRetriesPerRequest: null }
  : { connectionString: DATABASE_URL, schema: "bullmq", max: 20 };
const factory = (REDIS_URL ? undefined : createPostgresBackend) as BackendFactory | undefined;
const queue = new Queue(name, { connection: connection as never }, factory as never);
const query = "x".repeat(280);
const options = { removeOnComplete: true };

if (MODE === "front") {
  createServer((request, response) => {
    let body = "";
    request.on("data", (piece) => {
      body += piece;
    });
    request.on("end", async () => {
      const job = await queue.add("run", JSON.parse(body), options);
      response.writeHead(202, { "content-type": "application/json" }).end(JSON.stringify({ id: job.id }));
    });
  }).listen(Number(PORT), "127.0.0.1", () => console.log("ready"));
}

if (MODE === "add") {
  const jobs = Number(JOBS);
  const latencies: number[] = [];
  let sent = 0;
  const startedAt = performance.now();
  await Promise.all(
    Array.from({ length: 32 }, async () => {
      while (sent++ < jobs) {
        const at = performance.now();
        await queue.add("run", { query }, options);
        latencies.push(performance.now() - at);
      }
    }),
  );
  const { p50, p99 } = percentiles(latencies);
  console.log(`add ${(jobs / (performance.now() - startedAt)) * 1000} ${p50} ${p99}`);
}

if (MODE === "work") {
  const jobs = Number(JOBS);
  for (let at = 0; at < jobs; at += 500)
    await queue.addBulk(
      Array.from({ length: Math.min(500, jobs - at) }, () => ({ name: "run", data: { query }, opts: options })),
    );
  let done = 0;
  let startedAt = 0;
  const step = { text: "y".repeat(200), usage: { input: 100, output: 20 } };
  const worker = new Worker(
    name,
    async (job: Job) => {
      startedAt ||= performance.now();
      for (let index = 1; index <= 3; index++) await job.updateProgress({ index, ...step });
    },
    { connection: connection as never, concurrency: 400 },
    factory as never,
  );
  worker.on("completed", () => {
    if (++done === jobs) console.log(`work ${(jobs / (performance.now() - startedAt)) * 1000}`);
  });
}

if (MODE === "pickup") {
  const waits: number[] = [];
  let addedAt = 0;
  let picked = () => {};
  const worker = new Worker(
    name,
    async () => {
      waits.push(performance.now() - addedAt);
      picked();
    },
    { connection: connection as never },
    factory as never,
  );
  await worker.waitUntilReady();
  for (let index = 0; index < Number(JOBS) + 20; index++) {
    const next = new Promise<void>((resolve) => {
      picked = resolve;
    });
    addedAt = performance.now();
    await queue.add("run", { query }, options);
    await next;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  const { p50, p99 } = percentiles(waits.slice(20));
  console.log(`pickup ${p50} ${p99}`);
}
