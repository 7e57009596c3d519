import { createHash } from "node:crypto";
import { bootstrap, createKey, listKeys, type Role, revokeKey } from "@drover/api";
import { isWebhookSecret } from "@drover/delivery";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startWorld, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world.close());

describe("a key", () => {
  test("is taken as bearer token, in any case, and in X-API-Key", async () => {
    const carriers: Record<string, string>[] = [
      { authorization: `Bearer ${world.adminKey}` },
      { authorization: `bearer  ${world.adminKey}` },
      { "x-api-key": world.adminKey },
    ];
    for (const headers of carriers) expect((await world.get("/query", { key: null, headers })).status).toBe(200);
  });

  test.each([
    ["none", {}],
    ["an unknown one", { authorization: "Bearer drv_unknown" }],
    ["an empty one", { authorization: "Bearer " }],
    ["one with more after it", { "x-api-key": "WORLD-KEY x" }],
    ["a very long one", { "x-api-key": "x".repeat(5000) }],
    ["another scheme", { authorization: "Token WORLD-KEY" }],
    ["Basic, where no browser comes", { authorization: "Basic BASIC" }],
  ])("%s is 401 with a challenge", async (_name, headers) => {
    const given = Object.fromEntries(
      Object.entries(headers as Record<string, string>).map(([name, value]) => [
        name,
        value
          .replace("WORLD-KEY", world.adminKey)
          .replace("BASIC", Buffer.from(`admin:${world.adminKey}`).toString("base64")),
      ]),
    );
    for (const answer of [
      await world.get("/query", { key: null, headers: given }),
      await world.post("/query", { nonsense: true }, { key: null, headers: given }),
    ]) {
      expect(answer.status).toBe(401);
      expect(answer.body.code).toBe("auth_failed");
      expect(answer.headers.get("www-authenticate")).toBe('Bearer realm="drover"');
    }
  });

  test("is stored as its hash and nothing else, and its tenant gets a webhook secret of its own", async () => {
    const made = await createKey(world.pool, { tenant: "fresh", role: "admin", name: "laptop" });
    expect(made).toEqual({
      id: expect.stringMatching(/^key_[0-9a-f]{32}$/),
      key: expect.stringMatching(/^drv_[A-Za-z0-9_-]{43}$/),
      tenant: "fresh",
      role: "admin",
    });
    const { rows } = await world.pool.query("SELECT * FROM api_keys WHERE tenant = 'fresh'");
    expect(rows[0].hash).toEqual(createHash("sha256").update(made.key).digest());
    expect(JSON.stringify(rows)).not.toContain(made.key.slice(4));
    const { body } = await world.get("/webhooks/secret", { key: made.key });
    expect(isWebhookSecret(body.secret)).toBe(true);
    const { body: defaults } = await world.get("/webhooks/secret");
    expect(body.secret).not.toBe(defaults.secret);
  });

  test("that is revoked stops working within five seconds, for processes that know it too", async () => {
    const { id, key } = await createKey(world.pool, { tenant: "default", role: "submitter" });
    expect((await world.get("/query", { key })).status).toBe(200);
    expect(await revokeKey(world.pool, id)).toBe(true);
    await expect
      .poll(async () => (await world.get("/query", { key })).status, { timeout: 5000, interval: 200 })
      .toBe(401);
    expect(await revokeKey(world.pool, id)).toBe(true);
    const [record] = (await listKeys(world.pool, "default")).filter((one) => one.id === id);
    expect(record).toMatchObject({ role: "submitter", revokedAt: expect.any(Date) });
  });

  test("that is revoked ends what is open for it: streams, and answers that are waited for; others' go on", async () => {
    const [revoked, kept] = [
      await createKey(world.pool, { tenant: "default", role: "submitter" }),
      await createKey(world.pool, { tenant: "default", role: "submitter" }),
    ];
    const id = await world.submit();
    const open = (key: string) =>
      fetch(`${world.url}/query/${id}/events`, {
        headers: { accept: "text/event-stream", authorization: `Bearer ${key}` },
      });
    const [mine, others] = [await open(revoked.key), await open(kept.key)];
    const waiting = world.get(`/query/status/${id}?wait=60`, { key: revoked.key });
    await revokeKey(world.pool, revoked.id);
    expect(await mine.text()).toContain("run.queued");
    expect((await waiting).body.status).toBe("queued");
    await expect.poll(async () => (await open(revoked.key)).status, { timeout: 5000, interval: 50 }).toBe(401);
    const reader = others.body!.getReader();
    await reader.read();
    await world.post(`/query/${id}/cancel`);
    let rest = "";
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) rest += Buffer.from(piece.value);
    expect(rest).toContain("run.cancelled");
  });

  test("that is made after it was refused works soon", async () => {
    const later = "a-key-that-comes-later";
    expect((await world.get("/query", { key: later })).status).toBe(401);
    await bootstrap(world.pool, { DROVER_BOOTSTRAP_KEY: later });
    await expect.poll(async () => (await world.get("/query", { key: later })).status, { timeout: 5000 }).toBe(200);
    await bootstrap(world.pool, { DROVER_BOOTSTRAP_KEY: world.adminKey });
  });

  test("cannot be made for a tenant or role that cannot be", async () => {
    for (const wanted of [
      { tenant: "No Spaces", role: "admin" as Role },
      { tenant: "", role: "admin" as Role },
      { tenant: "ok", role: "king" as Role },
    ])
      await expect(createKey(world.pool, wanted)).rejects.toMatchObject({ code: "invalid_input" });
    expect(await revokeKey(world.pool, "key_nope")).toBe(false);
  });
});

