/** What people are asked: lists, single questions, decisions, and links with which people without a key decide. */
import {
  approval,
  approvalLink,
  approvalPage,
  approvalStatuses,
  DroverError,
  decideBody,
  decidedApproval,
  pageQuery,
} from "@drover/protocol";
import {
  type ApprovalFilter,
  type ApprovalRecord,
  linkMaker,
  listApprovals,
  readApproval,
  readRun,
} from "@drover/runs";
import { z } from "zod";
import { approvalAnswer } from "../answers.ts";
import type { App, Context } from "../context.ts";
import { fromCursor, readPage, toCursor } from "../cursors.ts";
import { decide, isBarred, mayDecideOf } from "../deciding.ts";
import type { Caller } from "../keys.ts";
import { missing, requireId, runId } from "../resources.ts";

const tags = ["act"];
const params = z.object({ id: z.string().describe("`apr_…`") });
const noQuery = z.strictObject({});
const listQuery = z.strictObject({ ...pageQuery, status: z.enum(approvalStatuses).optional() });
const json = <T extends z.ZodType>(description: string, schema: T) => ({
  description,
  content: { "application/json": { schema } },
});

export function approvalRoutes(app: App, context: Context): void {
  const { pool, config } = context;

  app.route({
    method: "GET",
    url: "/approvals",
    config: { scope: "read" },
    schema: {
      tags,
      summary: "What people are or were asked, newest first",
      querystring: listQuery,
      response: { 200: json("One page", approvalPage) },
    },
    handler: async (request, reply) => reply.send(await pageOf(request.caller, request.query, {})),
  });

  app.route({
    method: "GET",
    url: "/query/:id/approvals",
    config: { scope: "read", problems: ["not_found"] },
    schema: {
      tags,
      summary: "What people are or were asked about a query, newest first",
      params: z.object({ id: z.string().describe("`run_…`") }),
      querystring: listQuery,
      response: { 200: json("One page", approvalPage) },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const run = (await readRun(pool, tenant, runId(request.params.id))) ?? missing("run");
      return reply.send(await pageOf(request.caller, request.query, { runId: run.id }));
    },
  });

  app.route({
    method: "GET",
    url: "/approvals/:id",
    config: { scope: "read", problems: ["not_found"] },
    schema: {
      tags,
      summary: "What people are or were asked: one question",
      params,
      querystring: noQuery,
      response: { 200: json("The question, and its answer if there is one", approval) },
    },
    handler: async (request, reply) =>
      reply.send(answerTo(request.caller, await readOwn(request.caller.tenant, request.params.id))),
  });

  app.route({
    method: "POST",
    url: "/approvals/:id",
    config: { scope: "approve", problems: ["not_found", "conflict"] },
    schema: {
      tags,
      summary: "Decide",
      description:
        "Once: of several who try one succeeds, and the others get `conflict`, which says how and by whom it was decided. The run goes on when " +
        "nothing else is open. `forbidden` also where a key may not decide about runs that it submitted itself (`DROVER_APPROVE_OWN`).",
      params,
      querystring: noQuery,
      body: decideBody,
      response: { 200: json("Decided", decidedApproval) },
    },
    handler: async (request, reply) => {
      const { caller } = request;
      const { decision, edited_input, note, result } = request.body;
      const asked = await readOwn(caller.tenant, request.params.id);
      requireOther(asked, caller);
      const decided = await decide(context, asked, {
        decision,
        by: caller.keyId,
        ...(edited_input !== undefined && { editedInput: edited_input }),
        ...(note && { note }),
        ...(result !== undefined && { result }),
      });
      return reply.send({ ...answerTo(request.caller, decided.approval), run_status: decided.runStatus });
    },
  });

  app.route({
    method: "POST",
    url: "/approvals/:id/link",
    config: { scope: "approve", problems: ["not_found", "conflict"] },
    schema: {
      tags,
      summary: "A link with which somebody without a key decides",
      description:
        "Whoever has the link may decide, once, until the question expires; the log and the audit trail then say `link`. It is the same link " +
        "every time. `conflict` when it is decided already, and while `DROVER_PUBLIC_URL` is not set.",
      params,
      querystring: noQuery,
      response: { 200: json("The link", approvalLink) },
    },
    handler: async (request, reply) => {
      const { caller } = request;
      const asked = await readOwn(caller.tenant, request.params.id);
      requireOther(asked, caller);
      if (asked.status !== "pending")
        throw new DroverError("conflict", `It is ${asked.status} already, by ${asked.decidedBy}.`);
      if (config.DROVER_PUBLIC_URL === undefined)
        throw new DroverError(
          "conflict",
          "Links need the address at which people reach this service: set DROVER_PUBLIC_URL.",
        );
      const linkTo = await linkMaker(pool, caller.tenant, config.DROVER_PUBLIC_URL);
      return reply.send({ url: linkTo(asked), expires_at: asked.expiresAt.toISOString() });
    },
  });

  const answerTo = (caller: Caller, asked: ApprovalRecord) => approvalAnswer(asked, mayDecideOf(caller, asked, config));

  /** The tenant's question. @throws DroverError `not_found` */
  async function readOwn(tenant: string, id: string): Promise<ApprovalRecord> {
    return (await readApproval(pool, tenant, requireId("approval", id))) ?? missing("approval");
  }

  /** @throws DroverError `forbidden` when the caller submitted the run, and that is barred */
  function requireOther(asked: ApprovalRecord, { keyId }: Caller): void {
    if (isBarred(asked, keyId, config))
      throw new DroverError("forbidden", "This key submitted the query: somebody else must decide.");
  }

  async function pageOf(caller: Caller, query: z.infer<typeof listQuery>, of: Pick<ApprovalFilter, "runId">) {
    const { limit, cursor, status } = query;
    const before = fromCursor("approvals", cursor);
    const filter = { ...of, ...(status && { status }), ...(before !== undefined && { before }) };
    const { entries, nextCursor } = await readPage(
      limit,
      (most) => listApprovals(pool, caller.tenant, { ...filter, limit: most }),
      (last) => toCursor("approvals", last.id),
    );
    return { data: entries.map((asked) => answerTo(caller, asked)), next_cursor: nextCursor };
  }
}
