import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { paths, startWorld, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world.close());

const nothing = { output: null, stop_reason: null, error: null };
const done = { output: "391", stop_reason: null, error: null };

async function finished(body: object = {}): Promise<string> {
  const id = await world.submit({ ...body });
  const owner = await world.own(id);
  await owner.append("model.call", {
    iteration: 0,
    model: "demo/demo",
    text: "",
    tool_calls: [{ id: "c1", name: "calculate", input: { expression: "17*23" } }],
    finish_reason: "tool-calls",
    usage: { input: 100, output: 10, cached: 40 },
    cost_usd: 0.002,
    duration_ms: 5,
  });
  await owner.append("tool.result", {
    iteration: 0,
    index: 0,
    call_id: "c1",
    tool_name: "calculate",
    status: "ok",
    output: { value: 391 },
    duration_ms: 1,
  });
  await owner.say("391");
  await owner.end("completed", done);
  return id;
}

describe("GET /query/status/{id}", () => {
  test("a queued run", async () => {
    const id = await world.submit({ user_id: "u", metadata: { k: "v" } });
    const { status, headers, body } = await world.get(`/query/status/${id}`);
    expect(status).toBe(200);
    expect(body).toEqual({
      task_id: id,
      kind: "query",
      status: "queued",
      agent: "default",
      user_id: "u",
      attempt: 1,
      cost_usd: 0,
      tokens_used: { input: 0, output: 0, cached: 0, total: 0 },
      progress: { iterations: 0, steps: 0, last_event: "run.queued", partial_output: null },
      metadata: { k: "v" },
      created_at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
      started_at: null,
      finished_at: null,
    });
    expect(headers.get("retry-after")).toBe("1");
    expect(headers.get("etag")).toMatch(/^W\/"\d+"$/);
  });

  test("a delayed one says when it is due, and for how long to wait", async () => {
    const id = await world.submit({ delay_seconds: 30 });
    const { headers, body } = await world.get(`/query/status/${id}`);
    const inMs = new Date(body.next_attempt_at).getTime() - Date.now();
    expect(inMs).toBeGreaterThan(20_000);
    expect(inMs).toBeLessThanOrEqual(31_000);
    expect(Number(headers.get("retry-after"))).toBeGreaterThan(20);
  });

  test("a running one shows its progress and the text so far", async () => {
    const id = await world.submit();
    const owner = await world.own(id);
    await owner.append("model.partial", { iteration: 0, text: "The answer is" });
    const { body } = await world.get(`/query/status/${id}`);
    expect(body).toMatchObject({
      status: "running",
      progress: { iterations: 0, steps: 0, last_event: "model.partial", partial_output: "The answer is" },
      started_at: expect.any(String),
    });
    expect(body).not.toHaveProperty("next_attempt_at");
    await owner.say("The answer is 391");
    expect((await world.get(`/query/status/${id}`)).body).toMatchObject({
      progress: { iterations: 1, steps: 1, last_event: "model.call", partial_output: "The answer is 391" },
      cost_usd: 0.001,
      tokens_used: { input: 10, output: 5, cached: 0, total: 15 },
    });
  });

  test("one that backs off shows its attempt and the next time", async () => {
    const id = await world.submit();
    await (await world.own(id)).retryIn(20_000);
    const { body } = await world.get(`/query/status/${id}`);
    expect(body).toMatchObject({ status: "queued", attempt: 2, progress: { last_event: "run.retrying" } });
    expect(new Date(body.next_attempt_at).getTime()).toBeGreaterThan(Date.now());
  });

  test("an unknown price is null, never 0", async () => {
    const id = await world.submit();
    const owner = await world.own(id);
    await owner.append("model.call", {
      iteration: 0,
      model: "ollama/x",
      text: "hm",
      tool_calls: [],
      finish_reason: "stop",
      usage: { input: 1, output: 1, cached: 0 },
      cost_usd: null,
      duration_ms: 1,
    });
    expect((await world.get(`/query/status/${id}`)).body.cost_usd).toBeNull();
    await owner.end("completed", done);
    expect((await world.get(`/query/result/${id}`)).body.cost_usd).toBeNull();
  });

  test("a final one has its result, or its error and what there was", async () => {
    const id = await finished();
    const { headers, body } = await world.get(`/query/status/${id}`);
    expect(body).toMatchObject({
      status: "completed",
      progress: { iterations: 2, steps: 3, last_event: "run.completed", partial_output: null },
      result: { status: "success", output: "391", tools_called: ["calculate"] },
      finished_at: expect.any(String),
    });
    expect(body).not.toHaveProperty("error");
    expect(body.result).not.toHaveProperty("tool_calls");
    expect(headers.get("retry-after")).toBeNull();

    const failed = await world.submit();
    const owner = await world.own(failed);
    await owner.say("half of it");
    await owner.end("failed", {
      ...nothing,
      stop_reason: "time_limit",
      error: { code: "time_limit", message: "Over." },
    });
    expect((await world.get(`/query/status/${failed}`)).body).toMatchObject({
      status: "failed",
      stop_reason: "time_limit",
      error: { code: "time_limit", message: "Over." },
      result: { status: "error", output: "half of it" },
    });
  });

  test("304 for the version that is known, and a new version after every event", async () => {
    const id = await world.submit();
    const first = (await world.get(`/query/status/${id}`)).headers.get("etag")!;
    const known = (tag: string) => world.get(`/query/status/${id}`, { headers: { "if-none-match": tag } });
    for (const tag of [first, first.slice(2), `"x", ${first}`, "*"]) {
      const { status, headers, text } = await known(tag);
      expect(status).toBe(304);
      expect(text).toBe("");
      expect(headers.get("etag")).toBe(first);
    }
    await world.own(id);
    const { status, headers } = await known(first);
    expect(status).toBe(200);
    expect(headers.get("etag")).not.toBe(first);
  });

  test("?wait answers as soon as the run is final", async () => {
    const id = await world.submit();
    const waiting = world.get(`/query/status/${id}?wait=60`);
    const owner = await world.own(id);
    await owner.say("not yet");
    await owner.end("completed", done);
    expect((await waiting).body.status).toBe("completed");
  });

  test("?wait with If-None-Match answers as soon as anything is new", async () => {
    const id = await world.submit();
    const tag = (await world.get(`/query/status/${id}`)).headers.get("etag")!;
    const waiting = world.get(`/query/status/${id}?wait=60`, { headers: { "if-none-match": tag } });
    await world.own(id);
    const { status, body } = await waiting;
    expect(status).toBe(200);
    expect(body.status).toBe("running");
    const again = await world.get(`/query/status/${id}?wait=60`, { headers: { "if-none-match": tag } });
    expect(again.status).toBe(200);
  });

  test("?wait is over when the time is, with 304 if nothing is new; a final run never waits", async () => {
    const id = await world.submit();
    const tag = (await world.get(`/query/status/${id}`)).headers.get("etag")!;
    expect((await world.get(`/query/status/${id}?wait=0.05`)).body.status).toBe("queued");
    expect((await world.get(`/query/status/${id}?wait=0.05`, { headers: { "if-none-match": tag } })).status).toBe(304);
    await world.post(`/query/${id}/cancel`);
    const final = (await world.get(`/query/status/${id}?wait=300`)).headers.get("etag")!;
    expect((await world.get(`/query/status/${id}?wait=300`, { headers: { "if-none-match": final } })).status).toBe(304);
  });

  test.each(["-1", "301", "x", ""])("?wait=%s", async (wait) => {
    const id = await world.submit();
    const { status, body } = await world.get(`/query/status/${id}?wait=${wait}`);
    if (wait === "") expect(status).toBe(200);
    else expect(paths(body)).toEqual(["wait"]);
  });
});