describe("bootstrap", () => {
  test("twenty starters at once make one tenant and one key, and the first secret stays", async () => {
    const { pool } = world;
    const secret = `whsec_${Buffer.alloc(32, 7).toString("base64")}`;
    const before = (await world.get("/webhooks/secret")).body.secret;
    const answers = await Promise.all(
      Array.from({ length: 20 }, () =>
        bootstrap(pool, { DROVER_BOOTSTRAP_KEY: "starters-0123456789", DROVER_WEBHOOK_SECRET: secret }),
      ),
    );
    expect(new Set(answers.map(({ keys }) => keys)).size).toBe(1);
    const hash = createHash("sha256").update("starters-0123456789").digest();
    expect((await pool.query("SELECT role, tenant FROM api_keys WHERE hash = $1", [hash])).rows).toEqual([
      { role: "admin", tenant: "default" },
    ]);
    const { rows } = await pool.query("SELECT webhook_secret FROM tenants WHERE id = 'default'");
    expect(rows).toEqual([{ webhook_secret: before }]);
  });

  test("another configured key takes the place of the one before; configured again, that one is back", async () => {
    const { pool } = world;
    const isValid = async (key: string) => {
      const hash = createHash("sha256").update(key).digest();
      return (await pool.query("SELECT FROM api_keys WHERE hash = $1 AND revoked_at IS NULL", [hash])).rowCount === 1;
    };
    await bootstrap(pool, { DROVER_BOOTSTRAP_KEY: "first-0123456789" });
    await bootstrap(pool, { DROVER_BOOTSTRAP_KEY: "second-0123456789" });
    expect([await isValid("first-0123456789"), await isValid("second-0123456789")]).toEqual([false, true]);
    await bootstrap(pool, { DROVER_BOOTSTRAP_KEY: "first-0123456789" });
    expect([await isValid("first-0123456789"), await isValid("second-0123456789")]).toEqual([true, false]);
    await bootstrap(pool, {});
    expect(await isValid("first-0123456789")).toBe(true);
    await bootstrap(pool, { DROVER_BOOTSTRAP_KEY: world.adminKey });
  });
});

const nobody = "0".repeat(32);
/** Every route that asks for a key, with what its role must be allowed. */
const routes: [method: string, path: string, allowed: Role[], body?: unknown][] = [
  ["POST", "/query", ["submitter", "admin"], {}],
  ["POST", "/query/async", ["submitter", "admin"], {}],
  ["POST", "/query/with-callback", ["submitter", "admin"], {}],
  ["POST", "/agent/query", ["submitter", "admin"], {}],
  ["POST", "/query/batch", ["submitter", "admin"], {}],
  ["GET", "/query", ["submitter", "approver", "operator", "admin"]],
  ["GET", `/query/status/run_${nobody}`, ["submitter", "approver", "operator", "admin"]],
  ["GET", `/query/result/run_${nobody}`, ["submitter", "approver", "operator", "admin"]],
  ["GET", `/execution/run_${nobody}`, ["submitter", "approver", "operator", "admin"]],
  ["GET", `/query/run_${nobody}/events`, ["submitter", "approver", "operator", "admin"]],
  ["GET", `/query/run_${nobody}/deliveries`, ["submitter", "approver", "operator", "admin"]],
  ["GET", `/query/batch/bat_${nobody}`, ["submitter", "approver", "operator", "admin"]],
  ["POST", `/query/run_${nobody}/cancel`, ["submitter", "operator", "admin"]],
  ["POST", `/query/batch/bat_${nobody}/cancel`, ["submitter", "operator", "admin"]],
  ["POST", `/deliveries/dlv_${nobody}/redeliver`, ["submitter", "operator", "admin"]],
  ["POST", "/webhooks", ["operator", "admin"], {}],
  ["GET", "/webhooks", ["operator", "admin"]],
  ["GET", `/webhooks/whk_${nobody}`, ["operator", "admin"]],
  ["PATCH", `/webhooks/whk_${nobody}`, ["operator", "admin"], { enabled: true }],
  ["DELETE", `/webhooks/whk_${nobody}`, ["operator", "admin"]],
  ["GET", `/webhooks/whk_${nobody}/public-key`, ["submitter", "approver", "operator", "admin"]],
  ["POST", `/webhooks/whk_${nobody}/rotate-secret`, ["operator", "admin"]],
  ["POST", `/webhooks/whk_${nobody}/test`, ["operator", "admin"]],
  ["GET", `/query/run_${nobody}/approvals`, ["submitter", "approver", "operator", "admin"]],
  ["GET", "/approvals", ["submitter", "approver", "operator", "admin"]],
  ["GET", `/approvals/apr_${nobody}`, ["submitter", "approver", "operator", "admin"]],
  ["POST", `/approvals/apr_${nobody}`, ["approver", "admin"], { decision: "approve" }],
  ["POST", `/approvals/apr_${nobody}/link`, ["approver", "admin"]],
  ["POST", `/query/run_${nobody}/budget`, ["operator", "admin"], { actions: 1 }],
  ["POST", `/query/run_${nobody}/rollback`, ["operator", "admin"]],
  ["POST", `/query/run_${nobody}/retry`, ["submitter", "admin"]],
  ["GET", `/query/run_${nobody}/artifacts/${"0".repeat(64)}`, ["submitter", "approver", "operator", "admin"]],
  ["GET", "/events", ["submitter", "approver", "operator", "admin"]],
  ["GET", "/budget", ["submitter", "approver", "operator", "admin"]],
  ["PUT", "/budget", ["admin"], { day_usd: null }],
  ["GET", "/audit", ["operator", "admin"]],
  ["GET", "/webhooks/secret", ["admin"]],
  ["POST", "/webhooks/secret/rotate", ["admin"]],
];

