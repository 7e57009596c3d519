/**
 * The outside world's own books: a model server and the tools' endpoint, which write down every request with its time and its sender, and know
 * nothing of what the runs' logs say.
 */
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { Gate, type ModelServerCall, type ScriptAnswer, startModelServer } from "../../support/model-server.ts";
import { callName, isFlaky, scenarioOf, shareOf, type ToolKind } from "./scenario.ts";

export interface ModelRequest {
  label: string;
  turn: number;
  /** ms since 1970. */
  at: number;
  /** Which process, as `Supervised` names it. */
  sender: string;
  /** Of the whole prompt. */
  hash: string;
}

export interface ToolRequest {
  label: string;
  turn: number;
  index: number;
  tool: ToolKind;
  idempotencyKey: string;
  sender: string;
  at: number;
}

const keyPrefix = "sk-ant-scripted-";
/** Most steps are quick; some are slow enough to be hit. */
const modelMs = (label: string, turn: number) => 2000 * shareOf("model", label, turn) ** 4;
const toolMs = (label: string, turn: number, index: number) => 1500 * shareOf("tool", label, turn, index) ** 3;
const chunks = 4;

/** Every text chunk waits a moment. */
class Pace extends Gate {
  readonly #ms: number;
  constructor(ms: number) {
    super();
    this.#ms = ms;
  }
  override async wait(left: Promise<unknown>): Promise<void> {
    await Promise.race([delay(this.#ms), left]);
  }
}

export async function openLedger() {
  const modelRequests: ModelRequest[] = [];
  const toolRequests: ToolRequest[] = [];
  const failedOnce = new Set<string>();
  /** Unsafe calls that took effect, by `callName`. */
  const effects = new Map<string, number>();

  const models = await startModelServer({ record: false });
  models.script((call: ModelServerCall): ScriptAnswer => {
    const { label, turns } = scenarioOf(call.query);
    const { turn } = call;
    const sender = String(call.headers["x-api-key"] ?? "").slice(keyPrefix.length);
    const hash = createHash("sha256").update(call.rawBody).digest("hex");
    modelRequests.push({ label, turn, at: Date.now(), sender, hash });
    if (isFlaky(label) && !failedOnce.has(label)) {
      failedOnce.add(label);
      return { status: 503 };
    }
    const gate = new Pace(modelMs(label, turn) / chunks);
    const tools = turns[turn];
    if (!tools) return { text: ["the ", "end ", "of ", label], gate };
    return {
      text: ["turn ", `${turn} `, "of ", label],
      gate,
      toolCalls: tools.map((name, index) => ({ id: `call_${turn}_${index}`, name, input: { label, turn, index } })),
    };
  });

  const server = createServer(async (request, response) => {
    try {
      let body = "";
      for await (const piece of request) body += piece;
      const about = JSON.parse(body) as Omit<ToolRequest, "tool" | "at">;
      const { label, turn, index } = about;
      const name = callName(label, turn, index);
      const path = request.url!.slice(1);
      if (path === "verify") {
        response.end(effects.has(name) ? "done" : "not done");
        return;
      }
      toolRequests.push({ ...about, tool: path as ToolKind, at: Date.now() });
      effects.set(name, (effects.get(name) ?? 0) + 1);
      await delay(toolMs(label, turn, index));
      response.end(`did ${name}`);
    } catch {
      // Its process was killed while it spoke.
      response.destroy();
    }
  }).listen(0, "127.0.0.1");
  await once(server, "listening");

  return {
    modelRequests: modelRequests as readonly ModelRequest[],
    toolRequests: toolRequests as readonly ToolRequest[],
    /** How often a call took effect. */
    effects: effects as ReadonlyMap<string, number>,
    /** Of a worker whose requests are to be told from others'. */
    env: (sender: string): Record<string, string> => ({
      ANTHROPIC_API_KEY: `${keyPrefix}${sender}`,
      ANTHROPIC_BASE_URL: models.url("anthropic"),
      DROVER_MODEL: "anthropic/claude-sonnet-4-5",
      TOOL_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      TORTURE_SENDER: sender,
    }),
    async close() {
      server.closeAllConnections();
      server.close();
      await Promise.all([models.close(), once(server, "close")]);
    },
  };
}
export type Ledger = Awaited<ReturnType<typeof openLedger>>;