describe("GET /query/result/{id}", () => {
  test("202 while not final", async () => {
    const id = await world.submit();
    const { status, headers, body } = await world.get(`/query/result/${id}`);
    expect(status).toBe(202);
    expect(body).toMatchObject({ task_id: id, status: "queued", check_url: `/query/status/${id}` });
    expect(headers.get("retry-after")).toBe("1");
  });

  test("200 with the result; its tool calls on demand", async () => {
    const id = await finished({ metadata: { k: "v" } });
    const { status, body } = await world.get(`/query/result/${id}`);
    expect(status).toBe(200);
    expect(body).toEqual({
      task_id: id,
      status: "success",
      output: "391",
      stop_reason: null,
      cost_usd: 0.003,
      tokens_used: { input: 110, output: 15, cached: 40, total: 125 },
      iterations: 2,
      duration_seconds: expect.any(Number),
      tools_called: ["calculate"],
      metadata: { k: "v" },
    });
    const whole = await world.get(`/query/result/${id}?include=tool_calls`);
    expect(whole.body.tool_calls).toEqual([
      { tool_name: "calculate", input: { expression: "17*23" }, output: { value: 391 }, duration_ms: 1, status: "ok" },
    ]);
    const { status: wrong, body: problem } = await world.get(`/query/result/${id}?include=everything`);
    expect(wrong).toBe(400);
    expect(paths(problem)).toEqual(["include"]);
  });

  test("200 for a partial one", async () => {
    const id = await world.submit();
    const owner = await world.own(id);
    await owner.end("partial", { output: "so far", stop_reason: "iteration_limit", error: null });
    const { status, body } = await world.get(`/query/result/${id}`);
    expect(status).toBe(200);
    expect(body).toMatchObject({ status: "partial", output: "so far", stop_reason: "iteration_limit" });
  });

  test("409 with the error and what there was for failed and cancelled ones", async () => {
    const failed = await world.submit();
    const owner = await world.own(failed);
    await owner.say("half of it");
    await owner.end("failed", {
      ...nothing,
      stop_reason: "auth_failed",
      error: { code: "auth_failed", message: "The provider refused the key." },
    });
    const answer = await world.get(`/query/result/${failed}?include=tool_calls`);
    expect(answer.status).toBe(409);
    expect(answer.headers.get("content-type")).toBe("application/problem+json; charset=utf-8");
    expect(answer.body).toMatchObject({
      type: "urn:drover:error:conflict",
      code: "conflict",
      status: 409,
      task_id: failed,
      error: { code: "auth_failed", message: "The provider refused the key." },
      result: { status: "error", output: "half of it", tool_calls: [] },
    });

    const cancelled = await world.submit();
    await world.post(`/query/${cancelled}/cancel`);
    expect((await world.get(`/query/result/${cancelled}`)).body).toMatchObject({
      code: "conflict",
      error: { code: "cancelled" },
      result: { output: null },
    });
  });
});

