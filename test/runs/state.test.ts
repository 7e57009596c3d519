import { globSync, readFileSync } from "node:fs";
import { basename } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { canMove, finalStatuses, isFinal, moves, type Status, statuses } from "../../packages/runs/src/moves/state.ts";
import { createBench } from "./bench.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
beforeAll(async () => {
  bench = await createBench();
});
afterAll(() => bench.close());

test("every status has its moves, final ones have none, and nothing moves to where it is", () => {
  expect(Object.keys(moves).sort()).toEqual([...statuses].sort());
  for (const from of statuses) {
    expect(isFinal(from)).toBe((finalStatuses as readonly string[]).includes(from));
    expect(canMove(from, from)).toBe(false);
  }
});

/** Which file of `packages/runs/src/moves/` makes which moves. `wake` moves nothing: it says that a queued run is due. */
const makers: Record<string, readonly string[]> = {
  create: ["nothing -> queued"],
  claim: ["queued -> running"],
  leave: [
    ...["queued", "completed", "partial", "failed", "cancelled"].map((to) => `running -> ${to}`),
    ...["queued", "waiting"].flatMap((from) => ["partial", "failed", "cancelled"].map((to) => `${from} -> ${to}`)),
  ],
  park: ["running -> waiting", "running -> queued", "running -> cancelled", "waiting -> queued"],
  cancel: ["queued -> cancelled", "waiting -> cancelled"],
  rescue: ["running -> queued"],
  wake: [],
};

test("every move of the table has its file, and no other statement changes a status", () => {
  const table = statuses.flatMap((from) => moves[from].map((to) => `${from} -> ${to}`));
  expect([...new Set(Object.values(makers).flat())].sort()).toEqual(["nothing -> queued", ...table].sort());

  const root = new URL("../../", import.meta.url).pathname;
  const files = globSync("{packages,apps}/*/src/**/*.ts", { cwd: root });
  expect(files.length).toBeGreaterThan(200);
  const writes = /INSERT INTO (runs|batches)\b|UPDATE (runs|batches)\b/;
  const changes = /INSERT INTO runs\b|UPDATE (runs|batches)\b[^`]*?\bSET\b(?:(?!\bWHERE\b)[^`])*?(\bstatus\s*=|\$\{)/;
  const inside: string[] = [];
  for (const file of files) {
    const source = readFileSync(root + file, "utf8");
    if (file.startsWith("packages/runs/src/moves/")) {
      if (writes.test(source)) inside.push(basename(file, ".ts"));
    } else expect(changes.test(source), `${file} changes a status`).toBe(false);
  }
  expect(inside.sort()).toEqual([...Object.keys(makers), "batch"].sort());
});

test("from every status that is not final, a final one can be reached", () => {
  for (const from of statuses) {
    const seen = new Set([from]);
    for (const status of seen) for (const next of moves[status]) seen.add(next);
    expect([...seen].some(isFinal)).toBe(true);
  }
});

test("any walk along the table ends in a final status or goes through running or waiting", () => {
  fc.assert(
    fc.property(fc.array(fc.nat(5), { maxLength: 30 }), (choices) => {
      let at: Status = "queued";
      for (const choice of choices) {
        const next: readonly Status[] = moves[at];
        if (next.length === 0) break;
        const to: Status = next[choice % next.length]!;
        expect(canMove(at, to)).toBe(true);
        if (to === "queued") expect(["running", "waiting"]).toContain(at);
        at = to;
      }
    }),
  );
});

test.each([
  ["an unknown status", "status = 'paused'"],
  ["waiting for nothing", "status = 'waiting'"],
  ["waiting for something unknown", "status = 'waiting', waiting_for = 'godot'"],
  ["running without an owner", "status = 'running'"],
  ["queued with an owner", "worker = gen_random_uuid()"],
  ["final without a time", "status = 'completed'"],
  ["open with a time of its end", "finished_at = now()"],
  ["failed without a reason", "status = 'failed', finished_at = now()"],
  ["soft limit at hard limit", "soft_ms = hard_ms"],
  ["a priority beyond 9", "priority = 10"],
])("the database refuses %s", async (_, change) => {
  const id = await bench.submit();
  await expect(bench.pool.query(`UPDATE runs SET ${change} WHERE id = $1`, [id])).rejects.toMatchObject({
    code: "23514",
  });
});
