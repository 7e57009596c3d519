import { fromWireId } from "@drover/protocol";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { openStream, type SseEvent, type SseStream } from "./sse.ts";
import { paths, startWorld, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld({ deps: { heartbeatMs: 50 } });
});
afterAll(() => world.close());

const open: SseStream[] = [];
afterEach(() => {
  for (const stream of open.splice(0)) stream.close();
});
async function follow(
  id: string,
  options: { after?: number; lastEventId?: string; accept?: string } = {},
): Promise<SseStream> {
  const query = options.after === undefined ? "" : `?after=${options.after}`;
  const stream = await openStream(`${world.url}/query/${id}/events${query}`, {
    authorization: `Bearer ${world.adminKey}`,
    ...(options.lastEventId !== undefined && { "last-event-id": options.lastEventId }),
    ...(options.accept !== undefined && { accept: options.accept }),
  });
  open.push(stream);
  return stream;
}

const done = { output: "391", stop_reason: null, error: null };
const partial = (text: string) => ({ iteration: 0, text });
const logged = (stream: SseStream) => stream.events.filter((event) => event.id !== undefined);
const seqs = (events: SseEvent[]) => events.map((event) => Number(event.id));
const upTo = (n: number, from = 1) => Array.from({ length: n - from + 1 }, (_, index) => from + index);
/** A run that has ended, with `events` events. */
async function ended(events: number): Promise<string> {
  const id = await world.submit();
  const owner = await world.own(id);
  for (let n = 0; n < events - 3; n++) await owner.append("model.partial", partial(`t${n}`));
  await owner.end("completed", done);
  return id;
}

describe("as JSON", () => {
  test("pages are oldest first, without a gap", async () => {
    const id = await ended(7);
    const { body } = await world.get(`/query/${id}/events`);
    expect(body.data.map((event: { seq: number }) => event.seq)).toEqual(upTo(7));
    expect(body.data[0]).toEqual({
      seq: 1,
      type: "run.queued",
      at: expect.stringMatching(/Z$/),
      data: expect.objectContaining({ query: "What is 17 * 23?" }),
    });
    expect(body.data.at(-1)).toMatchObject({ type: "run.completed", data: done });
    expect(body.next_cursor).toBeNull();

    const first = (await world.get(`/query/${id}/events?limit=3`)).body;
    const second = (await world.get(`/query/${id}/events?limit=4&cursor=${first.next_cursor}`)).body;
    expect([...first.data, ...second.data].map((event) => event.seq)).toEqual(upTo(7));
    expect(second.next_cursor).toBeNull();
    expect(
      (await world.get(`/query/${id}/events?after=5`)).body.data.map((event: { seq: number }) => event.seq),
    ).toEqual([6, 7]);
    expect((await world.get(`/query/${id}/events?after=7`)).body).toEqual({ data: [], next_cursor: null });
  });

  test.each(["after=-1", "after=x", "after=1.5", "limit=0", "cursor=nope", "after=1&cursor=ZXZlbnRzIDE"])(
    "?%s is refused",
    async (query) => {
      const id = await world.submit();
      const { status, body } = await world.get(`/query/${id}/events?${query}`);
      expect(status).toBe(400);
      expect(paths(body)).toEqual([query.split("=")[0]]);
    },
  );

  test("is what a wildcard gets", async () => {
    const id = await world.submit();
    const { headers } = await world.get(`/query/${id}/events`, { headers: { accept: "*/*" } });
    expect(headers.get("content-type")).toContain("application/json");
  });
});

