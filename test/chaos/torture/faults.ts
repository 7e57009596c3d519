/** Breaks what the plan says, and mends it again: every fault is undone when its time is up, or at once when the run is stopped. */
import { setTimeout as delay } from "node:timers/promises";
import { redisCommand } from "../../support/redis.ts";
import type { Fault, ProcessFault, SharedFault } from "./plan.ts";
import type { Actor, Stage } from "./stage.ts";

export interface Broken extends Fault {
  /** ms since 1970. */
  from: number;
  to: number;
}

/** Resolves when everything planned has happened and is mended. What took place is pushed to `broken`. */
export async function breakThings(stage: Stage, faults: Fault[], broken: Broken[], signal: AbortSignal): Promise<void> {
  const startedAt = performance.now();
  const oneAtATime = new Map<string, Promise<void>>();
  await Promise.all(
    faults.map(async (fault) => {
      await delay(Math.max(0, fault.atMs - (performance.now() - startedAt)), undefined, { signal }).catch(() => {});
      if (signal.aborted) return;
      // On a slow machine the last fault of the same thing may not be mended yet.
      const what = fault.target ?? fault.kind.split(" ").at(-1)!;
      const mine = Promise.withResolvers<void>();
      const last = oneAtATime.get(what);
      oneAtATime.set(what, mine.promise);
      await last;
      const entry: Broken = { ...fault, from: Date.now(), to: Number.POSITIVE_INFINITY };
      broken.push(entry);
      const over = delay(fault.durationMs, undefined, { signal }).catch(() => {});
      if (fault.target === null) await shared[fault.kind as SharedFault](stage, over, signal);
      else await ofProcess[fault.kind as ProcessFault](stage.actors.get(fault.target)!, over);
      entry.to = Date.now();
      mine.resolve();
    }),
  );
}

type Over = Promise<unknown>;

const ofProcess: Record<ProcessFault, (actor: Actor, over: Over) => Promise<void>> = {
  kill: ({ process }) => process.kill("SIGKILL"),
  terminate: ({ process }) => process.kill("SIGTERM"),
  stop: ({ process }, over) => process.stop(over),
  "cut postgres": async ({ postgres }) => postgres.cut(),
  "blackhole postgres": ({ postgres }, over) => during((on) => postgres.blackhole(on), over),
  "refuse postgres": ({ postgres }, over) => during((on) => postgres.refuse(on), over),
  "cut redis": async ({ redis }) => redis?.cut(),
  "blackhole redis": ({ redis }, over) => during((on) => redis?.blackhole(on), over),
  "refuse redis": ({ redis }, over) => during((on) => redis?.refuse(on), over),
  "cut off": ({ postgres, redis }, over) =>
    during((on) => {
      postgres.blackhole(on);
      redis?.blackhole(on);
    }, over),
};

const shared: Record<SharedFault, (stage: Stage, over: Over, signal: AbortSignal) => Promise<void>> = {
  async "rolling restart"({ actors }, _over, signal) {
    for (const { process } of actors.values()) {
      if (signal.aborted || !process.name.startsWith("worker")) continue;
      await process.kill("SIGTERM");
      await process.ready(signal);
    }
  },
  // It may be down or on its way up.
  flushall: async ({ redis }) => void (await redisCommand(redis!.url, "FLUSHALL").catch(() => {})),
  "restart redis": async ({ redis }) => await redis!.restart(),
  async "kill redis"({ redis }, over) {
    await redis!.kill("SIGKILL");
    await over;
    await redis!.restart();
  },
  "restart postgres": async ({ postgres }) => await postgres.restart(),
  async "crash postgres"({ postgres }, over) {
    await postgres.kill("SIGKILL");
    await over;
    await postgres.restart();
  },
  async "stop postgres"({ postgres }, over) {
    // Its children go on as long as they need nothing of it; new connections are not answered.
    await postgres.kill("SIGSTOP");
    await over;
    await postgres.kill("SIGCONT");
  },
  // It may be down or on its way up.
  "terminate backends": async ({ pool }) =>
    void (await pool
      .query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.7",
      )
      .catch(() => {})),
};

async function during(set: (on: boolean) => void, over: Over): Promise<void> {
  set(true);
  await over;
  set(false);
}
