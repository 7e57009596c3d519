import { fromWireId, uuidv7 } from "@drover/protocol";
import { readLog } from "@drover/runs";
import { postgresBlobs } from "@drover/storage";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { paths, startWorld, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld({ env: { DROVER_EGRESS_ALLOW: "127.0.0.0/8" } });
});
afterAll(() => world.close());

const rowOf = async (taskId: string) =>
  (await world.pool.query("SELECT * FROM runs WHERE id = $1", [fromWireId("run", taskId)])).rows[0];
const inputOf = async (taskId: string) => {
  const [first] = await readLog(world.pool, postgresBlobs(world.pool), {
    tenant: "default",
    runId: fromWireId("run", taskId)!,
  });
  return first!.data;
};
const runs = async () => (await world.pool.query("SELECT count(*) AS n FROM runs")).rows[0].n as number;

describe("a body that is not valid", () => {
  const wrong: [name: string, body: unknown, path: string, message: RegExp][] = [
    ["no query", {}, "query", /required/],
    ["an empty query", { query: "" }, "query", /empty/],
    ["a query of 100,001 characters", { query: "x".repeat(100_001) }, "query", /<=100000/],
    ["a query that is no text", { query: 7 }, "query", /string/],
    ["no object", [1], "", /object/],
    ["an unknown field", { querry: "x", query: "x" }, "querry", /no such field/],
    ["an unknown field deeper down", { query: "x", limits: { soft: 3 } }, "limits.soft", /no such field/],
    ["a session", { query: "x", session_id: "ses_1" }, "session_id", /sessions are not available yet/],
    ["the router", { query: "x", agent: "auto" }, "agent", /`auto` is not available yet/],
    ["an agent there is not", { query: "x", agent: "nobody" }, "agent", /default, researcher/],
    ["an agent of Object's", { query: "x", agent: "constructor" }, "agent", /default, researcher/],
    ["a model without provider", { query: "x", model: "gpt-5" }, "model", /provider\/model/],
    [
      "a provider there is not",
      { query: "x", model: "antropic/x" },
      "model",
      /no model "antropic\/x"; models: .*anthropic\/\*/,
    ],
    ["another model than the demo", { query: "x", model: "demo/x" }, "model", /no model/],
    ["temperature", { query: "x", temperature: 2.1 }, "temperature", /<=2/],
    ["max_tokens", { query: "x", max_tokens: 0 }, "max_tokens", />=1/],
    ["max_iterations", { query: "x", max_iterations: 51 }, "max_iterations", /<=50/],
    ["max_iterations that are no integer", { query: "x", max_iterations: 2.5 }, "max_iterations", /int/],
    ["max_cost_usd", { query: "x", max_cost_usd: 0 }, "max_cost_usd", />0/],
    ["priority", { query: "x", priority: 10 }, "priority", /<=9/],
    ["delay_seconds", { query: "x", delay_seconds: -1 }, "delay_seconds", />=0/],
    ["a delay of more than 30 days", { query: "x", delay_seconds: 2_592_001 }, "delay_seconds", /<=2592000/],
    ["retry.max_attempts", { query: "x", retry: { max_attempts: 11 } }, "retry.max_attempts", /<=10/],
    [
      "a longest back-off below the first",
      { query: "x", retry: { backoff_ms: 500, max_backoff_ms: 400 } },
      "retry.max_backoff_ms",
      /less than retry.backoff_ms \(500\)/,
    ],
    [
      "soft over hard",
      { query: "x", limits: { soft_seconds: 10, hard_seconds: 10 } },
      "limits.soft_seconds",
      /less than/,
    ],
    ["soft over the default hard limit", { query: "x", limits: { soft_seconds: 1800 } }, "limits.soft_seconds", /1800/],
    [
      "limits that are the same in milliseconds",
      { query: "x", limits: { soft_seconds: 1.0001, hard_seconds: 1.0002 } },
      "limits.soft_seconds",
      /less than/,
    ],
    ["a deadline that is no time", { query: "x", limits: { deadline: "tomorrow" } }, "limits.deadline", /ISO 8601/],
    [
      "a deadline in the past",
      { query: "x", limits: { deadline: "2020-01-01T00:00:00Z" } },
      "limits.deadline",
      /future/,
    ],
    ["user_id", { query: "x", user_id: "u".repeat(256) }, "user_id", /<=255/],
    ["user_id with NUL", { query: "x", user_id: "a\0b" }, "user_id", /NUL/],
    ["context that is no object", { query: "x", context: "x" }, "context", /record|object/],
    [
      "17 metadata",
      { query: "x", metadata: Object.fromEntries(Array.from({ length: 17 }, (_, i) => [i, "v"])) },
      "metadata",
      /16/,
    ],
    ["a metadata key of 65", { query: "x", metadata: { ["k".repeat(65)]: "v" } }, `metadata.${"k".repeat(65)}`, /<=64/],
    ["a metadata value of 513", { query: "x", metadata: { k: "v".repeat(513) } }, "metadata.k", /<=512/],
    ["metadata that is no text", { query: "x", metadata: { k: 1 } }, "metadata.k", /string/],
    ["half a surrogate pair in metadata", { query: "x", metadata: { k: "\ud800" } }, "metadata.k", /surrogate/],
    ["a callback that is no URL", { query: "x", callback_url: "nope" }, "callback_url", /absolute URL/],
    ["a callback by ftp", { query: "x", callback_url: "ftp://example.com" }, "callback_url", /http/],
    ["a private callback", { query: "x", callback_url: "http://10.0.0.1/hook" }, "callback_url", /private/],
    ["a metadata service", { query: "x", callback_url: "http://169.254.169.254/" }, "callback_url", /private/],
    ["events without a callback", { query: "x", events: ["query.completed"] }, "events", /callback_url/],
    [
      "an event there is not",
      { query: "x", callback_url: "https://example.com", events: ["query.started"] },
      "events[0]",
      /query\.waiting/,
    ],
    [
      "an event of batches",
      { query: "x", callback_url: "https://example.com", events: ["query.completed", "batch.completed"] },
      "events[1]",
      /query\.cancelled/,
    ],
    ["no events at all", { query: "x", callback_url: "https://example.com", events: [] }, "events", />=1/],
  ];
  test.each(wrong)("%s is refused by name", async (_name, body, path, message) => {
    const before = await runs();
    const { status, headers, body: problem } = await world.post("/query", body);
    expect(status).toBe(400);
    expect(headers.get("content-type")).toBe("application/problem+json; charset=utf-8");
    expect(problem).toMatchObject({ type: "urn:drover:error:invalid_input", code: "invalid_input", status: 400 });
    expect(problem.request_id).toBe(headers.get("x-request-id"));
    expect(problem.errors).toEqual([{ path, message: expect.stringMatching(message) }]);
    expect(await runs()).toBe(before);
  });

  test("every wrong field is named at once", async () => {
    const body = { agent: 7, priority: 99, retry: { max_attempts: 0, nope: 1 }, surprise: true };
    const { body: problem } = await world.post("/query", body);
    expect(paths(problem).sort()).toEqual([
      "agent",
      "priority",
      "query",
      "retry.max_attempts",
      "retry.nope",
      "surprise",
    ]);
  });

  test("JSON nested deeper than anybody can write it back is refused, not an error of ours", async () => {
    const depth = 50_000;
    const raw = `{"query":"x","context":{"a":${"[".repeat(depth)}${"]".repeat(depth)}}}`;
    const { status, body } = await world.call("POST", "/query", { raw });
    expect(status).toBe(400);
    expect(paths(body)).toEqual(["context"]);
    const fine = await world.post("/query", { query: "x", context: { a: [[[[1]]]] } });
    expect(fine.status).toBe(202);
  });

  test.each([
    ["malformed", '{"query": "x"', {}],
    ["with a key that poisons prototypes", '{"query":"x","context":{"__proto__":{"a":1}}}', {}],
    ["of another type", "query=x", { "content-type": "application/x-www-form-urlencoded" }],
    ["as plain text", "x", { "content-type": "text/plain" }],
    ["of a type that is none", "x", { "content-type": "json" }],
    ["missing", "", {}],
  ])("a body that is %s is invalid_input", async (_name, raw, headers) => {
    const { status, body } = await world.call("POST", "/query", { raw, headers });
    expect(status).toBe(400);
    expect(body.code).toBe("invalid_input");
    expect(body.errors).toHaveLength(1);
    expect(JSON.stringify(body)).not.toContain("node_modules");
  });

  test("a query string that the route does not know is named", async () => {
    const { status, body } = await world.get("/query?colour=blue");
    expect(status).toBe(400);
    expect(paths(body)).toEqual(["colour"]);
  });
});

