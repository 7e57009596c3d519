/** What hostile, sloppy and unlucky clients meet at the edge of the API: the right answer of each kind, by its smallest input. */
import { randomBytes } from "node:crypto";
import { openPool } from "@drover/storage";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { claimNext } from "../../packages/runs/src/moves/claim.ts";
import { paths, silent, startWorld, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld({ env: { DROVER_EGRESS_ALLOW: "127.0.0.0/8" } });
});
afterAll(() => world.close());
const raw = (path: string, body: string | Buffer) =>
  world.call("POST", path, { raw: body, headers: { "content-type": "application/json" } });

describe("a NUL", () => {
  test.each([
    ["POST", "/query", { query: "a", callback_url: "http://127.0.0.1/\0" }, "callback_url"],
    ["POST", "/query", { query: "a", model: "openai/a\0" }, "model"],
    ["POST", "/query", { query: "a", user_id: "\0" }, "user_id"],
    ["POST", "/query", { query: "a", agent: "\0" }, "agent"],
    [
      "POST",
      "/query/batch",
      { queries: [{ query: "a", callback_url: "http://127.0.0.1/\0" }] },
      "queries[0].callback_url",
    ],
    ["POST", "/query/batch", { queries: ["a"], callback_url: "http://127.0.0.1/\0" }, "callback_url"],
    ["POST", "/webhooks", { url: "http://127.0.0.1/\0" }, "url"],
    ["POST", "/webhooks", { url: "http://127.0.0.1/\ud800" }, "url"],
  ])("in %s %s %j is named", async (method, path, body, field) => {
    const { status, body: problem } = await world.call(method, path, { body });
    expect([status, paths(problem)]).toEqual([400, [field]]);
  });

  test.each([
    "/audit?action=%00",
    "/audit?actor=a%00",
    "/query?agent=%00",
    "/query?user_id=%00",
    "/query?metadata.a=%00",
    "/events?after=%00",
    "/query?cursor=%00",
  ])("in %s is refused", async (path) => {
    expect((await world.get(path)).status).toBe(400);
  });

  test.each([
    "/query/%00/events",
    "/query/status/%00",
    "/execution/%00",
    "/webhooks/%00",
    "/approvals/%00",
    "/query/batch/%00",
  ])("in the path %s is nothing that exists", async (path) => {
    expect((await world.get(path)).status).toBe(404);
  });

  test("in what an agent is given is kept as well as can be", async () => {
    expect((await world.post("/query", { query: "a\0b", context: { "k\0": "\ud800" } })).status).toBe(202);
  });
});

describe("a body", () => {
  test("that is not UTF-8 is refused, not altered", async () => {
    const bytes = Buffer.concat([Buffer.from('{"query":"a'), Buffer.from([0xff, 0xc3]), Buffer.from('"}')]);
    for (const path of ["/query", "/query/async", "/agent/query", "/webhooks"]) {
      const { status, body } = await raw(path, bytes);
      expect([status, body.errors]).toEqual([400, [{ path: "", message: "is not valid UTF-8" }]]);
    }
  });

  test("with numbers that would change is refused by their paths; those that do not are kept", async () => {
    const { status, body } = await raw(
      "/query",
      '{"query":"a","context":{"id":9007199254740993,"list":[1,{"n":-12345678901234567890}],"huge":1e999,"ok":9007199254740991,"s":"12345678901234567890"}}',
    );
    expect(status).toBe(400);
    expect(paths(body).sort()).toEqual(["context.huge", "context.id", "context.list[1].n"]);
    expect(
      (await raw("/query", '{"query":"12345678901234567890","context":{"f":0.12345678901234567890}}')).status,
    ).toBe(202);
    const batch = await raw("/query/batch", '{"queries":["a",{"query":"b","context":{"id":90071992547409931}}]}');
    expect(paths(batch.body)).toEqual(["queries[1].context.id"]);
  });

  test("of a blank query is refused, alone and in a batch", async () => {
    for (const query of [" ", "\n\t ", "\u00a0"]) {
      expect(paths((await world.post("/query", { query })).body)).toEqual(["query"]);
      expect(paths((await world.post("/query/batch", { queries: ["a", query] })).body)).toEqual(["queries[1]"]);
    }
  });
});

