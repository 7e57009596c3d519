/**
 * What a query of the torture run does, spelled out in its own text: `q17 pure unsafe+idempotent kill` is a run labelled q17 of three turns of tool
 * calls and a last one that answers. Model server, tools, person and checks read it alike, so a resumed run is asked the same as a fresh one.
 */
import { createHash } from "node:crypto";

/** `ask`: unsafe without `verify`, so a person is asked. `send`: asks before it is done. `kill` and `block` end their worker. */
export const toolKinds = ["pure", "idempotent", "unsafe", "ask", "send", "kill", "block"] as const;
export type ToolKind = (typeof toolKinds)[number];

/** How long others wait before they ask what became of an unsafe call: longer than any pause of a process outlives its lease. */
export const unsafeTimeoutMs = 4000;

export interface Scenario {
  label: string;
  /** The tools called in each turn. */
  turns: ToolKind[][];
}

export const queryOf = ({ label, turns }: Scenario): string =>
  [label, ...turns.map((tools) => tools.join("+"))].join(" ");

export function scenarioOf(query: string): Scenario {
  const [label = "", ...turns] = query.split(" ");
  return { label, turns: turns.map((turn) => turn.split("+") as ToolKind[]) };
}

export const isUnsafe = (tool: ToolKind): boolean => tool === "unsafe" || tool === "ask" || tool === "send";
export const isKiller = ({ turns }: Scenario): boolean =>
  turns.flat().some((tool) => tool === "kill" || tool === "block");

/** 0 up to 1, the same for the same words: how long a step takes, what a person answers. */
export function shareOf(...words: (string | number)[]): number {
  return createHash("sha256").update(words.join(" ")).digest().readUInt32BE(0) / 2 ** 32;
}

export const isRejected = (label: string, turn: number): boolean => shareOf("decision", label, turn) < 0.3;
/** Its first model call is answered with 503. */
export const isFlaky = (label: string): boolean => shareOf("flaky", label) < 0.05;

/** Names one call of a run. */
export const callName = (label: string, turn: number, index: number): string => `${label} ${turn}.${index}`;
