/** One suite for every carrier of live signals. Two `Signals` stand for two processes. */
import { randomUUID } from "node:crypto";
import { inMemorySignals, openSignals, type Signals } from "@drover/queue";
import { afterAll, afterEach, beforeAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { startProxy } from "../support/proxy.ts";
import { backends, type Place, proxiedBackends, type Server } from "./queue-backends.ts";
import { logger, patience } from "./queue-suite.ts";

/** A follower that notes what it is told. */
function listener() {
  const told = { news: 0, deltas: [] as [epoch: number, text: string][] };
  return {
    told,
    news: () => {
      told.news++;
    },
    delta: (epoch: number, text: string) => {
      told.deltas.push([epoch, text]);
    },
    text: () => told.deltas.map(([, text]) => text).join(""),
  };
}

/** What holds with and without other processes. `pair` gives a publisher and one who follows. */
function contract(pair: () => Promise<{ here: Signals; there: Signals }>): void {
  test("tells followers of a run, and nobody else", async () => {
    const { here, there } = await pair();
    const [runId, other] = [randomUUID(), randomUUID()];
    const [one, two, stranger] = [listener(), listener(), listener()];
    there.follow(runId, one);
    there.follow(runId, two);
    there.follow(other, stranger);
    await heard(here, runId, one);
    await expect.poll(() => two.told.news, patience).toBe(one.told.news);
    expect(stranger.told.news).toBe(0);
  });

  test("gathers the news of one turn", async () => {
    const { here, there } = await pair();
    const runId = randomUUID();
    const follower = listener();
    there.follow(runId, follower);
    await heard(here, runId, follower);
    const before = follower.told.news;
    for (let index = 0; index < 100; index++) here.news(runId);
    await expect.poll(() => follower.told.news, patience).toBe(before + 1);
  });

  test("brings text in order, in few pieces, each with its epoch", async () => {
    const { here, there } = await pair();
    const runId = randomUUID();
    const follower = listener();
    there.follow(runId, follower);
    await heard(here, runId, follower);
    const words = Array.from({ length: 1000 }, (_, index) => `${index} `);
    for (const word of words.slice(0, 700)) here.delta(runId, 1, word);
    for (const word of words.slice(700)) here.delta(runId, 2, word);
    await expect.poll(() => follower.text(), patience).toBe(words.join(""));
    expect(follower.told.deltas).toEqual([
      [1, words.slice(0, 700).join("")],
      [2, words.slice(700).join("")],
    ]);
  });

  test("brings text with its place, also where it is cut into pieces; a call that is made again begins anew", async () => {
    const { here, there } = await pair();
    const runId = randomUUID();
    const probe = listener();
    there.follow(runId, probe);
    await heard(here, runId, probe);
    const texts = new Map<number, string>();
    there.follow(runId, {
      news: () => {},
      delta: (_epoch, text, at) => {
        const { iteration, offset } = at!;
        // What anybody would do with it.
        texts.set(iteration, (texts.get(iteration) ?? "").slice(0, offset) + text);
      },
    });
    const long = "ж🦆".repeat(8000);
    let offset = 0;
    for (const piece of ["cut ", "off"]) {
      here.delta(runId, 1, piece, { iteration: 1, offset });
      offset += piece.length;
    }
    here.delta(runId, 1, "again ", { iteration: 1, offset: 0 });
    here.delta(runId, 1, long, { iteration: 1, offset: 6 });
    here.delta(runId, 1, "next", { iteration: 2, offset: 0 });
    await expect
      .poll(() => [...texts], patience)
      .toEqual([
        [1, `again ${long}`],
        [2, "next"],
      ]);
  });

  test("brings a run's text before the news that follows it", async () => {
    const { here, there } = await pair();
    const runId = randomUUID();
    const probe = listener();
    there.follow(runId, probe);
    await heard(here, runId, probe);
    const order: string[] = [];
    there.follow(runId, { news: () => order.push("news"), delta: (_, text) => order.push(text) });
    here.delta(runId, 1, "text");
    here.news(runId);
    await expect.poll(() => order, patience).toEqual(["text", "news"]);
  });

  test("brings long and difficult text whole", async () => {
    const { here, there } = await pair();
    const runId = randomUUID();
    const follower = listener();
    there.follow(runId, follower);
    await heard(here, runId, follower);
    const text = `${"a".repeat(20_000)}${"🦆".repeat(9001)}\u0000'"\\\n${"ж".repeat(3000)}${"a".repeat(20_000)}`;
    here.delta(runId, 1, text);
    await expect.poll(() => follower.text().length, patience).toBe(text.length);
    expect(follower.text()).toBe(text);
  });

  test("reaches 500 followed runs at once", async () => {
    const { here, there } = await pair();
    const runs = Array.from({ length: 500 }, () => ({ runId: randomUUID(), follower: listener() }));
    for (const { runId, follower } of runs) there.follow(runId, follower);
    const last = runs.at(-1)!;
    await heard(here, last.runId, last.follower);
    for (const { runId } of runs) here.news(runId);
    await expect.poll(() => runs.filter(({ follower }) => follower.told.news === 0).length, patience).toBe(0);
  });

  test("tells nothing after the follower left", async () => {
    const { here, there } = await pair();
    const runId = randomUUID();
    const [stays, leaves] = [listener(), listener()];
    there.follow(runId, stays);
    const leave = there.follow(runId, leaves);
    await heard(here, runId, stays);
    const before = leaves.told.news;
    leave();
    leave();
    await heard(here, runId, stays);
    expect(leaves.told.news).toBe(before);
  });

  test("rings bells for who listens, once a turn", async () => {
    const { here, there } = await pair();
    let deliveries = 0;
    let other = 0;
    const stop = there.onRing("deliveries", () => deliveries++);
    there.onRing("other", () => other++);
    await expect
      .poll(() => {
        here.ring("deliveries");
        return deliveries;
      }, patience)
      .toBeGreaterThan(0);
    expect(other).toBe(0);
    stop();
    const before = deliveries;
    here.ring("deliveries");
    here.ring("other");
    here.ring("other");
    await expect.poll(() => other, patience).toBe(1);
    expect(deliveries).toBe(before);
  });

  test("a follower that throws harms no other", async () => {
    const { here, there } = await pair();
    const runId = randomUUID();
    const follower = listener();
    there.follow(runId, {
      news: () => {
        throw new Error("a bug");
      },
    });
    there.follow(runId, follower);
    await heard(here, runId, follower);
  });

  test("says nothing after closing", async () => {
    const { here, there } = await pair();
    const runId = randomUUID();
    const follower = listener();
    const leave = there.follow(runId, follower);
    await heard(here, runId, follower);
    const before = follower.told.news;
    await there.close();
    await there.close();
    here.news(runId);
    there.news(runId);
    there.delta(runId, 1, "late");
    there.ring("late");
    leave();
    await here.close();
    expect(follower.told.news).toBe(before);
    expect(follower.told.deltas).toEqual([]);
  });
}

/** Publishes until the follower hears it: the first news may come before the publisher knows of the interest. */
async function heard(publisher: Signals, runId: string, follower: ReturnType<typeof listener>): Promise<void> {
  const before = follower.told.news;
  await expect
    .poll(() => {
      if (follower.told.news === before) publisher.news(runId);
      return follower.told.news;
    }, patience)
    .toBeGreaterThan(before);
  // More of them may be on their way: what is sent last comes last.
  const last = `last of these: ${randomUUID()}`;
  const textBefore = follower.told.deltas.length;
  publisher.delta(runId, 0, last);
  await expect.poll(() => follower.told.deltas.some(([, text]) => text === last), patience).toBe(true);
  follower.told.deltas.length = textBefore;
}

describe("signals in one process", () => {
  contract(async () => {
    const signals = inMemorySignals(logger);
    onTestFinished(() => signals.close());
    return { here: signals, there: signals };
  });
});

/** One server, and signals that are closed after each test. */
function useServer(start: () => Promise<Server>) {
  let server: Server;
  const open: Signals[] = [];
  beforeAll(async () => {
    server = await start();
  });
  afterEach(async () => {
    await Promise.all(open.splice(0).map((signals) => signals.close()));
  });
  afterAll(() => server.stop());
  async function openAt(place: Pick<Place, "config" | "postgresUrl">): Promise<Signals> {
    const signals = await openSignals(place.config, { logger, directUrl: place.postgresUrl });
    open.push(signals);
    return signals;
  }
  return { server: () => server, openAt };
}

describe.each(backends)("signals over $name", ({ start }) => {
  const { server, openAt } = useServer(start);

  describe("between processes", () => {
    contract(async () => {
      const place = await server().place();
      return { here: await openAt(place), there: await openAt(place) };
    });
  });

  describe("within one process", () => {
    contract(async () => {
      const signals = await openAt(await server().place());
      return { here: signals, there: signals };
    });
  });

  test("a follower in the publisher's own process hears everything once", async () => {
    const place = await server().place();
    const [here, there] = [await openAt(place), await openAt(place)];
    const runId = randomUUID();
    const [mine, theirs] = [listener(), listener()];
    there.follow(runId, theirs);
    await heard(here, runId, theirs);
    here.follow(runId, mine);
    const before = theirs.told.news;
    here.news(runId);
    here.delta(runId, 3, "once");
    await expect.poll(() => theirs.text(), patience).toBe("once");
    expect(theirs.told.news).toBe(before + 1);
    // What the other process heard has also come back to this one by now.
    there.news(runId);
    await expect.poll(() => mine.told.news, patience).toBe(2);
    expect(mine.told.deltas).toEqual([[3, "once"]]);
  });

  test("nothing of a run that nobody follows goes over the wire", async () => {
    const place = await server().place();
    const tap = await place.tap();
    onTestFinished(() => tap.close());
    const [here, there] = [await openAt(place), await openAt(place)];
    const [followed, own, nobodys] = [randomUUID(), randomUUID(), randomUUID()];
    const follower = listener();
    there.follow(followed, follower);
    // Followed in the publisher's own process only.
    here.follow(own, listener());
    await heard(here, followed, follower);
    for (const runId of [nobodys, own]) {
      here.news(runId);
      here.delta(runId, 1, `text of ${runId}`);
    }
    await heard(here, followed, follower);
    here.delta(followed, 1, "the end");
    await expect.poll(() => tap.messages.some(({ text }) => text.includes("the end")), patience).toBe(true);
    const live = tap.messages.filter(({ channel }) => channel === "live").map(({ text }) => text);
    expect(live.join()).toContain(followed);
    expect(live.join()).not.toContain(nobodys);
    expect(live.join()).not.toContain(own);
  });

  test("many signals of one turn are few messages", async () => {
    const place = await server().place();
    const tap = await place.tap();
    onTestFinished(() => tap.close());
    const [here, there] = [await openAt(place), await openAt(place)];
    const runs = Array.from({ length: 500 }, () => ({ runId: randomUUID(), follower: listener() }));
    for (const { runId, follower } of runs) there.follow(runId, follower);
    for (const { runId, follower } of runs.slice(-1)) await heard(here, runId, follower);
    const before = tap.messages.filter(({ channel }) => channel === "live").length;
    for (const { runId } of runs) {
      here.delta(runId, 1, "word ");
      here.news(runId);
    }
    await expect.poll(() => runs.filter(({ follower }) => follower.text() !== "word ").length, patience).toBe(0);
    // 500 ids twice are some 65 kB: the 1,000 signals fit in 10 messages of NOTIFY's 8 kB.
    expect(tap.messages.filter(({ channel }) => channel === "live").length - before).toBeLessThanOrEqual(12);
  });

  test("a publisher that starts later asks who follows", async () => {
    const place = await server().place();
    const there = await openAt(place);
    const runId = randomUUID();
    const follower = listener();
    there.follow(runId, follower);
    const late = await openAt(place);
    await heard(late, runId, follower);
  });

  test("15,000 runs that one process follows are announced to a publisher that starts later", async () => {
    const place = await server().place();
    const there = await openAt(place);
    const runs = Array.from({ length: 15_000 }, () => ({ runId: randomUUID(), follower: listener() }));
    for (const { runId, follower } of runs) there.follow(runId, follower);
    const late = await openAt(place);
    const deaf = () => {
      const left = runs.filter(({ follower }) => follower.told.news === 0);
      for (const { runId } of left.slice(0, 5000)) late.news(runId);
      return left.length;
    };
    await expect.poll(deaf, { ...patience, interval: 200 }).toBe(0);
  });

  test("interest ends 30 s after the last announcement", async () => {
    const place = await server().place();
    const tap = await place.tap();
    onTestFinished(() => tap.close());
    const [here, there] = [await openAt(place), await openAt(place)];
    const [gone, kept] = [randomUUID(), randomUUID()];
    const [leaver, stayer] = [listener(), listener()];
    const leave = there.follow(gone, leaver);
    await heard(here, gone, leaver);
    leave();
    const now = performance.now.bind(performance);
    const clock = vi.spyOn(performance, "now").mockImplementation(() => now() + 31_000);
    onTestFinished(() => clock.mockRestore());
    there.follow(kept, stayer);
    await heard(here, kept, stayer);
    const before = tap.messages.length;
    here.news(gone);
    await heard(here, kept, stayer);
    const after = tap.messages.slice(before).map(({ text }) => text);
    expect(after.join()).toContain(kept);
    expect(after.join()).not.toContain(gone);
  });

  test("goes on after a restart of the server, and tells followers that they may have missed something", async () => {
    const place = await server().place();
    const [here, there] = [await openAt(place), await openAt(place)];
    const runId = randomUUID();
    const follower = listener();
    let rings = 0;
    there.follow(runId, follower);
    there.onRing("bell", () => rings++);
    await heard(here, runId, follower);
    const before = follower.told.news;
    await server().halt();
    here.news(runId);
    here.delta(runId, 1, "lost");
    here.ring("bell");
    await server().restart();
    // Nobody publishes now.
    await expect.poll(() => follower.told.news, patience).toBeGreaterThan(before);
    await expect.poll(() => rings, patience).toBeGreaterThan(0);
    await heard(here, runId, follower);
    here.delta(runId, 1, "again");
    await expect.poll(() => follower.text(), patience).toMatch(/again$/);
  });
});

describe.each(proxiedBackends)("signals over $name and a bad network", ({ start }) => {
  const { server, openAt } = useServer(start);

  test("a connection that is cut comes back", async () => {
    const place = await server().place();
    const proxy = await startProxy(server().port);
    onTestFinished(() => proxy.close());
    const [here, there] = [await openAt(place), await openAt(place.through(proxy.port))];
    const runId = randomUUID();
    const follower = listener();
    there.follow(runId, follower);
    await heard(here, runId, follower);
    proxy.cut();
    await heard(here, runId, follower);
  });

  test("a connection that fell silent is noticed and replaced", { timeout: 90_000 }, async () => {
    const place = await server().place();
    const proxy = await startProxy(server().port);
    onTestFinished(() => proxy.close());
    const [here, there] = [await openAt(place), await openAt(place.through(proxy.port))];
    const runId = randomUUID();
    const follower = listener();
    there.follow(runId, follower);
    await heard(here, runId, follower);
    proxy.forget();
    const before = follower.told.news;
    await expect
      .poll(
        () => {
          here.news(runId);
          return follower.told.news;
        },
        { timeout: 60_000, interval: 200 },
      )
      .toBeGreaterThan(before);
  });

  test("is opened, used and closed while the server cannot be reached", async () => {
    const place = await server().place();
    const proxy = await startProxy(server().port);
    proxy.refuse(true);
    onTestFinished(() => proxy.close());
    const [here, there] = [await openAt(place.through(proxy.port)), await openAt(place.through(proxy.port))];
    const runId = randomUUID();
    const [mine, theirs] = [listener(), listener()];
    here.follow(runId, mine);
    there.follow(runId, theirs);
    await heard(here, runId, mine);
    here.ring("bell");
    proxy.refuse(false);
    await heard(here, runId, theirs);
  });
});
