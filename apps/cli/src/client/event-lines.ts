/** Each event of a log as a line for a person, with the command to type where somebody is needed. */
import type { ApprovalDecision, ApprovalRequest, BudgetLevel, EventData, LogEvent } from "@drover/harness";
import { duration, legible, money, oneLine, paint } from "../text.ts";

/** Characters for a tool's input or output, so that its line stays one line. */
const room = (name: string): number => Math.max(30, (process.stdout.columns ?? 140) - 20 - name.length - 14);

const actions = { redact: "redacted", flag: "flagged", ask: "asks about", block: "blocked" } as const;
const verified = {
  done: "that it took effect",
  not_done: "that it did not take effect",
  unknown: "that it cannot tell",
} as const;
const decisions: Record<ApprovalDecision["decision"], string> = {
  approve: paint("green", "approved"),
  reject: paint("red", "rejected"),
  expire: paint("yellow", "expired"),
  retry: "it runs again: decided",
  done: paint("green", "it took effect: decided"),
  fail: paint("red", "the run ends: decided"),
};

const tenantCap = (flag: string) => () => `drover budget --${flag} USD`;
const caps: Record<BudgetLevel, { what: string; command(taskId: string): string }> = {
  actions: { what: "its points for actions are used up", command: (id) => `drover budget --run ${id} --actions N` },
  run: { what: "its money is used up", command: (id) => `drover budget --run ${id} --max-cost USD` },
  session: { what: "its session's money is used up", command: (id) => `drover cancel ${id}` },
  tenant_day: { what: "the day's money is used up", command: tenantCap("day") },
  tenant_month: { what: "the month's money is used up", command: tenantCap("month") },
};

function askedLines({
  approval_id,
  subject,
  tool_name,
  input,
  reason,
  expires_at,
}: ApprovalRequest): [string, string, ...string[]] {
  const what = tool_name === undefined ? subject : oneLine(tool_name, 64);
  const text = typeof input === "string" ? input : (JSON.stringify(input) ?? "");
  return [
    "approval",
    `${paint("yellow", "?")} ${what} ${paint("dim", oneLine(legible(text), room(what)))}`,
    oneLine(reason, 300),
    ...commandsFor(approval_id, subject),
    paint("dim", `see it whole:  drover approvals ${approval_id}   (until ${expires_at})`),
  ];
}

/** What to type to decide. */
export function commandsFor(id: string, subject: ApprovalRequest["subject"]): string[] {
  if (subject !== "uncertain") return [`drover approve ${id}`, `drover reject ${id} --note "why"`];
  return [
    `drover approve ${id} --done     it took effect`,
    `drover approve ${id}            it runs again`,
    `drover reject ${id}             the run ends`,
  ];
}

const describeEnd: Partial<Record<LogEvent["type"], (data: EventData["run.failed"]) => string>> = {
  "run.completed": () => paint("green", "completed"),
  "run.partial": (data) => paint("yellow", `partial (${data.stop_reason}) `) + oneLine(data.error?.message ?? ""),
  "run.failed": (data) => paint("red", `failed (${data.stop_reason}) `) + oneLine(data.error?.message ?? "", 300),
  "run.cancelled": () => paint("yellow", "cancelled"),
};

/** One call with its arguments, cut to a line. */
export const callLine = ({ name, input }: { name: string; input: unknown }): string =>
  `${paint("cyan", "→")} ${oneLine(name, 64)} ${paint("dim", oneLine(input, room(name)))}`;

/** What stands beside an event's time: a word, the telling part, and lines to stand under it. `taskId`: whose log it is. */
export function linesOf(event: LogEvent, taskId = "run_…"): [string, string, ...string[]] {
  switch (event.type) {
    case "run.queued":
      return ["queued", `for agent ${oneLine(event.data.agent, 64)}`];
    case "run.started":
      return ["started", event.data.attempt > 1 ? `attempt ${event.data.attempt}` : "by a worker"];
    case "steps.copied":
      return ["copied", `${event.data.events} events of ${event.data.from}: it goes on from there`];
    case "model.failed": {
      const { code, message, retry_in_ms } = event.data;
      const next = retry_in_ms === null ? "" : `, again in ${duration(retry_in_ms)}`;
      return ["model", paint("red", `failed (${code}) `) + oneLine(message) + next];
    }
    case "tool.result": {
      const { tool_name, status, output, duration_ms } = event.data;
      const mark = status === "ok" ? paint("green", "←") : paint("red", `← ${status}`);
      return [
        "tool",
        `${mark} ${oneLine(tool_name, 64)} ${oneLine(output, room(tool_name))} ${paint("dim", `(${duration(duration_ms)})`)}`,
      ];
    }
    case "action.called":
      return ["action", callLine(event.data.call)];
    case "tool.verified": {
      const { tool_name, answer } = event.data;
      return ["tool", `${oneLine(tool_name, 64)} was cut off by a crash: it says ${verified[answer]}`];
    }
    case "tool.held":
      return [
        "tool",
        `${paint("yellow", "held")} ${oneLine(event.data.tool_name, 64)}: the model does not see its result yet`,
      ];
    case "policy.applied": {
      const { policy, action, stage, tool_name, reason } = event.data;
      const where = tool_name === undefined ? stage : `${stage} of ${oneLine(tool_name, 64)}`;
      const mark = action === "block" ? "red" : "yellow";
      return ["policy", `${paint(mark, actions[action])} ${where} (${oneLine(policy, 64)}): ${oneLine(reason, 200)}`];
    }
    case "approval.requested":
      return askedLines(event.data);
    case "approval.decided": {
      const { decision, by, note, edited_input } = event.data;
      const edited =
        edited_input === undefined ? "" : `, with other arguments ${paint("dim", oneLine(edited_input, 60))}`;
      const said = note === undefined ? "" : `: ${oneLine(note, 200)}`;
      return ["approval", `${decisions[decision]} by ${oneLine(by, 64)}${edited}${said}`];
    }
    case "budget.raised": {
      const { max_cost_usd, action_budget, by } = event.data;
      const caps = [
        ...(max_cost_usd === undefined ? [] : [money(max_cost_usd)]),
        ...(action_budget === undefined ? [] : [`${action_budget} points`]),
      ];
      return ["budget", `raised to ${caps.join(" and ")} by ${oneLine(by, 64)}`];
    }
    case "run.waiting": {
      const { waiting_for, level } = event.data;
      if (waiting_for === "approval") return ["waiting", paint("yellow", "until somebody decides")];
      const { what, command } = caps[level ?? "run"];
      return ["waiting", paint("yellow", `for its budget: ${what}`), `raise it:  ${command(taskId)}`];
    }
    case "run.resumed":
      return ["resumed", event.data.waited_for === "approval" ? "it is decided" : "there is budget again"];
    case "run.retrying": {
      const { attempt, delay_ms, error } = event.data;
      return ["retrying", `attempt ${attempt} in ${duration(delay_ms)}: ${oneLine(error.message)}`];
    }
    case "run.handed_over":
      return ["handover", "its worker is stopping, another goes on"];
    case "run.rescued":
      return ["rescued", "its worker died, another goes on"];
    case "run.cancel_requested":
      return ["cancel", "its worker has been told"];
    case "run.completed":
    case "run.partial":
    case "run.failed":
    case "run.cancelled":
      return ["end", describeEnd[event.type]!(event.data)];
    default:
      return [event.type, ""];
  }
}