describe("as a stream", () => {
  test("a late subscriber gets everything, and the stream ends after the last event", async () => {
    const id = await ended(12);
    const stream = await follow(id);
    await stream.ended;
    expect(stream.status).toBe(200);
    expect(stream.headers).toMatchObject({
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache, no-transform",
      "x-request-id": expect.any(String),
    });
    expect(seqs(stream.events)).toEqual(upTo(12));
    const { body } = await world.get(`/query/${id}/events`);
    expect(stream.events.map(({ data }) => JSON.parse(data))).toEqual(body.data);
    expect(stream.events.map(({ event }) => event)).toEqual(body.data.map((event: { type: string }) => event.type));
  });

  test("events come as they happen", async () => {
    const id = await world.submit();
    const stream = await follow(id);
    await stream.next((event) => event.event === "run.queued");
    const owner = await world.own(id);
    await stream.next((event) => event.event === "run.started");
    await owner.append("model.partial", partial("The"));
    await stream.next((event) => event.event === "model.partial");
    await owner.end("completed", done);
    await stream.ended;
    expect(seqs(stream.events)).toEqual([1, 2, 3, 4]);
  });

  test("many followers that come, go and resume while events are appended have every event once", async () => {
    const id = await world.submit();
    const owner = await world.own(id);
    const total = 300;
    const appending = (async () => {
      for (let n = 0; n < total - 3; n++) await owner.append("model.partial", partial(`t${n}`));
      await owner.end("completed", done);
    })();
    const resuming = async (every: number): Promise<number[]> => {
      const seen: number[] = [];
      while (seen.at(-1) !== total) {
        const last = seen.at(-1) ?? 0;
        const stream = await follow(id, last > 0 ? { lastEventId: String(last) } : {});
        const goal = Math.min(last + every, total);
        await stream.next((event) => Number(event.id) >= goal);
        stream.close();
        seen.push(...seqs(logged(stream)));
      }
      return seen;
    };
    const seen = await Promise.all([resuming(7), resuming(31), resuming(100), resuming(1000)]);
    await appending;
    for (const one of seen) expect(one).toEqual(upTo(total));
  });

  test("Last-Event-ID goes before ?after; both resume after what was seen", async () => {
    const id = await ended(6);
    const byQuery = await follow(id, { after: 4 });
    await byQuery.ended;
    expect(seqs(byQuery.events)).toEqual([5, 6]);
    const byHeader = await follow(id, { after: 1, lastEventId: "5" });
    await byHeader.ended;
    expect(seqs(byHeader.events)).toEqual([6]);
  });

  test("a client that has the last event of a final run is told with 204 not to come again", async () => {
    const id = await ended(4);
    const stream = await follow(id, { lastEventId: "4" });
    await stream.ended;
    expect(stream.status).toBe(204);
    expect(stream.events).toEqual([]);
  });

  test.each(["5", "-1", "x", "99999999999"])(
    "Last-Event-ID %s of a log with four events is refused",
    async (lastEventId) => {
      const id = await ended(4);
      const { status, body } = await world.get(`/query/${id}/events`, {
        headers: { accept: "text/event-stream", "last-event-id": lastEventId },
      });
      expect(status).toBe(400);
      expect(paths(body)).toEqual(["Last-Event-ID"]);
      const paged = await world.get(`/query/${id}/events?limit=5`, { headers: { accept: "text/event-stream" } });
      expect(paths(paged.body)).toEqual(["limit"]);
    },
  );

  test("text shows as it streams, between the events and without an id", async () => {
    const id = await world.submit();
    const stream = await follow(id, { accept: "text/html, text/event-stream;q=0.9" });
    await stream.next((event) => event.event === "run.queued");
    const owner = await world.own(id);
    const runId = fromWireId("run", id)!;
    // Best effort: said again until it is heard.
    let heard: SseEvent | undefined;
    const listening = stream
      .next((event) => event.event === "delta")
      .then((event) => {
        heard = event;
      });
    while (!heard) {
      world.signals.delta(runId, owner.epoch, "three\n\nhundred", { iteration: 1, offset: 0 });
      await Promise.race([listening, new Promise((resolve) => setTimeout(resolve, 100))]);
    }
    expect(heard.id).toBeUndefined();
    expect(JSON.parse(heard.data)).toEqual({
      task_id: id,
      epoch: 1,
      iteration: 1,
      offset: 0,
      text: "three\n\nhundred",
    });
    await owner.end("completed", done);
    await stream.ended;
    expect(seqs(logged(stream))).toEqual([1, 2, 3]);
  });

  test("comments keep a quiet connection alive", async () => {
    const id = await world.submit();
    const stream = await follow(id);
    await expect.poll(() => stream.comments.length).toBeGreaterThanOrEqual(2);
    expect(stream.comments).toContain("heartbeat");
  });

  test("a client that does not read holds nobody up and gets everything when it does", async () => {
    const id = await world.submit();
    const owner = await world.own(id);
    const slow = await follow(id);
    await slow.next((event) => event.event === "run.started");
    slow.pause();
    const large = "x".repeat(30_000);
    for (let n = 0; n < 200; n++) await owner.append("model.partial", partial(large));
    await owner.end("completed", done);
    const quick = await follow(id);
    await quick.ended;
    expect(seqs(logged(quick))).toEqual(upTo(203));
    slow.resume();
    await slow.ended;
    expect(seqs(logged(slow))).toEqual(upTo(203));
  });

  test("a client that hangs up leaves nothing behind, also one that has stopped reading", async () => {
    const id = await world.submit();
    const owner = await world.own(id);
    const streamsOpen = async () =>
      Number(/^drover_streams_open (\d+)$/m.exec((await world.get("/metrics")).text)?.[1]);
    await expect.poll(streamsOpen).toBe(0);
    const streams = await Promise.all(Array.from({ length: 20 }, () => follow(id)));
    await Promise.all(streams.map((stream) => stream.next((event) => event.event === "run.started")));
    expect(await streamsOpen()).toBe(20);
    for (const stream of streams) stream.pause();
    const large = "x".repeat(30_000);
    for (let n = 0; n < 100; n++) await owner.append("model.partial", partial(large));
    for (const stream of streams) stream.close();
    await expect.poll(streamsOpen).toBe(0);
    await owner.end("completed", done);
    expect((await world.get(`/query/status/${id}`)).body.status).toBe("completed");
  });

  test("an API that stops ends its streams, and a client resumes at another one", async () => {
    const other = await startWorld();
    const id = await other.submit();
    const stream = await openStream(`${other.url}/query/${id}/events`, { authorization: `Bearer ${other.adminKey}` });
    await stream.next((event) => event.event === "run.queued");
    const waiting = other.get(`/query/status/${id}?wait=60`);
    const synchronous = other.post("/agent/query", { query: "x" });
    await expect.poll(async () => (await other.get("/query")).body.data.length).toBe(2);
    await other.api.close();
    await stream.ended;
    expect(seqs(stream.events)).toEqual([1]);
    expect((await waiting).body.status).toBe("queued");
    expect((await synchronous).status).toBe(202);
    await other.close();
  });

  test("a client that has stopped reading does not keep the API from stopping", async () => {
    const other = await startWorld();
    const id = await other.submit();
    const owner = await other.own(id);
    const stream = await openStream(`${other.url}/query/${id}/events`, { authorization: `Bearer ${other.adminKey}` });
    await stream.next((event) => event.event === "run.started");
    stream.pause();
    const large = "x".repeat(30_000);
    for (let n = 0; n < 300; n++) await owner.append("model.partial", partial(large));
    await other.api.close();
    stream.close();
    await other.close();
  });
});