describe("roles", () => {
  test.each(routes)("%s %s is for %j", async (method, path, allowed, body) => {
    for (const role of ["submitter", "approver", "operator", "admin"] as const) {
      const key = await world.keyOf(role, "roles");
      const { status, body: answer } = await world.call(method, path, { key, ...(body !== undefined && { body }) });
      if (allowed.includes(role)) expect([200, 202, 400, 404], `${role}: ${status}`).toContain(status);
      else {
        expect(status, role).toBe(403);
        expect(answer.code).toBe("forbidden");
      }
    }
  });

  test("the list above is every route there is", () => {
    const open = ["/health", "/ready", "/metrics", "/openapi.json", "/approvals/link/{token}"];
    const documented = Object.entries(world.document.paths).flatMap(([path, methods]) =>
      open.includes(path) ? [] : Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`),
    );
    const listed = routes.map(
      ([method, path]) => `${method} ${path.replace(/[a-z]{3}_0{32}/, "{id}").replace(/0{64}/, "{artifact}")}`,
    );
    expect(listed.sort()).toEqual(documented.sort());
  });
});

test("another tenant's id answers exactly like a missing one, on every route", async () => {
  const id = await world.submit();
  const batch = (await world.post("/query/batch", { queries: ["a"] })).body.batch_id;
  const hook = (await world.post("/webhooks", { url: "https://example.com/hook" })).body.id;
  await world.post(`/query/${id}/cancel`);
  const mine = { run: id, bat: batch, whk: hook, dlv: `dlv_${nobody}`, apr: `apr_${nobody}` } as Record<string, string>;
  const stranger = await world.keyOf("admin", "stranger");
  for (const [method, path, , body] of routes) {
    const kind = /([a-z]{3})_0{32}/.exec(path)?.[1];
    if (!kind) continue;
    const call = { key: stranger, ...(body !== undefined && { body }) };
    const foreign = await world.call(method, path.replace(/[a-z]{3}_0{32}/, mine[kind]!), call);
    const missing = await world.call(method, path, call);
    expect(foreign.status, `${method} ${path}`).toBe(404);
    const said = ({ detail, ...rest }: { detail: string }) => ({
      ...rest,
      request_id: "",
      detail: detail.replace(/[a-z]{3}_[0-9a-f]{32}/, "ID"),
    });
    expect(said(foreign.body)).toEqual(said(missing.body));
  }
  const stream = await world.get(`/query/${id}/events`, { key: stranger, headers: { accept: "text/event-stream" } });
  expect(stream.status).toBe(404);
  expect((await world.get("/query", { key: stranger })).body.data).toEqual([]);
  expect((await world.get("/webhooks", { key: stranger })).body.data).toEqual([]);
  expect((await world.get(`/webhooks/${hook}`)).body.enabled).toBe(true);
});

test("unknown routes and methods are problem documents, whoever asks", async () => {
  for (const [method, path] of [
    ["GET", "/nope"],
    ["POST", "/"],
    ["DELETE", "/query"],
    ["PUT", "/query/status/x"],
    ["POST", "/openapi.json"],
  ] as const) {
    const { status, body, headers } = await world.call(method, path, { key: null });
    expect(status, path).toBe(404);
    expect(body).toMatchObject({ code: "not_found", type: "urn:drover:error:not_found" });
    expect(headers.get("content-type")).toBe("application/problem+json; charset=utf-8");
  }
  const broken = await fetch(`${world.url}/query/status/%ZZ`);
  expect(broken.status).toBe(400);
  expect(await broken.json()).toMatchObject({ code: "invalid_input", request_id: broken.headers.get("x-request-id") });
});
