/**
 * What a policy is: a pure function that looks at something on its way (what was asked, a tool's arguments, a tool's result, the
 * model's words) and says what is to be done with it. The chain asks each in order; the strictest verdict wins, every verdict but
 * `allow` stands in the log with its reason.
 */
import { asThrown } from "@drover/telemetry";
import type { Permission } from "../library/tool.ts";

/** `input`: the query and its context. `output`: the text of a model's reply. */
export const policyStages = ["input", "arguments", "result", "output"] as const;
export type PolicyStage = (typeof policyStages)[number];

/** What a policy may know beside the value itself. All of it is folded from the log, so a resumed run judges the same. */
export interface PolicyContext {
  stage: PolicyStage;
  /** Set for `arguments` and `result`. */
  tool?: {
    name: string;
    permission: Permission;
    /** The call changes something outside, or tells somebody outside something. */
    external: boolean;
    /** Its results come from outside. */
    untrusted: boolean;
    /** Its results are private data. */
    private: boolean;
  };
  /** What the run has seen so far. */
  seen: { untrusted: boolean; private: boolean };
}

/**
 * `redact`: goes on with `value` in its place (the same shape). `flag`: goes on, and the log says so. `ask`: a person decides.
 * `block`: it does not go on. A reason never repeats what was found, only what kind of thing it was.
 */
export type Verdict =
  | { action: "allow" }
  | { action: "redact"; value: unknown; reason: string }
  | { action: "flag" | "ask" | "block"; reason: string };

export interface Policy {
  /** Lower-case letters, digits, - and _; unique in a chain. */
  name: string;
  /** Where it is asked. */
  stages: readonly PolicyStage[];
  /** Pure, and quick: under 50 ms for 100 kB of hostile text. `value` is JSON: text, or the arguments or result of a tool. Throwing counts as `block`. */
  check(value: unknown, context: PolicyContext): Verdict;
}

/** Declares a policy; only fixes the types. */
export function definePolicy(policy: Policy): Policy {
  return policy;
}

/** One verdict that was not `allow`. */
export interface PolicyFinding {
  policy: string;
  action: Exclude<Verdict["action"], "allow">;
  reason: string;
}

export interface ChainAnswer {
  /** The strictest of all verdicts. */
  action: Verdict["action"];
  /** The value as it goes on, redactions made. */
  value: unknown;
  findings: PolicyFinding[];
}

const strictness = ["allow", "redact", "flag", "ask", "block"] as const;

/** Asks every policy of the stage, in order; each sees what the ones before it left. After a `block` nobody else is asked. */
export function applyPolicies(policies: readonly Policy[], value: unknown, context: PolicyContext): ChainAnswer {
  const answer: ChainAnswer = { action: "allow", value, findings: [] };
  for (const policy of policies) {
    if (!policy.stages.includes(context.stage)) continue;
    const verdict = ask(policy, answer.value, context);
    if (verdict.action === "allow") continue;
    if (verdict.action === "redact") answer.value = verdict.value;
    answer.findings.push({ policy: policy.name, action: verdict.action, reason: verdict.reason });
    if (strictness.indexOf(verdict.action) > strictness.indexOf(answer.action)) answer.action = verdict.action;
    if (verdict.action === "block") break;
  }
  return answer;
}

function ask(policy: Policy, value: unknown, context: PolicyContext): Verdict {
  try {
    return policy.check(value, context);
  } catch (error) {
    const thrown = asThrown(error);
    return { action: "block", reason: `the policy failed: ${thrown instanceof Error ? thrown.name : "unknown error"}` };
  }
}
