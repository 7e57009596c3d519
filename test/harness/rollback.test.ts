/** Undoing: the plan that a log gives, and transactions over a state in memory. */
import {
  type AnyTool,
  defineTool,
  type LoggedToolCall,
  type NewEvent,
  RollbackCoordinator,
  ToolRegistry,
  type ToolResult,
} from "@drover/harness";
import { fold, planRollback, type RollbackPlan } from "@drover/harness/worker";
import { describe, expect, it } from "vitest";
import { z } from "zod";

const context = {
  runId: "r",
  tenant: "t",
  callId: "c",
  idempotencyKey: "k",
  signal: new AbortController().signal,
  workspace: "w",
};

function toolOf(name: string, more: Partial<AnyTool> = {}): AnyTool {
  return defineTool({
    name,
    description: name,
    input: z.object({ n: z.number() }),
    permission: "write",
    effect: "idempotent",
    execute: () => null,
    ...more,
  }) as AnyTool;
}

type Done = { tool: AnyTool; intent?: false | { input: unknown }; result?: Partial<ToolResult> | null };

/** The log of a run that made these calls, one turn each. `result: null`: nobody saw how it ended. */
function logOf(done: Done[]): NewEvent[] {
  const queued: NewEvent = {
    type: "run.queued",
    data: {
      query: "",
      agent: "default",
      max_iterations: 9,
      limits: { soft_seconds: 1, hard_seconds: 1 },
      retry: { max_attempts: 1, backoff_ms: 0, max_backoff_ms: 0 },
    },
  };
  const turns = done.flatMap(({ tool, intent, result }, at): NewEvent[] => {
    const iteration = at + 1;
    const call: LoggedToolCall = { id: `c${at}`, name: tool.name, input: { n: at } };
    const about = { iteration, index: 0, call_id: call.id, tool_name: tool.name };
    const usage = { input: 0, output: 0, cached: 0 };
    return [
      {
        type: "model.call",
        data: {
          iteration,
          model: "m/m",
          text: "",
          tool_calls: [call],
          finish_reason: "",
          usage,
          cost_usd: 0,
          duration_ms: 0,
        },
      },
      ...(intent === false || tool.effect === "pure"
        ? []
        : [{ type: "tool.intent" as const, data: { ...about, idempotency_key: `k${at}`, ...intent } }]),
      ...(result === null
        ? []
        : [
            {
              type: "tool.result" as const,
              data: { ...about, status: "ok" as const, output: { made: at }, duration_ms: 0, ...result },
            },
          ]),
    ];
  });
  return [queued, ...turns];
}

type Messages = Parameters<RollbackPlan["model"]["call"]>[0]["messages"];

/** Runs the plan as the loop would, to its report or so many turns. `messages`: where it goes on. */
async function carryOut(
  events: NewEvent[],
  tools: AnyTool[],
  { messages = [], turns = 99 }: { messages?: Messages; turns?: number } = {},
): Promise<string> {
  const { model, registry, agent } = planRollback(fold(JSON.parse(JSON.stringify(events))), new ToolRegistry(tools));
  const box = registry.boxFor("default", agent);
  for (let turn = 0; ; turn++) {
    if (turn === turns) return "";
    const reply = await model.call({ messages, tools: box.specs }, { signal: context.signal });
    if (!reply.ok) throw new Error(reply.message);
    const [call] = reply.toolCalls;
    if (!call) return reply.text;
    const output = await Promise.resolve(box.get(call.name)!.execute({}, context)).then(
      (value) => ({ type: "json", value: value as never }) as const,
      (error: Error) => ({ type: "error-text", value: error.message }) as const,
    );
    messages.push(...reply.messages, {
      role: "tool",
      content: [{ type: "tool-result", toolCallId: call.id, toolName: call.name, output }],
    });
  }
}

