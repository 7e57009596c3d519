/** What code of users may throw, and leave behind: it hurts its own call and nothing else, and telling of it cannot fail. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { asThrown, createLogger, messageOf } from "@drover/telemetry";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { harnessOn, tool } from "./scripted.ts";

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());
afterEach(() => server.reset());

it("what a call leaves behind ends that call, by name, and no neighbour notices", async () => {
  const script = new URL("./stray-process.ts", import.meta.url).pathname;
  const { stdout } = await promisify(execFile)(process.execPath, [script]);
  const left = (name: string) => ["success", "error", `The tool ${name} left an error that nobody caught: left`];
  expect(JSON.parse(stdout)).toEqual({
    results: {
      rejection: left("rejection"),
      timer: left("timer"),
      emitter: left("emitter"),
      nested: left("nested"),
      late: ["success", "ok", "fine"],
      neighbour: ["success", "ok", "fine"],
    },
    unowned: [],
  });
});

const throwing = (make: () => object) =>
  new Proxy(make(), {
    get() {
      throw new Error("no look");
    },
    getPrototypeOf() {
      throw new Error("no prototype");
    },
  });
const revoked = () => {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  return proxy;
};
const withGetter = (name: string) =>
  Object.defineProperty(new Error("x"), name, {
    get() {
      throw new Error("no look");
    },
  });

describe.each<[string, () => unknown]>([
  ["undefined", () => undefined],
  ["null", () => null],
  ["a text", () => "text"],
  ["a symbol", () => Symbol("s")],
  ["a bigint", () => 1n],
  ["an object without a prototype", () => Object.create(null)],
  ["an object whose text cannot be had", () => ({ toString: () => ({}) })],
  ["a function", () => () => {}],
  ["a proxy", () => throwing(() => ({}))],
  ["a proxy of an error", () => throwing(() => new Error("x"))],
  ["a revoked proxy", revoked],
  ["an error without a message", () => new Error("")],
  ["an error whose message throws", () => withGetter("message")],
  ["an error whose name throws", () => withGetter("name")],
  ["an error whose stack throws", () => withGetter("stack")],
  ["an error whose cause throws", () => withGetter("cause")],
  ["an error whose message is an object", () => Object.assign(new Error("x"), { message: { a: 1 } })],
  [
    "an error that causes itself",
    () => {
      const error = new Error("x");
      error.cause = error;
      return error;
    },
  ],
])("thrown: %s", (_name, make) => {
  it("can be told, and logged", () => {
    expect(typeof messageOf(make())).toBe("string");
    asThrown(make());
    const lines: string[] = [];
    const logger = createLogger({ name: "test", to: { write: (line: string) => void lines.push(line) } });
    logger.error({ err: make() }, "it broke");
    expect(lines.join("")).toContain("it broke");
  });

  it.each(["execute", "needsApproval", "verify"] as const)(
    "by a tool's %s is that call's own affair",
    async (where) => {
      const it = tool("it", () => (where === "execute" ? Promise.reject(make()) : "fine"), {
        ...(where === "needsApproval" && {
          needsApproval: () => {
            throw make();
          },
        }),
        ...(where === "verify" && {
          effect: "unsafe",
          timeoutMs: 10,
          execute: () => new Promise(() => {}),
          verify: () => {
            throw make();
          },
        }),
      });
      server.script([{ toolCalls: [{ name: "it" }] }, "Done."]);
      const result = await harnessOn(server, { tools: [it] }).run("Do it.");
      expect(result.status).toBe(where === "execute" ? "success" : "waiting");
      expect(result.error?.code).not.toBe("internal_error");
    },
  );

  it("by a policy blocks, and by a model is a failure of its call", async () => {
    const policy = {
      name: "broken",
      stages: ["output" as const],
      check: () => {
        throw make();
      },
    };
    server.script(["Done."]);
    const blocked = await harnessOn(server, { policies: [policy] }).run("Do it.");
    expect(blocked.error?.code).toBe("policy_blocked");
    const model = { id: "own/model", call: () => Promise.reject(make()) };
    const failed = await harnessOn(server, { models: { custom: { "own/model": model } }, model: "own/model" }).run(
      "Do it.",
    );
    expect(failed.error?.code).toBe("model_error");
  });
});
