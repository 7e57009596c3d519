/**
 * What the suite of the one door shares: tools that tell what they did, a script for the model, and what holds of every run whatever it
 * did: its log is in a legal order, and its trail names what happened and never says with what.
 */
import {
  type AnyTool,
  contentHash,
  defineTool,
  type LogEvent,
  type Policy,
  type RunInput,
  type ToolContext,
  type Verdict,
} from "@drover/harness";
import { afterAll, beforeAll, beforeEach, describe, expect } from "vitest";
import { z } from "zod";
import { type ModelServer, type ScriptedReply, startModelServer } from "../support/model-server.ts";
import {
  type DoorRun,
  type DoorWorld,
  durableWorld,
  type Installation,
  libraryWorld,
  type TrailEntry,
} from "./door-world.ts";

/** Stands in every argument and result of the suite, so that a trail which repeats any is found out. */
export const content = "CONTENT-4711";

interface Executed {
  name: string;
  input: unknown;
  context: ToolContext;
}

/** A tool that takes `{ what, n? }`, notes its calls in `executed`, and answers with what it got. */
export function recorder() {
  const executed: Executed[] = [];
  const tool = (name: string, more: Partial<AnyTool> = {}): AnyTool => {
    const { execute = (input: { what: string }) => ({ got: input.what }), ...rest } = more;
    return defineTool({
      name,
      description: `The tool ${name}.`,
      input: z.object({ what: z.string().default(content), n: z.number().optional() }),
      permission: "write",
      effect: "idempotent",
      ...rest,
      execute: (input, context) => {
        executed.push({ name, input, context });
        return execute(input, context);
      },
    }) as AnyTool;
  };
  return { executed, tool };
}

/** A policy of one verdict at one stage; `about` says for which values. */
export function policy(
  name: string,
  stage: Policy["stages"][number],
  verdict: Verdict,
  about: (text: string) => boolean = () => true,
): Policy {
  return { name, stages: [stage], check: (value) => (about(JSON.stringify(value)) ? verdict : { action: "allow" }) };
}

type Calls = NonNullable<ScriptedReply["toolCalls"]>;
export const call = (name: string, input: Record<string, unknown> = {}) => ({
  name,
  input: { what: content, ...input },
});

export interface Suite {
  readonly models: ModelServer;
  readonly world: DoorWorld;
  /** One run: the model makes these calls turn by turn and then says `Done.`; what it costs is by `usage`. */
  run(
    installation: Installation,
    turns: Calls[],
    input?: Partial<RunInput>,
    usage?: { input: number; output: number },
  ): Promise<DoorRun>;
  /** What the model was told of the calls, in its latest request. */
  told(): string[];
}

/** One group of tests for each world. Every run that `suite.run` returns, and every one that follows from it, is held against the invariants. */
export function onEveryDoor(cases: (suite: Suite) => void): void {
  describe.each([
    { where: "in the library", open: async (models: ModelServer) => libraryWorld(models) },
    { where: "in the worker", open: durableWorld },
  ])("$where", ({ open }) => {
    let models: ModelServer;
    let world: DoorWorld;
    beforeAll(async () => {
      models = await startModelServer();
      world = await open(models);
    });
    beforeEach(() => models.reset());
    afterAll(async () => {
      await world.close();
      await models.close();
    });
    cases({
      get models() {
        return models;
      },
      get world() {
        return world;
      },
      async run(installation, turns, input, usage) {
        models.script((request) => {
          // No provider writes more than it was asked for.
          const output = Math.min(usage?.output ?? 5, Number(request.body.max_tokens));
          const said = { usage: { input: 10, ...usage, output } };
          if (/for this task is (over|used up)/.test(request.query)) return { ...said, text: "What there is." };
          const toolCalls = turns[request.turn];
          return toolCalls ? { ...said, toolCalls } : { ...said, text: "Done." };
        });
        return held(await world.run(installation, input));
      },
      told: () => models.calls.at(-1)!.results.map((result) => result.content),
    });
  });
}

/** The run, with everything that follows from it checked as well. */
function held(run: DoorRun): DoorRun {
  expectLegal(run.events);
  expectTrail(run);
  return {
    ...run,
    decide: async (...args) => held(await run.decide(...args)),
    expire: async (...args) => held(await run.expire(...args)),
    raise: async (...args) => held(await run.raise(...args)),
  };
}

const finals = ["run.completed", "run.partial", "run.failed", "run.cancelled"];

