/** A run that asks people, as its owner makes it ask. */
import type { ApprovalRequest } from "@drover/harness";
import { toWireId, uuidv7 } from "@drover/protocol";
import type { World } from "./world.ts";

const mail = { to: "ann@example.com", text: "Your lamp is on its way." };

/** Submits a query and asks about it, again if `taskId` is given. Returns the ids. */
export async function ask(
  world: World,
  more: Partial<ApprovalRequest> & { expiresInMs?: number; key?: string } = {},
): Promise<{ taskId: string; id: string; request: ApprovalRequest }> {
  const { expiresInMs = 86_400_000, key, ...request } = more;
  const taskId = await world.submit({}, key === undefined ? {} : { key });
  const owner = await world.own(taskId);
  const asked: ApprovalRequest = {
    approval_id: toWireId("approval", uuidv7()),
    subject: "call",
    iteration: 1,
    index: 0,
    tool_name: "send_mail",
    input: mail,
    reason: "send_mail cannot be undone.",
    hash: "0".repeat(64),
    expires_at: new Date(Date.now() + expiresInMs).toISOString(),
    on_expiry: "reject",
    ...request,
  };
  await owner.append("approval.requested", asked);
  return { taskId, id: asked.approval_id, request: asked };
}