describe("size", () => {
  test("over 1 MiB is 413 and the connection still works", async () => {
    const { status, body } = await world.post("/query", { query: "x", context: { blob: "y".repeat(2 ** 20) } });
    expect(status).toBe(413);
    expect(body.code).toBe("payload_too_large");
    expect((await world.post("/query", { query: "after" })).status).toBe(202);
  });

  test("also when its length is not announced", async () => {
    const chunk = new TextEncoder().encode("y".repeat(65_536));
    let sent = 0;
    const stream = new ReadableStream({
      pull(controller) {
        if (++sent > 40) controller.close();
        else controller.enqueue(chunk);
      },
    });
    const response = await fetch(`${world.url}/query`, {
      method: "POST",
      body: stream,
      duplex: "half",
      headers: { authorization: `Bearer ${world.adminKey}`, "content-type": "application/json" },
    } as RequestInit);
    expect(response.status).toBe(413);
  });

  test("just under is accepted, and comes back whole", async () => {
    const blob = "z".repeat(2 ** 20 - 100);
    const id = await world.submit({ query: "big", context: { blob } });
    expect((await world.get(`/execution/${id}`)).body.context).toEqual({ blob });
  });
});

describe("accepted", () => {
  test("answers 202 with where to follow it, after the commit", async () => {
    const { status, headers, body } = await world.post("/query", { query: "hello" });
    expect(status).toBe(202);
    const id = body.task_id;
    expect(id).toMatch(/^run_[0-9a-f]{32}$/);
    expect(body).toEqual({
      task_id: id,
      status: "queued",
      check_url: `/query/status/${id}`,
      result_url: `/query/result/${id}`,
      events_url: `/query/${id}/events`,
    });
    expect(headers.get("location")).toBe(`/query/status/${id}`);
    expect(headers.get("retry-after")).toMatch(/^\d+$/);
    expect(headers.get("idempotent-replayed")).toBeNull();
    expect(await rowOf(id)).toMatchObject({ tenant: "default", status: "queued", agent: "default" });
  });

  test("defaults are filled in", async () => {
    const id = await world.submit({ query: "plain" });
    expect(await inputOf(id)).toEqual({
      query: "plain",
      agent: "default",
      max_iterations: 10,
      limits: { soft_seconds: 1500, hard_seconds: 1800 },
      retry: { max_attempts: 3, backoff_ms: 1000, max_backoff_ms: 60_000 },
    });
    expect(await rowOf(id)).toMatchObject({
      priority: 0,
      woken: true,
      callback_url: null,
      callback_events: null,
      metadata: {},
    });
  });

  test("everything given is kept", async () => {
    const deadline = new Date(Date.now() + 3_600_000).toISOString();
    const id = await world.submit({
      query: "all",
      agent: "researcher",
      context: { b: 1, a: [null, { deep: "ü" }] },
      user_id: "u-1",
      system_prompt: "Be brief.",
      model: "anthropic/claude-x",
      temperature: 0.3,
      max_tokens: 500,
      max_iterations: 7,
      limits: { soft_seconds: 5, hard_seconds: 9, deadline },
      max_cost_usd: 0.5,
      priority: 9,
      delay_seconds: 60,
      retry: { max_attempts: 5, backoff_ms: 10, max_backoff_ms: 20 },
      callback_url: "http://127.0.0.1:9/hook",
      events: ["query.failed", "query.partial"],
      metadata: { k: "v" },
    });
    expect(await inputOf(id)).toEqual({
      query: "all",
      agent: "researcher",
      context: { b: 1, a: [null, { deep: "ü" }] },
      system_prompt: "Be brief.",
      model: "anthropic/claude-x",
      temperature: 0.3,
      max_tokens: 500,
      max_iterations: 7,
      limits: { soft_seconds: 5, hard_seconds: 9, deadline },
      max_cost_usd: 0.5,
      retry: { max_attempts: 5, backoff_ms: 10, max_backoff_ms: 20 },
    });
    const row = await rowOf(id);
    expect(row).toMatchObject({
      user_id: "u-1",
      priority: 9,
      woken: false,
      soft_ms: 5000,
      hard_ms: 9000,
      callback_url: "http://127.0.0.1:9/hook",
      callback_events: ["query.failed", "query.partial"],
      metadata: { k: "v" },
    });
    expect(row.deadline.toISOString()).toBe(deadline);
    const { body: record } = await world.get(`/execution/${id}`);
    expect(record.settings).toMatchObject({ priority: 9, model: "anthropic/claude-x", max_cost_usd: 0.5 });
  });

  test("only a hard limit: the soft one is five sixths of it; an agent's own iterations count", async () => {
    const id = await world.submit({ agent: "researcher", limits: { hard_seconds: 600 } });
    expect(await inputOf(id)).toMatchObject({ max_iterations: 20, limits: { soft_seconds: 500, hard_seconds: 600 } });
  });

  test("one back-off given: the other one keeps its distance", async () => {
    const long = await world.submit({ retry: { backoff_ms: 90_000 } });
    expect(await inputOf(long)).toMatchObject({ retry: { backoff_ms: 90_000, max_backoff_ms: 90_000 } });
    const short = await world.submit({ retry: { max_backoff_ms: 100 } });
    expect(await inputOf(short)).toMatchObject({ retry: { backoff_ms: 100, max_backoff_ms: 100 } });
  });

  test("a deadline in another zone is kept in UTC", async () => {
    const id = await world.submit({ limits: { deadline: "2090-01-01T02:00:00+02:00" } });
    expect(await inputOf(id)).toMatchObject({ limits: { deadline: "2090-01-01T00:00:00.000Z" } });
  });

  test("what Postgres cannot keep in a query is replaced, and the query is accepted", async () => {
    const id = await world.submit({ query: "a\0b\ud800c" });
    expect(await inputOf(id)).toMatchObject({ query: "a\uFFFDb\uFFFDc" });
  });

  test("/query/async is the same; /query/with-callback wants a callback", async () => {
    expect((await world.post("/query/async", { query: "x" })).status).toBe(202);
    const { status, body } = await world.post("/query/with-callback", { query: "x" });
    expect(status).toBe(400);
    expect(body.errors).toEqual([{ path: "callback_url", message: "is required" }]);
    const answered = await world.post("/query/with-callback", { query: "x", callback_url: "https://example.com/hook" });
    expect(answered.status).toBe(202);
    expect(await rowOf(answered.body.task_id)).toMatchObject({ callback_url: "https://example.com/hook" });
  });

  test("a sane request id is kept, any other is replaced", async () => {
    const kept = await world.get("/health", { headers: { "x-request-id": "trace-1.a:b" } });
    expect(kept.headers.get("x-request-id")).toBe("trace-1.a:b");
    for (const id of ["a b", "x".repeat(129), "<script>"]) {
      const replaced = await world.get("/health", { headers: { "x-request-id": id } });
      expect(replaced.headers.get("x-request-id")).toMatch(/^req_/);
    }
  });
});

