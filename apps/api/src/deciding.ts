/** What the routes that move waiting runs share: saying yes or no, and waking whatever may go on then. */
import { checkDecision, type WantedDecision } from "@drover/harness/worker";
import {
  type ApprovalRecord,
  decideApproval,
  type Moved,
  readApproval,
  readRun,
  type Status,
  wakeRuns,
} from "@drover/runs";
import { storableJson } from "@drover/storage";
import type { Context } from "./context.ts";
import { type Caller, may } from "./keys.ts";
import { invalid } from "./problems.ts";
import { missing } from "./resources.ts";

/**
 * Decides a question, once: of all who try, one succeeds. What was committed holds whatever happens to the wake-up.
 * @throws DroverError `invalid_input` naming the field, `conflict` saying how and by whom it was decided before
 */
export async function decide(
  context: Context,
  asked: ApprovalRecord,
  wanted: WantedDecision,
): Promise<{ approval: ApprovalRecord; runStatus: Status }> {
  const { pool, blobs, signals, tools } = context;
  const { tenant, id, runId, subject, toolName } = asked;
  const checked = await checkDecision(
    { subject, ...(toolName !== null && { tool_name: toolName }) },
    wanted,
    toolName === null ? undefined : tools.get(toolName),
  );
  if ("problem" in checked) throw invalid([checked.problem]);
  // The log would keep it changed, and then it would no longer be what was approved.
  if (wanted.editedInput !== undefined && storableJson(wanted.editedInput).changed)
    throw invalid([
      { path: "edited_input", message: "must not contain NUL, half a surrogate pair, or a number that is not finite" },
    ]);
  const { resumed } = await decideApproval(pool, blobs, asked, checked.decision);
  signals.news(runId);
  wake(context, resumed ? [resumed] : []);
  const [approval, run] = await Promise.all([readApproval(pool, tenant, id), readRun(pool, tenant, runId)]);
  return { approval: approval ?? missing("approval"), runStatus: (run ?? missing("run")).status };
}

type Asked = Pick<ApprovalRecord, "submittedBy">;

/** Whoever submitted a query does not decide about it, where the installation bars that. */
export const isBarred = (asked: Asked, keyId: string, { DROVER_APPROVE_OWN }: Context["config"]): boolean =>
  !DROVER_APPROVE_OWN && asked.submittedBy === keyId;

/** Whether the caller may decide about this query, and so may see what a policy holds back of it. */
export const mayDecideOf = ({ role, keyId }: Caller, asked: Asked, config: Context["config"]): boolean =>
  may(role, "approve") && !isBarred(asked, keyId, config);

/** Wakes runs that a commit has made due; nobody waits for it. A wake-up that was lost is made good within a second, by the workers. */
export function wake({ logger, services }: Context, runs: Moved[]): void {
  void wakeRuns(services().queue, runs).catch((error) => logger.debug({ err: error }, "wake-ups not sent"));
}
