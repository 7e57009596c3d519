/** Packets are lost for seconds while an owner appends: what was sent comes through late, twice or never, and stands in each log once. */
import { setTimeout as pause } from "node:timers/promises";
import { readRun } from "@drover/runs";
import { expect, onTestFinished, test } from "vitest";
import { readLog } from "../../packages/runs/src/log/events.ts";
import { createBench } from "../runs/bench.ts";
import { lossyNetwork } from "../support/lossy-network.ts";
import { spawnNode } from "../support/process.ts";
import { foundTwice } from "../support/twice.ts";

/** The faults themselves, so they are waited for: the outage, and until TCP's next repetition after it (0.2 s, 0.4 s, … 3.2 s apart: RFC 6298). */
const lossMs = 3600;
const repetitionMs = 4000;
const rounds = 5;

test("20 appends leave while everything is lost for 3.6 s, twice: each stands once, whenever its copies come through", async ({
  annotate,
}) => {
  const bench = await createBench();
  onTestFinished(() => bench.close());
  const url = new URL(bench.url);
  const network = await lossyNetwork(Number(url.port));
  onTestFinished(() => network.close());
  await annotate(network.kind);
  url.host = `${network.host}:${network.port}`;

  const worker = await bench.addWorker(3_600_000);
  const ids = await Promise.all(Array.from({ length: 20 }, () => bench.submit()));
  for (const id of ids) await bench.claim(worker, id);
  const appender = spawnNode(new URL("appender-process.ts", import.meta.url), {
    env: { DATABASE_URL: url.href, RUNS: ids.join(",") },
    through: network.through,
  });
  onTestFinished(async () => void (await appender.kill("SIGKILL")));
  await appender.waitForLine("ready");

  for (let round = 1; round <= rounds; round++) {
    const loses = round % 2 === 0;
    if (loses) network.lose(true);
    appender.send("go");
    if (loses) {
      await pause(lossMs);
      network.lose(false);
    }
    await appender.waitForLine(`appended ${round}`);
    if (loses) await pause(repetitionMs);
  }
  expect(await foundTwice(bench.pool)).toEqual([]);
  for (const id of ids) {
    expect(await readRun(bench.pool, "default", id)).toMatchObject({ lastSeq: rounds + 2, steps: rounds });
    const log = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });
    expect(log.flatMap((event) => (event.type === "model.call" ? [event.data.iteration] : []))).toEqual([
      0, 1, 2, 3, 4,
    ]);
  }
}, 120_000);
