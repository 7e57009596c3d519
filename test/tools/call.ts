/** Calls a built-in tool as the harness does: its input goes through its schema first. */
import { mkdtemp, realpath, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ToolDefinition } from "@drover/harness";
import { expect, onTestFinished } from "vitest";

export interface CallOptions {
  workspace?: string;
  signal?: AbortSignal;
}

// biome-ignore lint/suspicious/noExplicitAny: each tool returns JSON of its own shape.
export type Json = any;

export async function callTool<Input>(
  tool: ToolDefinition<Input>,
  input: unknown,
  options: CallOptions = {},
): Promise<Json> {
  return await tool.execute(tool.input.parse(input), {
    runId: "run_test",
    tenant: "default",
    callId: "call_1",
    idempotencyKey: "run_test:1:0",
    signal: options.signal ?? new AbortController().signal,
    workspace: options.workspace ?? "/nonexistent",
  });
}

/** The error's message, after a look that it holds nothing of where the workspace lies. */
export async function messageOf(work: Promise<unknown>, secrets: string[] = []): Promise<string> {
  const error: unknown = await work.then(
    (result) => expect.unreachable(`should have failed, but gave ${JSON.stringify(result)}`),
    (reason) => reason,
  );
  const { message } = error as Error;
  for (const secret of secrets) expect(message).not.toContain(secret);
  return message;
}

/** A folder of its own for one test, gone afterwards. */
export async function temporaryFolder(): Promise<string> {
  const folder = await realpath(await mkdtemp(join(tmpdir(), "drover-tools-")));
  onTestFinished(() => rm(folder, { recursive: true, force: true }));
  return folder;
}
