/** What people are asked, and how they answer. */
import { z } from "zod";
import { page, plainText, shallow, timestamp, wireId } from "./fields.ts";
import { runStatuses } from "./statuses.ts";

export const approvalStatuses = ["pending", "approved", "rejected", "expired"] as const;
export const approvalSubjects = ["call", "uncertain", "input", "result", "output"] as const;

const fields = {
  id: wireId("approval"),
  task_id: wireId("run"),
  agent: z.string(),
  subject: z
    .enum(approvalSubjects)
    .describe(
      "`call`: a tool call before it is carried out; `uncertain`: one whose worker died in it, and nobody knows whether it took effect; " +
        "`input`, `result`, `output`: something a policy holds back",
    ),
  tool_name: z.string().nullable(),
  input: z.unknown().describe("the arguments, or the content asked about; null where `withheld`"),
  withheld: z
    .literal(true)
    .optional()
    .describe("the content is held back by a policy, and only who may decide is shown it before it is approved"),
  reason: z.string(),
  hash: z.string().describe("names exactly what is asked about: what runs is what was approved"),
  status: z.enum(approvalStatuses),
  requested_at: timestamp,
  expires_at: timestamp,
  on_expiry: z.enum(["reject", "fail"]).describe("what silence means"),
  decided_at: timestamp.nullable(),
  decided_by: z
    .string()
    .nullable()
    .describe("the id of a key; `link`: somebody with a link; `system`: nobody decided in time, or the run ended"),
  decision: z.enum(["approve", "reject", "expire", "retry", "done", "fail"]).nullable(),
  note: z.string().nullable(),
  edited_input: z.unknown().optional().describe("approved with these arguments instead of `input`"),
};

const example = {
  id: "apr_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
  task_id: "run_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
  agent: "shop",
  subject: "call" as const,
  tool_name: "send_mail",
  input: { to: "ann@example.com", text: "Your lamp is on its way." },
  reason: "The tool send_mail is irreversible.",
  hash: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
  status: "approved" as const,
  requested_at: "2026-11-21T09:30:00.000Z",
  expires_at: "2026-11-22T09:30:00.000Z",
  on_expiry: "reject" as const,
  decided_at: "2026-11-21T09:31:12.000Z",
  decided_by: "key_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
  decision: "approve" as const,
  note: null,
};

export const approval = z.object(fields).meta({ id: "Approval", examples: [example] });
export type ApprovalAnswer = z.infer<typeof approval>;
export const approvalPage = page(approval).meta({ id: "ApprovalPage" });

export const decidedApproval = z
  .object({ ...fields, run_status: z.enum(runStatuses).describe("of the run, which goes on once nothing is open") })
  .meta({ id: "DecidedApproval", examples: [{ ...example, run_status: "queued" }] });
export type DecidedAnswer = z.infer<typeof decidedApproval>;

export const longestNote = 2000;

export const decideBody = z
  .strictObject({
    decision: z
      .enum(["approve", "reject", "retry", "done", "fail"])
      .describe(
        "`approve` or `reject`. Of an uncertain call: `retry` (it runs again), `done` (it took effect), or `fail` (the run ends)",
      ),
    edited_input: shallow(z.unknown())
      .optional()
      .describe("with `approve` of a tool call: it runs with these arguments instead, if they fit the tool's schema"),
    note: plainText(longestNote).optional().describe("stands in the log; with `reject` the model sees it"),
    result: shallow(z.unknown()).optional().describe("with `done`: what the call returned; the model sees it"),
  })
  .meta({ id: "Decide", examples: [{ decision: "reject", note: "Not to this address." }] });

export const approvalLink = z
  .object({
    url: z.string().describe("whoever has it may decide, once, without a key"),
    expires_at: timestamp,
  })
  .meta({
    id: "ApprovalLink",
    examples: [
      {
        url: "https://drover.example.com/approvals/link/AZNvPnxafUGKPlsPnC0eSnQ2m1i1…",
        expires_at: "2026-11-22T09:30:00.000Z",
      },
    ],
  });
