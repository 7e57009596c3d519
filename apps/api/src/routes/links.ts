/**
 * The page behind a link to an approval: what is asked, and a form to decide it. Opening the page decides nothing, whoever opens it; a
 * decision is a POST. The link is the only thing that lets in, so it stays out of logs, caches, search engines and `Referer`.
 */
import { DroverError, longestNote, plainText } from "@drover/protocol";
import { isFinal, readLinked, readRun } from "@drover/runs";
import type { FastifyReply } from "fastify";
import { z } from "zod";
import { messagePage, type Page, questionPage, styleHash } from "../approval-page.ts";
import type { App, Context } from "../context.ts";
import { decide } from "../deciding.ts";
import { explain } from "../problems.ts";

const formBytes = 32_768;
const params = z.object({ token: z.string().describe("the end of a link, as `POST /approvals/{id}/link` gives it") });
const form = z.object({
  decision: z.enum(["approve", "reject", "retry", "done", "fail"]),
  note: z
    .string()
    .transform((text) => text.replaceAll("\r\n", "\n").trim())
    .pipe(plainText(longestNote))
    .optional(),
});
const html = (description: string) => ({ description, content: { "text/html": { schema: z.string() } } });
const notFound = html("The link opens nothing: it is wrong, or its time is up");

const config = { pages: true };

const headers = {
  "content-type": "text/html; charset=utf-8",
  "content-security-policy": `default-src 'none'; style-src '${styleHash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'`,
  "referrer-policy": "no-referrer",
  "cache-control": "no-store",
  "x-robots-tag": "noindex, nofollow, noarchive",
  "x-content-type-options": "nosniff",
};

export async function linkRoutes(app: App, context: Context): Promise<void> {
  await app.register(async (scope) => {
    const pages = scope as App;
    pages.removeAllContentTypeParsers();
    pages.addContentTypeParser(
      "application/x-www-form-urlencoded",
      { parseAs: "string", bodyLimit: formBytes },
      (_request, body, done) => done(null, Object.fromEntries(new URLSearchParams(body as string))),
    );
    pages.setErrorHandler((error, request, reply) => {
      const { problem, retryAfter } = explain(context.logger, error, request);
      if (retryAfter !== undefined) reply.header("retry-after", retryAfter);
      show(reply, problem.status, messagePage(problem.status, request.id));
    });

    pages.route({
      method: "GET",
      url: "/approvals/link/:token",
      config,
      schema: {
        tags: ["act"],
        summary: "The page of a link: what is asked",
        description: "For people, without a key. It decides nothing.",
        params,
        response: { 200: html("What is asked, and a form; or how it was decided"), 404: notFound, ...failures },
      },
      handler: async (request, reply) => {
        const linked = await open(request.params.token);
        return show(reply, 200, questionPage(linked));
      },
    });

    pages.route({
      method: "POST",
      url: "/approvals/link/:token",
      config,
      schema: {
        tags: ["act"],
        summary: "The form of a link: decide",
        description: "For people, without a key: once. Who decided is then `link`.",
        consumes: ["application/x-www-form-urlencoded"],
        params,
        body: form,
        response: {
          200: html("Decided"),
          400: html("The form is not valid"),
          404: notFound,
          409: html("It was decided before; the page says how and by whom"),
          413: html("The form is too large"),
          ...failures,
        },
      },
      handler: async (request, reply) => {
        const linked = await open(request.params.token);
        const { decision, note } = request.body;
        try {
          const { approval } = await decide(context, linked.approval, { decision, by: "link", ...(note && { note }) });
          return show(reply, 200, questionPage({ ...linked, approval }));
        } catch (error) {
          if (!(error instanceof DroverError && error.code === "conflict")) throw error;
          return show(reply, 409, questionPage(await open(request.params.token)));
        }
      },
    });
  });

  /** @throws DroverError `not_found` for every token that opens nothing, whatever the reason */
  async function open(token: string): Promise<Page> {
    context.services();
    const linked = await readLinked(context.pool, token);
    if (!linked) throw new DroverError("not_found", "There is no such page.");
    const { tenant, runId } = linked.approval;
    const run = await readRun(context.pool, tenant, runId);
    return { ...linked, ended: run === null || isFinal(run.status) };
  }
}

const failures = {
  500: html("Something went wrong on our side"),
  503: html("The service cannot decide now; try again"),
};

function show(reply: FastifyReply, status: number, page: string): FastifyReply {
  return reply.code(status).headers(headers).serializer(String).send(page);
}
