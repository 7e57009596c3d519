/** Blobs in Postgres: found by their hash, by their own tenant only. */
import { createHash } from "node:crypto";
import { type Blobs, openPool, type Pool, postgresBlobs, transaction } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { afterAll, beforeAll, expect, it } from "vitest";
import { createDatabase, type TestDatabase } from "../support/database.ts";

let database: TestDatabase;
let pool: Pool;
let blobs: Blobs;
beforeAll(async () => {
  database = await createDatabase();
  pool = openPool({ url: database.url, logger: createLogger({ name: "test", level: "silent" }) });
  blobs = postgresBlobs(pool);
});
afterAll(async () => {
  await pool.end();
  await database.drop();
});

it("does not give a tenant what another one stored, also not to one who knows the hash", async () => {
  const hash = await blobs.put("alice", "the secret of Alice");
  expect(await blobs.get("bob", [hash])).toEqual(new Map());
  expect(await blobs.get("", [hash])).toEqual(new Map());
  expect(await blobs.get("alice", [hash])).toEqual(new Map([[hash, "the secret of Alice"]]));
});

it("keeps the same text of two tenants twice, so that erasing one leaves the other", async () => {
  const [one, two] = [await blobs.put("carol", "same"), await blobs.put("dave", "same")];
  expect(one).toBe(two);
  await pool.query("DELETE FROM blobs WHERE tenant = 'carol'");
  expect(await blobs.get("carol", [one])).toEqual(new Map());
  expect(await blobs.get("dave", [two])).toEqual(new Map([[two, "same"]]));
});

it("stores the same text once, however often and at once it comes", async () => {
  const hashes = await Promise.all(Array.from({ length: 8 }, () => blobs.put("erin", "again")));
  expect(new Set(hashes)).toEqual(new Set([createHash("sha256").update("again").digest("hex")]));
  const { rows } = await pool.query("SELECT count(*) FROM blobs WHERE tenant = 'erin'");
  expect(rows[0].count).toBe(1);
});

it("gives large and foreign text back as it was", async () => {
  const large = "\u65e5\u672c\ud83d\ude00\r\n\t".repeat(500_000);
  const hash = await blobs.put("frank", large);
  expect((await blobs.get("frank", [hash])).get(hash) === large).toBe(true);
});

it("leaves out hashes it does not have", async () => {
  const hash = await blobs.put("grace", "here");
  expect([...(await blobs.get("grace", ["0".repeat(64), hash, hash])).keys()]).toEqual([hash]);
  expect(await blobs.get("grace", [])).toEqual(new Map());
});

it("is part of a transaction when it is given one", async () => {
  let hash = "";
  const body = transaction(pool, async (tx) => {
    hash = await postgresBlobs(tx).put("heidi", "never committed");
    throw new Error("no");
  });
  await expect(body).rejects.toThrow("no");
  expect(await blobs.get("heidi", [hash])).toEqual(new Map());
});