/** The order of a log: what cannot come before or after what. */
export function expectLegal(events: LogEvent[]): void {
  const shown = events.map(({ seq, type }) => `${seq} ${type}`).join("\n");
  const must = (holds: boolean, event: LogEvent) => {
    if (!holds) throw new Error(`event ${event.seq} (${event.type}) is in no legal place:\n${shown}`);
  };
  const called = new Set<string>();
  const intended = new Set<string>();
  const finished = new Set<string>();
  const asked = new Set<string>();
  const decided = new Set<string>();
  let owned = false;
  for (const [at, event] of events.entries()) {
    must(event.seq === at + 1, event);
    must((at === 0) === (event.type === "run.queued"), event);
    must(!finals.includes(event.type) || at === events.length - 1, event);
    const place =
      "iteration" in event.data && "index" in event.data ? `${event.data.iteration}.${event.data.index}` : "";
    switch (event.type) {
      case "run.started":
        owned = true;
        break;
      case "run.waiting":
        must(owned, event);
        if (event.data.waiting_for === "approval")
          must(
            [...asked].some((id) => !decided.has(id)),
            event,
          );
        owned = false;
        break;
      case "run.resumed":
        must(!owned || events[at - 1]!.type === "approval.decided" || events[at - 1]!.type === "budget.raised", event);
        owned = false;
        break;
      case "model.call":
        must(owned && [...called].every((one) => finished.has(one)), event);
        for (const index of event.data.tool_calls.keys()) called.add(`${event.data.iteration}.${index}`);
        break;
      case "tool.intent":
        must(owned && called.has(place) && !finished.has(place), event);
        intended.add(place);
        break;
      case "tool.held":
        must(owned && called.has(place) && !finished.has(place), event);
        break;
      case "tool.result":
        must(owned && called.has(place) && !finished.has(place), event);
        finished.add(place);
        break;
      case "policy.applied":
        if (event.data.stage === "arguments")
          must(called.has(place) && !intended.has(place) && !finished.has(place), event);
        if (event.data.stage === "result") must(called.has(place) && !finished.has(place), event);
        break;
      case "approval.requested":
        must(owned && !asked.has(event.data.approval_id), event);
        asked.add(event.data.approval_id);
        break;
      case "approval.decided":
        must(asked.has(event.data.approval_id) && !decided.has(event.data.approval_id), event);
        decided.add(event.data.approval_id);
        break;
    }
  }
}

const outcomes: Record<string, string> = {
  approve: "approved",
  retry: "approved",
  done: "approved",
  reject: "rejected",
  fail: "rejected",
  expire: "expired",
};

/** Every outcome, question, decision and block stands in the trail once, by hashes; nothing that was an argument or a result does. */
function expectTrail(run: DoorRun): void {
  const told = JSON.stringify(run.trail);
  expect(told).not.toContain(content);
  const entries = (prefix: string): TrailEntry[] => run.trail.filter(({ action }) => action.startsWith(prefix));
  const byText = (a: unknown, b: unknown) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1);
  const calls = new Map(
    run
      .data("model.call")
      .flatMap(({ iteration, tool_calls }) => tool_calls.map((one, index) => [`${iteration}.${index}`, one])),
  );
  // What was carried out, where that is not what the model wrote.
  const intended = new Map(
    run.data("tool.intent").map(({ iteration, index, input }) => [`${iteration}.${index}`, input]),
  );
  const asked = new Map(run.data("approval.requested").map((question) => [question.approval_id, question]));
  const edited = new Map(
    run.data("approval.decided").flatMap(({ approval_id, edited_input }) => {
      const { iteration, index } = asked.get(approval_id)!;
      return edited_input === undefined ? [] : [[`${iteration}.${index}`, edited_input] as const];
    }),
  );
  expect(
    entries("tool.called")
      .map(({ data: { tool, status, arguments: given, result } }) => [tool, status, given, result])
      .sort(byText),
  ).toEqual(
    run
      .data("tool.result")
      .map(({ iteration, index, tool_name, status, output }) => [
        tool_name,
        status,
        contentHash(
          intended.get(`${iteration}.${index}`) ??
            edited.get(`${iteration}.${index}`) ??
            calls.get(`${iteration}.${index}`)!.input,
        ),
        contentHash(output),
      ])
      .sort(byText),
  );
  expect(
    entries("approval.requested")
      .map(({ data }) => [data.approval, data.hash])
      .sort(byText),
  ).toEqual(
    run
      .data("approval.requested")
      .map(({ approval_id, hash }) => [approval_id, hash])
      .sort(byText),
  );
  const decisions = run.trail.filter(({ action }) => /^approval\.(approved|rejected|expired)$/.test(action));
  expect(decisions.map(({ action, actor, data }) => [data.approval, action, actor]).sort(byText)).toEqual(
    run
      .data("approval.decided")
      .map(({ approval_id, decision, by }) => [approval_id, `approval.${outcomes[decision]}`, by])
      .sort(byText),
  );
  expect(
    entries("policy.blocked")
      .map(({ data: { policy, stage } }) => [policy, stage])
      .sort(byText),
  ).toEqual(
    run
      .data("policy.applied")
      .filter(({ action }) => action === "block")
      .map(({ policy, stage }) => [policy, stage])
      .sort(byText),
  );
  for (const { action } of run.trail)
    expect(action).toMatch(
      /^(tool\.called|policy\.blocked|query\.\w+|budget\.\w+|approval\.(requested|approved|rejected|expired))$/,
    );
}