test.each([
  "https:///x",
  "http://a.example:0/",
  " https://a.example/",
  "https://a.example/ ",
  "https://a.example/a b",
  "https://a.example/\n",
  "http://unix:/run/x.sock",
  "http:a.example",
  "https:\\\\a.example",
  "ftp://a.example/",
])("%j is no callback and no endpoint", async (url) => {
  expect(paths((await world.post("/query", { query: "a", callback_url: url })).body)).toEqual(["callback_url"]);
  expect((await world.post("/webhooks", { url })).status).toBe(400);
});

describe("an Idempotency-Key", () => {
  const keyed = () => ({ headers: { "idempotency-key": randomBytes(8).toString("hex") } });

  test("gives what was accepted, also when it would not be accepted any more", async () => {
    const deadline = new Date(Date.now() + 1500).toISOString();
    const single = keyed();
    const body = { query: "a", limits: { deadline } };
    const first = await world.post("/query", body, single);
    const many = keyed();
    const batch = { queries: [body, "b"] };
    const firstBatch = await world.post("/query/batch", batch, many);
    expect([first.status, firstBatch.status]).toEqual([202, 202]);
    await expect.poll(() => Date.now() > Date.parse(deadline), { timeout: 5000 }).toBe(true);
    const again = await world.post("/query", body, single);
    expect([again.status, again.body.task_id, again.headers.get("idempotent-replayed")]).toEqual([
      202,
      first.body.task_id,
      "true",
    ]);
    const againBatch = await world.post("/query/batch", batch, many);
    expect([againBatch.status, againBatch.body.batch_id, againBatch.body.total]).toEqual([
      202,
      firstBatch.body.batch_id,
      2,
    ]);
    // Another body under the same key, and a new key: judged.
    expect((await world.post("/query", { ...body, query: "c" }, single)).body.code).toBe("idempotency_mismatch");
    expect((await world.post("/query", body, keyed())).status).toBe(400);
  });
});

test("a batch's callback hears of the batch alone, unless it asks for the items; an item's own gets its own", async () => {
  const callback_url = "http://127.0.0.1:9/batch";
  const urls = async (body: object) => {
    const { batch_id } = (await world.post("/query/batch", body)).body;
    const { rows } = await world.pool.query(
      "SELECT callback_url, callback_events FROM runs WHERE batch_id = right($1, 32)::uuid ORDER BY batch_index",
      [batch_id],
    );
    return rows.map((row) => row.callback_url && [row.callback_url, row.callback_events]);
  };
  const own = { query: "b", callback_url: "http://127.0.0.1:9/own" };
  expect(await urls({ queries: ["a", own], callback_url })).toEqual([null, [own.callback_url, null]]);
  expect(await urls({ queries: ["a"], callback_url, events: ["batch.completed"] })).toEqual([null]);
  expect(await urls({ queries: ["a"], callback_url, events: ["batch.completed", "query.failed"] })).toEqual([
    [callback_url, ["query.failed"]],
  ]);
});

test("caps of sessions are refused by name until there are any", async () => {
  const { status, body } = await world.call("PUT", "/budget", { body: { session_usd: 1 } });
  expect([status, body.errors[0].path]).toEqual([400, "session_usd"]);
  expect(body.errors[0].message).toContain("not available yet");
});

