/** A tool that runs in a process of its own, in the place of the tool that was declared so: everything else about it stays as it is. */

import { mostKept } from "../door/output.ts";
import { ConfigError } from "../library/agent.ts";
import type { AnyTool } from "../library/tool.ts";
import { defaultTimeoutMs, NothingDone, type ToolContext } from "../library/tool.ts";
import type { Answer, Entry } from "./messages.ts";
import type { Isolation } from "./pool.ts";

const defaultMemoryMb = 512;

type Returned = Extract<Answer, { type: "returned" }>;

/** A process that carries out one tool's calls, one at a time, until it is left. */
export interface Place {
  /**
   * Carries out one call. Rejects at once when the context's signal aborts; the process is ended then, with all it started.
   * @throws what the tool threw (`NothingDone`, else `Error`); `ProcessLost` when the process ended under it
   */
  run(entry: Entry, args: unknown[], context: ToolContext): Promise<Returned>;
  /** Must be called, once. A call that is still under way is ended. */
  leave(): void;
}

type IsolatedTool = AnyTool & {
  /** Waits for a process. Rejects when the signal aborts, or when there can be none. */
  place(signal: AbortSignal): Promise<Place>;
};

export const isIsolated = (tool: AnyTool): tool is IsolatedTool => "place" in tool;

/** The tool as it is, or, when it asks for it, with its code carried out in a process. @throws ConfigError when its module is not known */
export function isolate(tool: AnyTool, isolation: Isolation): AnyTool {
  if (tool.isolation !== "process" || isIsolated(tool)) return tool;
  const problem = moduleProblem(tool);
  if (problem) throw new ConfigError(`the tool "${tool.name}"`, [problem]);
  const kind = isolation.kindOf({
    module: tool.module!,
    maxMemoryMb: tool.maxMemoryMb ?? defaultMemoryMb,
    env: tool.env ?? [],
  });
  const timeoutMs = tool.timeoutMs ?? defaultTimeoutMs;

  async function place(signal: AbortSignal): Promise<Place> {
    const process = await isolation.take(kind, signal);
    return {
      async run(entry, args, { signal, ...context }) {
        const answer = await process.run({ tool: tool.name, entry, args, context, timeoutMs }, signal);
        if (answer.type === "returned") return answer;
        throw answer.name === "NothingDone" ? new NothingDone(answer.message) : new Error(answer.message);
      },
      leave: () => isolation.giveBack(process),
    };
  }

  const once = (entry: Entry) => async (argument: unknown, context: ToolContext) => {
    const own = await place(context.signal);
    try {
      return plainOf(await own.run(entry, [argument], context));
    } finally {
      own.leave();
    }
  };
  const isolated: IsolatedTool = { ...tool, place, execute: once("execute") };
  if (tool.verify) isolated.verify = once("verify") as AnyTool["verify"] & {};
  if (tool.compensate) isolated.compensate = once("compensate");
  return isolated;
}

/** What is wrong with an isolated tool's `module`, and what to do about it. */
function moduleProblem({ module }: AnyTool): string | undefined {
  if (module === undefined)
    return '`isolation: "process"` needs `module: import.meta.url`, in the file that exports the tool';
  if (URL.canParse(module) && new URL(module).protocol === "file:") return;
  return "`module` must be a file:// URL; write `module: import.meta.url` in the file that exports the tool";
}

function plainOf({ written, nothing }: Returned): unknown {
  if (nothing) return;
  if (!written.whole) throw new Error(`The tool returned more than ${mostKept / 2 ** 20} MiB.`);
  return written.json ? JSON.parse(written.text) : written.text;
}