describe("GET /execution/{id}", () => {
  test("is the stored record, before and after the end", async () => {
    const id = await world.submit({ query: "17 * 23?", temperature: 0, context: { a: 1 } });
    const { body: before } = await world.get(`/execution/${id}`);
    expect(before).toMatchObject({
      task_id: id,
      status: "queued",
      query: "17 * 23?",
      agent: "default",
      context: { a: 1 },
      settings: { temperature: 0, max_iterations: 10, priority: 0, limits: { soft_seconds: 1500, hard_seconds: 1800 } },
      last_seq: 1,
      result: null,
      error: null,
    });
    const after = (await world.get(`/execution/${await finished()}`)).body;
    expect(after).toMatchObject({
      status: "completed",
      progress: { iterations: 2, steps: 3 },
      last_seq: 6,
      result: { output: "391", tool_calls: [{ tool_name: "calculate" }] },
      error: null,
    });
    expect(after.duration_seconds).toBe(after.result.duration_seconds);
  });
});

describe("an id that is none", () => {
  test.each([
    "run_",
    "run_xyz",
    `RUN_${"0".repeat(32)}`,
    `bat_${"0".repeat(32)}`,
    `run_${"0".repeat(33)}`,
    "%00",
    "a".repeat(201),
  ])("%s is not found", async (id) => {
    for (const path of [
      `/query/status/${id}`,
      `/query/result/${id}`,
      `/execution/${id}`,
      `/query/${id}/events`,
      `/query/${id}/deliveries`,
    ])
      expect((await world.get(path)).status, path).toBe(404);
    expect((await world.post(`/query/${id}/cancel`)).status).toBe(404);
  });
});

