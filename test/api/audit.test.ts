/** `GET /audit` over HTTP, and the entries that changes of keys leave. */
import { bootstrap, createKey, revokeKey } from "@drover/api";
import { verifyChain } from "@drover/harness";
import { fromWireId, toWireId, uuidv7 } from "@drover/protocol";
import { recordAudit, type Sequencer, startSequencer } from "@drover/runs";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { paths, silent, startWorld, type World } from "./world.ts";

let world: World;
let sequencer: Sequencer;
beforeAll(async () => {
  world = await startWorld();
  sequencer = startSequencer({ pool: world.pool, directUrl: world.databaseUrl, logger: silent });
});
afterAll(async () => {
  await sequencer.close();
  await world.close();
});

const record = (tenant: string, action: string, runId: string | null = null, actor = "worker") =>
  recordAudit(world.pool, [{ tenant, actor, action, data: { action }, runId }]);
const chained = () =>
  vi.waitFor(async () => expect((await world.pool.query("SELECT FROM audit_unchained")).rowCount).toBe(0), {
    timeout: 20_000,
    interval: 20,
  });
/** Actions and keys of the tenant's entries that are about keys. */
async function keyEntries(tenant: string): Promise<[string, string, Record<string, unknown>][]> {
  const { rows } = await world.pool.query(
    "SELECT actor, action, data FROM audit_entries WHERE tenant = $1 AND action LIKE 'key.%' ORDER BY at, ctid",
    [tenant],
  );
  return rows.map(({ actor, action, data }) => [actor, action, data]);
}

test("the trail comes in pages, oldest first, of the caller's tenant only, and verifies as it came", async () => {
  const key = await world.keyOf("operator", "pages");
  for (let index = 0; index < 5; index++) await record("pages", `a${index}`);
  await record("others", "b");
  await chained();
  const entries = [];
  let cursor: string | null = null;
  do {
    const { status, body } = await world.get(`/audit?limit=2${cursor ? `&cursor=${cursor}` : ""}`, { key });
    expect(status).toBe(200);
    expect(body.data.length).toBeLessThanOrEqual(2);
    entries.push(...body.data);
    cursor = body.next_cursor;
  } while (cursor);
  expect(entries.map(({ seq }) => seq)).toEqual([1, 2, 3, 4, 5, 6]);
  expect(entries.map(({ action }) => action)).toEqual(expect.arrayContaining(["key.created", "a0", "a4"]));
  expect(await verifyChain(entries)).toMatchObject([{ tenant: "pages", entries: 6, bad: null }]);
  const { body: rest } = await world.get("/audit?after=4", { key });
  expect(rest.data).toEqual(entries.slice(4));
});

test("it is filtered by query, action and actor; what is no id matches nothing", async () => {
  const run = uuidv7();
  await record("filters", "tool.called", run);
  await record("filters", "tool.called", uuidv7());
  await record("filters", "query.cancelled", run, "key_me");
  await chained();
  const key = await world.keyOf("admin", "filters");
  const found = async (query: string) => (await world.get(`/audit?${query}`, { key })).body.data.length;
  expect(await found(`run=${toWireId("run", run)}`)).toBe(2);
  expect(await found(`run=${toWireId("run", run)}&action=tool.called`)).toBe(1);
  expect(await found("action=tool.called")).toBe(2);
  expect(await found("actor=key_me")).toBe(1);
  expect(await found(`run=${toWireId("run", uuidv7())}`)).toBe(0);
  expect(await found("run=nonsense")).toBe(0);
  const stranger = await world.keyOf("admin", "stranger");
  expect((await world.get(`/audit?run=${toWireId("run", run)}`, { key: stranger })).body.data).toEqual([]);
});

test("wrong parameters are named", async () => {
  for (const [query, path] of [
    ["after=-1", "after"],
    ["limit=0", "limit"],
    ["cursor=zzz", "cursor"],
    ["from=x", "from"],
    ["cursor=x&after=1", "after"],
  ]) {
    const { status, body } = await world.get(`/audit?${query}`);
    expect(status, query).toBe(400);
    expect(paths(body), query).toEqual([path]);
  }
});

test("making and revoking a key is written down once, with who did it, and never the key", async () => {
  const made = await createKey(world.pool, { tenant: "keys", role: "operator", name: "laptop" });
  const other = await createKey(world.pool, { tenant: "keys", role: "admin", actor: made.id });
  expect(await revokeKey(world.pool, other.id, made.id)).toBe(true);
  expect(await revokeKey(world.pool, other.id)).toBe(true);
  expect(await keyEntries("keys")).toEqual([
    ["cli", "key.created", { key: made.id, role: "operator", name: "laptop" }],
    [made.id, "key.created", { key: other.id, role: "admin", name: "" }],
    [made.id, "key.revoked", { key: other.id }],
  ]);
  const { rows } = await world.pool.query("SELECT e::text AS text FROM audit_entries e");
  for (const { text } of rows) expect(text).not.toContain(made.key.slice(4));
});

test("the configured key is written down when it changes, not at every start", async () => {
  const before = (await keyEntries("default")).length;
  const start = (key: string) => bootstrap(world.pool, { DROVER_BOOTSTRAP_KEY: key });
  await start("configured-0123456789");
  await Promise.all([start("configured-0123456789"), start("configured-0123456789")]);
  const changed = (await keyEntries("default")).slice(before);
  expect(changed.map(([actor, action]) => [actor, action])).toEqual([
    ["system", "key.configured"],
    ["system", "key.revoked"],
  ]);
  await start(world.adminKey);
  const back = (await keyEntries("default")).slice(before + 2);
  expect(back.map(([, action, { key }]) => [action, key])).toEqual([
    ["key.configured", changed[1]![2].key],
    ["key.revoked", changed[0]![2].key],
  ]);
  expect(fromWireId("key", back[0]![2].key as string)).not.toBeNull();
});