describe("every route", () => {
  const gets = [
    "/query",
    "/events",
    "/audit",
    "/webhooks",
    "/approvals",
    "/budget",
    "/health",
    "/ready",
    "/openapi.json",
    "/metrics",
    "/",
  ];
  test.each(gets)("HEAD %s answers as GET does, without a body", async (path) => {
    const get = await fetch(world.url + path, { headers: { authorization: `Bearer ${world.adminKey}` } });
    const head = await fetch(world.url + path, {
      method: "HEAD",
      headers: { authorization: `Bearer ${world.adminKey}` },
    });
    expect([head.status, head.headers.get("content-type")]).toEqual([get.status, get.headers.get("content-type")]);
    expect(await head.text()).toBe("");
  });

  test.each([
    ["POST", "/query", { query: "a" }],
    ["POST", "/query/batch", { queries: ["a"] }],
    ["POST", "/agent/query", { query: "a" }],
    ["POST", "/webhooks", { url: "https://example.com/" }],
    ["PUT", "/budget", { day_usd: 1 }],
    ["GET", "/budget", undefined],
    ["GET", "/webhooks/secret", undefined],
    ["POST", "/webhooks/secret/rotate", {}],
  ])("%s %s refuses a parameter that it does not know", async (method, path, body) => {
    const response = await fetch(`${world.url}${path}?nope=1`, {
      method,
      headers: {
        authorization: `Bearer ${world.adminKey}`,
        ...(method !== "GET" && { "content-type": "application/json" }),
      },
      ...(method !== "GET" && { body: JSON.stringify(body) }),
    });
    const problem = await response.json();
    expect([response.status, JSON.stringify(problem)]).toEqual([400, expect.stringContaining("nope")]);
  });

  test("names what is not there", async () => {
    const id = `run_${"0".repeat(32)}`;
    for (const path of [`/query/status/${id}`, `/query/${id}/events`, `/execution/${id}`])
      expect((await world.get(path)).body.detail).toBe(`There is no such query: ${id}`);
    expect((await world.get("/query/batch/nope")).body.detail).toContain("nope");
  });

  test("has no field in a request that a generated client would ask for although it has a default", () => {
    const found: string[] = [];
    const look = (schema: unknown, at: string) => {
      if (typeof schema !== "object" || schema === null) return;
      for (const [key, value] of Object.entries(schema)) {
        if (key === "default" && !at.endsWith("properties")) found.push(at);
        look(value, `${at}/${key}`);
      }
    };
    const { paths: routes, components } = world.document as unknown as {
      paths: Record<string, Record<string, { requestBody?: unknown }>>;
      components: { schemas: Record<string, unknown> };
    };
    for (const [path, methods] of Object.entries(routes))
      for (const [method, { requestBody }] of Object.entries(methods)) look(requestBody, `${method} ${path}`);
    for (const name of ["Submit", "SubmitBatch", "SubmitWithCallback", "Retry"]) look(components.schemas[name], name);
    expect(found).toEqual([]);
  });
});

describe("pages", () => {
  test.each(["/", "/docs", "/admin/queues"])("%s comes from here alone, and is framed by nobody", async (path) => {
    const response = await fetch(world.url + path, { headers: { authorization: `Bearer ${world.adminKey}` } });
    const text = await response.text();
    expect(response.status).toBe(200);
    expect(text).not.toMatch(/(src|href)="(https?:)?\/\//);
    const policy = response.headers.get("content-security-policy") ?? "";
    expect(policy).toContain("default-src 'self'");
    expect(policy).not.toMatch(/script-src[^;]*unsafe-inline/);
    expect(response.headers.get("x-content-type-options")).toBe("nosniff");
    expect(response.headers.get("x-frame-options")).toBe("DENY");
  });
});

test("a role with another date style, time zone and string escapes changes nothing", async () => {
  const { pool, databaseUrl } = world;
  const { username } = new URL(databaseUrl);
  const name = new URL(databaseUrl).pathname.slice(1);
  for (const setting of ["DateStyle = 'SQL, DMY'", "TimeZone = 'Asia/Kolkata'", "standard_conforming_strings = off"])
    await pool.query(`ALTER ROLE "${username}" IN DATABASE "${name}" SET ${setting}`);
  const fresh = openPool({ url: databaseUrl, logger: silent });
  try {
    const { rows } = await fresh.query(
      "SELECT current_setting('DateStyle') AS style, timestamptz '2026-11-27 12:00:00.123Z' AS at, 'a\\b' AS text",
    );
    expect(rows).toEqual([{ style: "ISO, MDY", at: new Date("2026-11-27T12:00:00.123Z"), text: "a\\b" }]);
    const id = await world.submit();
    const worker = (
      await pool.query(
        "INSERT INTO workers (id, host, pid, slots, lease_ms) VALUES (gen_random_uuid(), 'x', 1, 1, 60000) RETURNING id",
      )
    ).rows[0].id;
    expect(
      (await claimNext(fresh, worker, { most: 100 })).runs.map((run) => `run_${run.id.replaceAll("-", "")}`),
    ).toContain(id);
  } finally {
    await fresh.end();
    await pool.query(`ALTER ROLE "${username}" IN DATABASE "${name}" RESET ALL`);
  }
});