describe("GET /query", () => {
  let key: string;
  let ids: string[];
  beforeAll(async () => {
    key = await world.keyOf("submitter", "lister");
    ids = [];
    for (let n = 0; n < 7; n++)
      ids.unshift(
        await world.submit(
          {
            agent: n % 2 ? "researcher" : "default",
            user_id: `u${n % 3}`,
            metadata: { n: String(n), even: String(n % 2 === 0), "k.with.dots": "x" },
          },
          { key },
        ),
      );
    await world.post(`/query/${ids[0]}/cancel`, undefined, { key });
  });
  const list = async (query: string) => {
    const { status, body } = await world.get(`/query${query}`, { key });
    expect(status, JSON.stringify(body)).toBe(200);
    return body.data.map((run: { task_id: string }) => ids.indexOf(run.task_id)) as number[];
  };

  test("newest first", async () => {
    expect(await list("")).toEqual([0, 1, 2, 3, 4, 5, 6]);
  });

  test.each([
    ["status=cancelled", [0]],
    ["status=queued", [1, 2, 3, 4, 5, 6]],
    ["status=queued,cancelled", [0, 1, 2, 3, 4, 5, 6]],
    ["status=running&status=cancelled", [0]],
    ["agent=researcher", [1, 3, 5]],
    ["agent=nobody", []],
    ["user_id=u0", [0, 3, 6]],
    ["metadata.n=4", [2]],
    ["metadata.even=true&metadata.k.with.dots=x", [0, 2, 4, 6]],
    ["metadata.even=true&user_id=u0&status=queued", [6]],
    ["metadata.nope=1", []],
    ["created_after=2090-01-01T00:00:00Z", []],
    ["created_before=2090-01-01T00:00:00Z&limit=2", [0, 1]],
    ["created_after=2020-01-01T00:00:00%2B02:00&limit=1", [0]],
  ])("?%s", async (query, expected) => {
    expect(await list(`?${query}`)).toEqual(expected);
  });

  test("between two moments, to the millisecond", async () => {
    const { rows } = await world.pool.query<{ id: string; at: Date }>(
      "SELECT 'run_' || replace(id::text, '-', '') AS id, created_at AS at FROM runs",
    );
    const at = (index: number) => rows.find(({ id }) => id === ids[index])!.at.toISOString();
    expect(await list(`?created_after=${at(4)}&created_before=${at(1)}`)).toEqual([2, 3]);
  });

  test("a list that takes too long is told how to be shorter, and is no outage", async () => {
    const holder = await world.pool.connect();
    await holder.query("BEGIN; LOCK TABLE runs IN ACCESS EXCLUSIVE MODE");
    const { status, body } = await world.get("/query?agent=nobody", { key });
    await holder.query("COMMIT");
    holder.release();
    expect([status, body.code, paths(body)]).toEqual([400, "invalid_input", ["created_after"]]);
    expect(body.detail).toContain("narrow the time");
    expect(await list("?agent=nobody")).toEqual([]);
  });

  test("pages have no gap and no duplicate, also while runs are added, and the last has no cursor", async () => {
    const seen: string[] = [];
    let cursor = "";
    for (;;) {
      const { body } = await world.get(`/query?limit=3${cursor && `&cursor=${cursor}`}`, { key });
      seen.push(...body.data.map((run: { task_id: string }) => run.task_id));
      if (body.next_cursor === null) break;
      cursor = body.next_cursor;
      await world.submit({}, { key }).then((id) => world.post(`/query/${id}/cancel`, undefined, { key }));
    }
    expect(seen).toEqual(ids);
  });

  test.each([
    ["limit=0", "limit"],
    ["limit=201", "limit"],
    ["limit=x", "limit"],
    ["limit=1.5", "limit"],
    ["cursor=nope", "cursor"],
    ["cursor=", "cursor"],
    ["status=nope", "status"],
    ["status=", "status"],
    ["created_after=yesterday", "created_after"],
    ["created_before=2026-13-01T00:00:00Z", "created_before"],
    ["user_id=%00", "user_id"],
    ["agent=a&agent=b", "agent"],
    ["metadata.k=%00", "metadata.k"],
    ["metadata.=x", "metadata."],
    ["metadata=x", "metadata"],
    ["metadata.k=a&metadata.k=b", "metadata.k"],
    ["nope=1", "nope"],
  ])("?%s is refused by name", async (query, path) => {
    const { status, body } = await world.get(`/query?${query}`, { key });
    expect(status).toBe(400);
    expect(paths(body)).toEqual([path]);
  });
});

describe("POST /query/{id}/cancel", () => {
  test("a queued run is cancelled there and then; repeating is harmless", async () => {
    const id = await world.submit();
    for (let n = 0; n < 3; n++) {
      const { status, body } = await world.post(`/query/${id}/cancel`, n === 1 ? {} : undefined);
      expect(status).toBe(200);
      expect(body).toEqual({ task_id: id, status: "cancelled" });
    }
  });

  test("a running one is asked, and its worker decides when", async () => {
    const id = await world.submit();
    const owner = await world.own(id);
    const asked = await world.post(`/query/${id}/cancel`);
    expect(asked.status).toBe(202);
    expect(asked.body).toEqual({ task_id: id, status: "running", cancel_requested: true });
    expect((await world.post(`/query/${id}/cancel`)).status).toBe(202);
    expect((await world.get(`/query/status/${id}`)).body).toMatchObject({ status: "running", cancel_requested: true });
    await owner.end("completed", done);
    expect((await world.post(`/query/${id}/cancel`)).body).toEqual({ task_id: id, status: "cancelled" });
  });

  test("a final one answers with the status that won", async () => {
    const id = await finished();
    const { status, body } = await world.post(`/query/${id}/cancel`);
    expect(status).toBe(200);
    expect(body).toEqual({ task_id: id, status: "completed" });
  });

  test("a field in the body is one too many", async () => {
    const id = await world.submit();
    const { status, body } = await world.post(`/query/${id}/cancel`, { reason: "no" });
    expect(status).toBe(400);
    expect(paths(body)).toEqual(["reason"]);
    expect((await world.call("POST", `/query/${id}/cancel`, { raw: "[]" })).status).toBe(400);
    expect((await world.call("POST", `/query/${id}/cancel`, { raw: "" })).status).toBe(200);
  });

  test("whoever waits for it hears of it", async () => {
    const id = await world.submit();
    const waiting = world.get(`/query/status/${id}?wait=60`);
    await world.post(`/query/${id}/cancel`);
    expect((await waiting).body.status).toBe("cancelled");
  });
});
