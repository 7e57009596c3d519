/** Redis fails over behind its name, where old connections stay with the server that is a replica now; and a Cluster loses all its masters at once. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer } from "node:net";
import { expect, onTestFinished, test } from "vitest";
import { createGate } from "../support/model-server.ts";
import { redisCommand, startRedis, type TestRedis } from "../support/redis.ts";
import { startRedisCluster } from "../support/redis-cluster.ts";
import { queueChaos, tell } from "./redis-world.ts";

const world = queueChaos();

/** A name that leads new connections to whatever port it stands for now. */
async function startName(port: number) {
  const name = { port, url: "", close: () => void server.close() };
  const server = createServer((client) => {
    const target = connect(name.port, "127.0.0.1");
    for (const [from, to] of [
      [client, target],
      [target, client],
    ] as const) {
      from.on("error", () => to.destroy());
      from.pipe(to);
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  name.url = `redis://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return name;
}

test("its name leads to the new master, and nobody stays with the old one", async () => {
  const [first, second] = (await Promise.all(
    [1, 2].map(() => startRedis({ args: ["--repl-diskless-sync-delay", "0"] })),
  )) as [TestRedis, TestRedis];
  onTestFinished(() => Promise.all([first.stop(), second.stop()]).then(() => {}));
  await redisCommand(second.url, "REPLICAOF", "127.0.0.1", first.port);
  const synced = async () => String(await redisCommand(second.url, "INFO", "replication"));
  await expect.poll(synced, { timeout: 20_000 }).toContain("master_link_status:up");
  const name = await startName(first.port);
  onTestFinished(() => name.close());
  const at = { REDIS_URL: name.url, DROVER_QUEUE_PREFIX: "{drover}" };
  const gate = createGate();
  world.threeSteps(gate);
  const [api, ...workers] = await Promise.all([world.api(at), world.worker(at), world.worker(at)]);
  const queue = await world.open(at);
  const ids = await world.submit(queue, 150);
  await gate.arrived(80);

  await redisCommand(second.url, "REPLICAOF", "NO", "ONE");
  name.port = second.port;
  await redisCommand(first.url, "REPLICAOF", "127.0.0.1", second.port);
  const since = performance.now();
  gate.open();
  ids.push(...(await api.submit(50)));
  const runs = await world.ended(ids);
  tell("fail-over behind a name: all ended", since);
  expect(runs.filter((run) => run.epoch !== 1)).toEqual([]);
  expect(world.models.count).toBe(400);
  await world.ringsReach(at, workers);
  tell("fail-over behind a name: wake-ups flow", since);
});

test("a Cluster of which every master is killed, and comes back with nothing", async () => {
  const cluster = await startRedisCluster({ replicas: false });
  onTestFinished(() => cluster.stop());
  const at = { REDIS_URL: cluster.url, DROVER_QUEUE_PREFIX: "{drover}" };
  const gate = createGate();
  world.threeSteps(gate);
  const [api, ...workers] = await Promise.all([world.api(at), world.worker(at), world.worker(at)]);
  const queue = await world.open(at);
  const ids = await world.submit(queue, 150);
  await gate.arrived(80);
  await Promise.all(cluster.masters.map((master) => master.kill("SIGKILL")));
  const since = performance.now();
  gate.open();
  ids.push(...(await api.submit(50)));
  const runs = await world.ended(ids);
  tell("Cluster gone: all ended", since);
  expect(runs.filter((run) => run.epoch !== 1)).toEqual([]);
  expect(world.models.count).toBe(400);
  await Promise.all(cluster.masters.map((master) => master.restart()));
  await cluster.up();
  const back = performance.now();
  await world.ringsReach(at, workers);
  tell("Cluster back: wake-ups flow", back);
});