describe("the plan", () => {
  it("undoes in the reverse order, with the arguments that ran and what they gave", async () => {
    const undone: unknown[] = [];
    const write = toolOf("write", { compensate: (done) => void undone.push(done) });
    const events = logOf([{ tool: write }, { tool: write, intent: { input: { n: 41 } } }, { tool: write }]);
    expect(await carryOut(events, [write])).toBe(
      [
        "3 of 3 effects undone, the last one first.",
        'undone: write {"n":2}',
        'undone: write {"n":41}',
        'undone: write {"n":0}',
      ].join("\n"),
    );
    expect(undone).toEqual([
      { input: { n: 2 }, output: { made: 2 } },
      { input: { n: 41 }, output: { made: 1 } },
      { input: { n: 0 }, output: { made: 0 } },
    ]);
  });

  it("names what it could not undo, and why", async () => {
    const undone: unknown[] = [];
    const compensate = (done: unknown) => void undone.push(done);
    const tools = {
      write: toolOf("write", { compensate }),
      bare: toolOf("bare"),
      send: toolOf("send", { permission: "irreversible" }),
      stuck: toolOf("stuck", { effect: "unsafe", compensate }),
      gone: toolOf("gone", { compensate }),
      fails: toolOf("fails", {
        compensate: () => {
          throw new Error("it is locked");
        },
      }),
    };
    const events = logOf([
      { tool: tools.write },
      { tool: tools.bare },
      { tool: tools.send },
      { tool: tools.gone },
      { tool: tools.fails },
      { tool: tools.stuck, result: null },
    ]);
    const { gone: _, ...left } = tools;
    expect((await carryOut(events, Object.values(left))).split("\n")).toEqual([
      "1 of 6 effects undone, the last one first.",
      'NOT undone: stuck {"n":5} (whether it took effect is not known)',
      'NOT undone: fails {"n":4} (it is locked)',
      'NOT undone: gone {"n":3} (there is no such tool any more)',
      'NOT undone: send {"n":2} (it is irreversible)',
      'NOT undone: bare {"n":1} (the tool has no compensate)',
      'undone: write {"n":0}',
    ]);
    expect(undone).toEqual([{ input: { n: 0 }, output: { made: 0 } }]);
  });

  it("hands `compensate` only what the tool returned: a call that failed or whose result was withheld is named", async () => {
    const undone: unknown[] = [];
    const write = toolOf("write", { compensate: (done) => void undone.push(done) });
    const events = logOf([
      { tool: write },
      { tool: write, result: { status: "error", output: "connection lost", problem: "tool" } },
      { tool: write, result: { status: "denied", output: "withheld", problem: "withheld" } },
      { tool: write, result: { status: "skipped", output: "not tried again", problem: "time" } },
    ]);
    const report = await carryOut(events, [write]);
    expect(undone).toEqual([{ input: { n: 0 }, output: { made: 0 } }]);
    expect(report.split("\n").slice(0, 1)).toEqual(["1 of 4 effects undone, the last one first."]);
    expect(report.match(/NOT undone/g)).toHaveLength(3);
  });

  it("says nothing of a call that says it did nothing", async () => {
    const write = toolOf("write", { compensate: () => "undone" });
    const result = { status: "error", output: "no service", problem: "nothing_done" } as const;
    expect(await carryOut(logOf([{ tool: write, result }]), [write])).toMatch(/nothing to undo/);
  });

  it("leaves reads and what was never begun alone", async () => {
    const read = toolOf("read", { permission: "read", effect: "pure" });
    const calc = toolOf("calc", { effect: "pure", compensate: () => null });
    const write = toolOf("write", { compensate: () => null });
    const events = logOf([
      { tool: read },
      { tool: calc, result: { status: "error", output: "no", problem: "tool" } },
      { tool: write, intent: false, result: { status: "rejected", output: "no", problem: "rejected" } },
    ]);
    expect(await carryOut(events, [read, calc, write])).toBe("There was nothing to undo: the run changed nothing.");
  });

  it("is the same every time, so that a resumed rollback goes on where it was", () => {
    const tools = new ToolRegistry([toolOf("write", { compensate: () => null })]);
    const state = () => fold(logOf([{ tool: tools.get("write")! }, { tool: tools.get("write")! }]));
    const names = () =>
      planRollback(state(), tools)
        .registry.boxFor("default", {})
        .specs.map(({ name }) => name);
    expect(names()).toEqual(["undo_2_0_write", "undo_1_0_write"]);
    expect(names()).toEqual(names());
  });

  it("goes on where it was after a deploy that took a tool away: nothing twice, nothing left out, nothing mixed up", async () => {
    const undone: number[] = [];
    const compensate = ({ input: { n } }: { input: { n: number } }) => void undone.push(n);
    const [first, second, calc] = [
      toolOf("first", { compensate }),
      toolOf("second", { compensate }),
      toolOf("calc", { effect: "pure", compensate }),
    ];
    const events = logOf([{ tool: second }, { tool: second }, { tool: calc }, { tool: first }]);
    const messages: Messages = [];
    await carryOut(events, [first, second, calc], { messages, turns: 2 });
    expect(undone).toEqual([3, 2]);
    expect((await carryOut(events, [second], { messages })).split("\n")).toEqual([
      // What a pure tool did is unknown once the tool is gone.
      "3 of 3 effects undone, the last one first.",
      'undone: first {"n":3}',
      'undone: second {"n":1}',
      'undone: second {"n":0}',
    ]);
    expect(undone).toEqual([3, 2, 1, 0]);
  });

  it("keeps an undo's effect, so that an unsafe one is never repeated in silence", () => {
    const kinds = ["pure", "idempotent", "unsafe"] as const;
    const tools = kinds.map((effect) => toolOf(effect, { effect, timeoutMs: 5, compensate: () => null }));
    const { registry } = planRollback(fold(logOf(tools.map((tool) => ({ tool })))), new ToolRegistry(tools));
    expect(
      ["undo_3_0_unsafe", "undo_2_0_idempotent", "undo_1_0_pure"].map((name) => registry.get(name)!.effect),
    ).toEqual(["unsafe", "idempotent", "idempotent"]);
    expect(registry.get("undo_3_0_unsafe")!.timeoutMs).toBe(5);
  });
});