describe("Idempotency-Key", () => {
  const keyed = (key: string, body: unknown = { query: "once" }, path = "/query") =>
    world.post(path, body, { headers: { "idempotency-key": key } });

  test("the same key and body gives the same answer and makes nothing new", async () => {
    const first = await keyed("same");
    const before = await runs();
    const again = await keyed("same", { query: "once" });
    expect(again.body).toEqual(first.body);
    expect(again.status).toBe(202);
    expect(again.headers.get("location")).toBe(first.headers.get("location"));
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    expect(await runs()).toBe(before);
  });

  test("the order of fields does not matter, and /query/async is the same route", async () => {
    const first = await keyed("order", { query: "q", metadata: { a: "1", b: "2" } });
    const again = await keyed("order", { metadata: { b: "2", a: "1" }, query: "q" }, "/query/async");
    expect(again.body.task_id).toBe(first.body.task_id);
  });

  test("another body, or another route, is a mismatch", async () => {
    await keyed("mismatch");
    for (const [body, path] of [
      [{ query: "twice" }, "/query"],
      [{ query: "once", priority: 0 }, "/query"],
      [{ query: "once" }, "/agent/query"],
      [{ queries: ["once"] }, "/query/batch"],
    ] as const) {
      const { status, body: problem } = await keyed("mismatch", body, path);
      expect(status).toBe(422);
      expect(problem.code).toBe("idempotency_mismatch");
    }
  });

  test("fifty at once make one run", async () => {
    const before = await runs();
    const answers = await Promise.all(Array.from({ length: 50 }, () => keyed("race", { query: "race" })));
    expect(answers.map(({ status }) => status)).toEqual(Array(50).fill(202));
    expect(new Set(answers.map(({ body }) => body.task_id)).size).toBe(1);
    expect(answers.filter(({ headers }) => headers.get("idempotent-replayed") === null)).toHaveLength(1);
    expect(await runs()).toBe(before + 1);
  });

  test("fifty at once with different bodies: one wins, all others of another body are told", async () => {
    const answers = await Promise.all(Array.from({ length: 50 }, (_, i) => keyed("race-2", { query: `q${i % 2}` })));
    const accepted = answers.filter(({ status }) => status === 202);
    expect(new Set(accepted.map(({ body }) => body.task_id)).size).toBe(1);
    expect(accepted).toHaveLength(25);
    expect(answers.filter(({ status }) => status === 422)).toHaveLength(25);
  });

  test("keys belong to their tenant", async () => {
    const other = await world.keyOf("submitter", "other");
    const first = await keyed("tenant");
    const theirs = await world.post(
      "/query",
      { query: "else" },
      { key: other, headers: { "idempotency-key": "tenant" } },
    );
    expect(theirs.status).toBe(202);
    expect(theirs.body.task_id).not.toBe(first.body.task_id);
  });

  test("a key that is refused can be used again with a right body", async () => {
    expect((await keyed("second try", { query: "" })).status).toBe(400);
    expect((await keyed("second try", { query: "x" })).headers.get("idempotent-replayed")).toBeNull();
  });

  test("empty or over 255 characters is refused by name", async () => {
    for (const key of ["", "k".repeat(256)]) {
      const { status, body } = await keyed(key);
      expect(status).toBe(400);
      expect(paths(body)).toEqual(["Idempotency-Key"]);
    }
    expect((await keyed("k".repeat(255))).status).toBe(202);
  });
});

