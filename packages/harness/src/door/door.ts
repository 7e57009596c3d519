/** What the door's stages share: what a call is carried out with, and how far it may get. The pipeline itself is `call.ts`. */

import type { AuditEntry } from "../audit/trail.ts";
import type { Toolbox } from "../library/registry.ts";
import type { RunControl } from "../loop/control.ts";
import type { NewEvent, ToolProblem, ToolResult, ToolStatus } from "../loop/events.ts";
import type { RunState } from "../loop/fold.ts";
import type { Policy } from "../policy/policy.ts";
import type { Artifacts } from "./artifacts.ts";

/** What happens when a person is needed: the run parks, the call is refused, or somebody has said yes beforehand. */
export type Asking = "park" | "refuse" | { approvedBy: string };

export interface DoorOptions {
  runId: string;
  tenant: string;
  workspace: string;
  /** Who acts, for the audit trail and the policies. */
  agentName: string;
  toolbox: Toolbox;
  state: RunState;
  control: RunControl;
  policies: readonly Policy[];
  approvals: { expiresAfterMs: number; onExpiry: "reject" | "fail" };
  asking: Asking;
  /** Resolves once the event is durable, and with it the entry of the audit trail. */
  append(event: NewEvent, audit?: AuditEntry): Promise<void>;
  /** Throws when this process may no longer act for the run; may wait until it knows. Asked before every step, directly before an effect. */
  assertOwned?(): void | Promise<void>;
  /** Carries out `work`, a tool's own code, and may watch it. */
  inside?<T>(tool: string, work: () => Promise<T>): Promise<T>;
  /** Keeps what is more of an output than the model is shown (default: the rest is dropped). */
  artifacts?: Artifacts;
  /** A tool or a model call answered after it was given up; its answer was dropped. Must not throw. */
  onLate?(what: { tool: string } | { model: string }): void;
  /** The clock that events are dated by, ms since 1970 (default this machine's). */
  now?(): number;
}

/** How a call ended, before the log has it. `points`: charged for it. */
export interface Outcome {
  status: ToolStatus;
  output: unknown;
  truncated?: true;
  artifact?: ToolResult["artifact"];
  problem?: ToolProblem;
  points?: number;
  /** The output is the tool's own, not the door's. */
  own?: true;
  /** It was given up while it was under way, and must not run twice: whether it took effect is to be found out. */
  doubtful?: true;
}

/**
 * `recorded`: the outcome is in the log. `waiting`: a person is asked. `exhausted`: the action budget has no points for it. `later`: it is
 * not known yet whether the last owner is still at it.
 */
export type DoorAnswer =
  | { kind: "recorded"; result: ToolResult }
  | { kind: "waiting" }
  | { kind: "exhausted" }
  | { kind: "later"; ms: number };

export type Passed = { kind: "outcome"; outcome: Outcome } | Exclude<DoorAnswer, { kind: "recorded" }>;