describe("RollbackCoordinator", () => {
  it("keeps what a transaction did, and returns what it returned", async () => {
    const coordinator = new RollbackCoordinator();
    const state = { n: 1 };
    expect(await coordinator.transaction(state, "add", async (given) => (given.n += 1))).toBe(2);
    expect(state).toEqual({ n: 2 });
    expect(coordinator.history).toEqual(["add"]);
  });

  it.each([
    [
      "an object",
      () => ({ a: 1, deep: { list: [1, { x: 1 }], when: new Date(5) } }),
      (state: never) => Object.assign(state, { a: 2, b: 3 }),
    ],
    [
      "a nested value",
      () => ({ deep: { list: [1, { x: 1 }] } }),
      (state: { deep: { list: unknown[] } }) => ((state.deep.list[1] as { x: number }).x = 9),
    ],
    ["a key taken away", () => ({ a: 1, b: 2 }), (state: { a?: number }) => delete state.a],
    ["an array", () => [1, 2, { x: 1 }], (state: unknown[]) => state.splice(0, 2, "new")],
    [
      "a Map",
      () => new Map<string, unknown>([["a", { x: 1 }]]),
      (state: Map<string, unknown>) => state.set("b", 1).delete("a"),
    ],
    ["a Set", () => new Set([1, 2]), (state: Set<number>) => state.add(3).delete(1)],
    ["an array of 300,000", () => Array.from({ length: 300_000 }, (_, n) => n), (state: number[]) => state.reverse()],
  ] as [string, () => object, (state: object) => unknown][])(
    "gives back %s, the same object, when it throws",
    async (_, make, change) => {
      const coordinator = new RollbackCoordinator();
      const state = make();
      const failed = coordinator.transaction(state, "change", async (given) => {
        change(given);
        await Promise.resolve();
        expect(given).not.toEqual(make());
        throw new Error("in the middle");
      });
      await expect(failed).rejects.toThrow("in the middle");
      expect(state).toEqual(make());
      expect(coordinator.history).toEqual([]);
      expect(coordinator.rollbackLast()).toBeNull();
    },
  );

  it("takes back the last committed one first, then the one before", async () => {
    const coordinator = new RollbackCoordinator();
    const state = { log: [] as string[] };
    for (const name of ["one", "two", "three"])
      await coordinator.transaction(state, name, (given) => void given.log.push(name));
    await coordinator.transaction(state, "bad", () => Promise.reject(new Error("no"))).catch(() => {});
    expect(coordinator.history).toEqual(["one", "two", "three"]);
    expect(coordinator.rollbackLast()).toBe("three");
    expect(state.log).toEqual(["one", "two"]);
    expect(coordinator.rollbackLast()).toBe("two");
    await coordinator.transaction(state, "four", (given) => void given.log.push("four"));
    expect(state.log).toEqual(["one", "four"]);
    expect([coordinator.rollbackLast(), coordinator.rollbackLast(), coordinator.rollbackLast()]).toEqual([
      "four",
      "one",
      null,
    ]);
    expect(state.log).toEqual([]);
  });

  it("runs nothing on a state that cannot be copied", async () => {
    const coordinator = new RollbackCoordinator();
    const state = { n: 1, go: () => {} };
    let ran = false;
    const failed = coordinator.transaction(state, "x", () => {
      ran = true;
    });
    await expect(failed).rejects.toMatchObject({ name: "DataCloneError" });
    expect([ran, state.n]).toEqual([false, 1]);
  });

  it("gives every object in the state its own contents back: whoever holds one sees them", async () => {
    const inner = { list: [1], when: new Date(0), bytes: new Uint8Array([1, 2]), tags: new Map([["a", { n: 1 }]]) };
    const state: Record<string, unknown> = { inner };
    state.self = state;
    const { list, when, bytes, tags } = inner;
    const tag = tags.get("a")!;
    const coordinator = new RollbackCoordinator();
    const failed = coordinator.transaction(state, "x", () => {
      list.push(2);
      when.setTime(9);
      bytes[0] = 9;
      tag.n = 2;
      tags.clear();
      state.inner = {};
      delete state.self;
      throw new Error("no");
    });
    await expect(failed).rejects.toThrow("no");
    expect(state.inner).toBe(inner);
    expect(state.self).toBe(state);
    expect([list, when.getTime(), [...bytes], tag.n]).toEqual([[1], 0, [1, 2], 1]);
    expect(tags.get("a")).toBe(tag);
  });

  it("carries out transactions on one state one after the other, and those on two side by side", async () => {
    const coordinator = new RollbackCoordinator();
    const [state, other] = [{ n: 0 }, { n: 0 }];
    const gate = Promise.withResolvers<void>();
    const first = coordinator.transaction(state, "first", async (given) => {
      given.n = 5;
      await gate.promise;
      throw new Error("no");
    });
    const second = coordinator.transaction(state, "second", (given) => ++given.n);
    expect(await coordinator.transaction(other, "other", (given) => ++given.n)).toBe(1);
    gate.resolve();
    await expect(first).rejects.toThrow("no");
    // It began with what the first one had given back.
    expect(await second).toBe(1);
    expect(coordinator.history).toEqual(["other", "second"]);
  });

  it("refuses a transaction inside of one on the same state, and to take back under one", async () => {
    const coordinator = new RollbackCoordinator();
    const [state, other] = [{ n: 0 }, { n: 0 }];
    await coordinator.transaction(state, "before", (given) => ++given.n);
    await coordinator.transaction(state, "outer", async () => {
      await expect(coordinator.transaction(state, "inner", () => 1)).rejects.toThrow(
        '"inner" is inside of the transaction "outer"',
      );
      expect(() => coordinator.rollbackLast()).toThrow('"before" cannot be taken back while "outer" is under way');
      await coordinator.transaction(other, "beside", (given) => ++given.n);
    });
    expect(coordinator.history).toEqual(["before", "beside", "outer"]);
  });

  it("keeps two states apart", async () => {
    const coordinator = new RollbackCoordinator();
    const [a, b] = [{ n: 1 }, { n: 1 }];
    await coordinator.transaction(a, "a", (state) => {
      state.n = 2;
    });
    await coordinator.transaction(b, "b", (state) => {
      state.n = 3;
    });
    coordinator.rollbackLast();
    expect([a.n, b.n]).toEqual([2, 1]);
  });
});
