/** What a tool's process and its parent tell each other, over Node's channel between processes. */
import type { Written } from "../door/output.ts";
import type { ToolContext } from "../library/tool.ts";

/** What of a tool is called. */
export type Entry = "execute" | "verify" | "compensate";

export type CallContext = Omit<ToolContext, "signal">;

/** `limitMs`: when the process ends itself, should its parent be unable to. */
export type ToChild =
  | { type: "call"; tool: string; entry: Entry; args: unknown[]; context: CallContext; limitMs: number }
  | { type: "abort"; reason: unknown };

/** `nothing`: it returned undefined. */
export type Answer =
  | { type: "returned"; written: Written; nothing: boolean }
  | { type: "threw"; name: string; message: string };

export type ToParent = { type: "ready" } | { type: "broken"; message: string } | Answer;

/** Ends the part of standard output and standard error that belongs to one call; stands alone in its line. */
export const endOfCall = "\0end of call";
