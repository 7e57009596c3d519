/** The rule of two: all sixteen ways in which a run and a tool can be marked, and the tool's own marks beside them. */
import { applyPolicies, type PolicyContext } from "@drover/harness";
import { describe, expect, it } from "vitest";
import { ruleOfTwo } from "../../../packages/harness/src/policy/index.ts";
import { context } from "./hostile.ts";

const both = [false, true];
const cases = both.flatMap((untrusted) =>
  both.flatMap((seesPrivate) =>
    both.flatMap((external) => both.map((marked) => ({ untrusted, seesPrivate, external, marked }))),
  ),
);

function place({ untrusted, seesPrivate, external, marked }: (typeof cases)[number]): PolicyContext {
  const tool = { name: "send", permission: "write" as const, external, untrusted: marked, private: marked };
  return { stage: "arguments", tool, seen: { untrusted, private: seesPrivate } };
}

describe("asks for all three, whatever the tool itself returns", () => {
  it.each(cases)("%j", (given) => {
    const all = given.untrusted && given.seesPrivate && given.external;
    expect(ruleOfTwo().check({}, place(given)).action).toBe(all ? "ask" : "allow");
    expect(ruleOfTwo({ action: "block" }).check({}, place(given)).action).toBe(all ? "block" : "allow");
  });
});

it("says why, and nothing about the arguments", () => {
  const given = place({ untrusted: true, seesPrivate: true, external: true, marked: false });
  expect(ruleOfTwo().check({ to: "a@b.com" }, given)).toEqual({
    action: "ask",
    reason: "the run has seen untrusted content and private data, and this call has an effect outside",
  });
});

it("has nothing to say where there is no call", () => {
  const seen = { untrusted: true, private: true };
  expect(ruleOfTwo().check("x", { ...context, stage: "input", seen })).toEqual({ action: "allow" });
  expect(applyPolicies([ruleOfTwo()], "x", { ...context, stage: "output", seen }).action).toBe("allow");
});