describe("POST /agent/query", () => {
  /** Submits synchronously, plays the worker, and returns the answer. */
  async function sync(
    play: (taskId: string) => Promise<unknown>,
    body: object = {},
    headers: Record<string, string> = {},
  ) {
    const userId = uuidv7();
    const answering = world.post("/agent/query", { query: "sync", user_id: userId, ...body }, { headers });
    const seen = async () => (await world.get(`/query?user_id=${userId}`)).body.data[0]?.task_id as string | undefined;
    await expect.poll(seen).toBeDefined();
    await play((await seen())!);
    return await answering;
  }
  const fail =
    (code: "iteration_limit" | "tool_error" | "auth_failed" | "model_error" | "invalid_input") =>
    async (id: string) => {
      const owner = await world.own(id);
      await owner.end("failed", { output: null, stop_reason: code, error: { code, message: "It went wrong." } });
    };

  test("answers with the result when the run ends", async () => {
    const { status, headers, body } = await sync(async (id) => {
      const owner = await world.own(id);
      await owner.say("391");
      await owner.end("completed", { output: "391", stop_reason: null, error: null });
    });
    expect(status).toBe(200);
    expect(body).toMatchObject({ status: "success", output: "391", iterations: 1, cost_usd: 0.001 });
    expect(body).not.toHaveProperty("tool_calls");
    expect(headers.get("retry-after")).toBeNull();
  });

  test("a partial result is a result", async () => {
    const { status, body } = await sync(async (id) => {
      const owner = await world.own(id);
      await owner.end("partial", { output: "so far", stop_reason: "time_limit", error: null });
    });
    expect(status).toBe(200);
    expect(body).toMatchObject({ status: "partial", output: "so far", stop_reason: "time_limit" });
  });

  test.each([
    ["iteration_limit", 400, "loop_limit_exceeded"],
    ["tool_error", 422, "tool_error"],
    ["auth_failed", 409, "conflict"],
    ["invalid_input", 409, "conflict"],
    ["model_error", 409, "conflict"],
  ] as const)("a run that failed with %s is %i %s", async (reason, status, code) => {
    const answer = await sync(fail(reason));
    expect(answer.status).toBe(status);
    expect(answer.headers.get("www-authenticate")).toBeNull();
    expect(answer.body).toMatchObject({
      code,
      status,
      error: { code: reason },
      result: { status: "error", stop_reason: reason },
    });
  });

  test("a cancelled one is 409", async () => {
    const { status, body } = await sync((id) => world.post(`/query/${id}/cancel`));
    expect(status).toBe(409);
    expect(body).toMatchObject({ code: "conflict", error: { code: "cancelled" } });
  });

  test("Prefer: wait=0 answers at once with 202, and the preference is told", async () => {
    const { status, headers, body } = await world.post(
      "/agent/query",
      { query: "x" },
      { headers: { prefer: "respond-async, wait=0" } },
    );
    expect(status).toBe(202);
    expect(headers.get("preference-applied")).toBe("wait=0");
    expect(body.status).toBe("queued");
    expect(headers.get("location")).toBe(`/query/status/${body.task_id}`);
  });

  test("a client that hangs up leaves the run as it is", async () => {
    const userId = uuidv7();
    const gone = new AbortController();
    const call = world
      .post("/agent/query", { query: "x", user_id: userId }, { signal: gone.signal })
      .catch((error) => error);
    const seen = async () => (await world.get(`/query?user_id=${userId}`)).body.data[0];
    await expect.poll(seen).toBeDefined();
    gone.abort();
    expect((await call).name).toBe("AbortError");
    expect(await seen()).toMatchObject({ status: "queued" });
  });

  test("a replay waits for the same run", async () => {
    const headers = { "idempotency-key": "sync-1" };
    const first = await world.post("/agent/query", { query: "r" }, { headers: { ...headers, prefer: "wait=0" } });
    const owner = await world.own(first.body.task_id);
    await owner.end("completed", { output: "done", stop_reason: null, error: null });
    const again = await world.post("/agent/query", { query: "r" }, { headers });
    expect(again.status).toBe(200);
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    expect(again.body.task_id).toBe(first.body.task_id);
  });
});
