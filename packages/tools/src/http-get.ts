/** `http_get`: reads a page or an API over the guarded way out, following redirects itself so that each is judged anew. */
import { TextDecoder } from "node:util";
import { type Egress, type EgressResponse, EgressTimeout } from "@drover/egress";
import { defineTool, type ToolDefinition } from "@drover/harness";
import { z } from "zod";

const mostRedirects = 5;
const totalMs = 30_000;
const mostBytes = 256 * 1024;
const defaultBytes = 64 * 1024;
const headers = { accept: "text/*, application/json, */*;q=0.5", "user-agent": "drover" };
const redirects = new Set([301, 302, 303, 307, 308]);
const textTypes =
  /^(text\/.*|application\/((.*\+)?(json|xml|yaml)|x-yaml|x-ndjson|ndjson|javascript|x-www-form-urlencoded))$/;

const input = z.object({
  url: z.string().min(1).max(8192).describe("absolute http or https URL on the public internet"),
  max_bytes: z
    .number()
    .int()
    .min(1)
    .max(mostBytes)
    .default(defaultBytes)
    .describe(`bytes of the body to read at most (${defaultBytes}, up to ${mostBytes})`),
});

/** `totalMs` covers all redirects together; tests shorten it. */
export function httpGetTool(egress: Egress, limits = { totalMs }): ToolDefinition<z.infer<typeof input>> {
  return defineTool({
    name: "http_get",
    description:
      "Fetches a URL by GET and returns its status, content type and body as text. Up to five redirects are followed. A status " +
      "such as 404 is a result, not an error. A body that is not text is left out; `truncated` says that a body was longer.",
    input,
    permission: "read",
    effect: "pure",
    untrusted: true,
    // Whatever stands in a URL leaves this place.
    external: true,
    timeoutMs: limits.totalMs + 5000,
    maxOutputBytes: 6 * mostBytes + 16_384,
    async execute({ url, max_bytes: maxBytes }, { signal }) {
      const startedAt = performance.now();
      let at = url;
      for (let hops = 0; ; hops++) {
        const timeoutMs = Math.max(1, limits.totalMs - (performance.now() - startedAt));
        const response = await egress.request(at, { headers, maxBytes, timeoutMs, signal }).catch((error) => {
          throw signal.aborted ? error : explain(error, { at, hops, totalMs: limits.totalMs });
        });
        const { location } = response.headers;
        if (!redirects.has(response.status) || location === undefined) return toResult(at, response);
        if (hops === mostRedirects)
          throw new Error(`More than ${mostRedirects} redirects, the last one to ${location}`);
        if (!URL.canParse(location, at)) throw new Error(`${at} redirects to "${location}", which is not a URL.`);
        at = new URL(location, at).href;
      }
    },
  });
}

function explain(error: unknown, { at, hops, totalMs }: { at: string; hops: number; totalMs: number }): unknown {
  if (error instanceof EgressTimeout) {
    return new Error(`${new URL(at).host} did not answer in full within ${totalMs / 1000} s, redirects included.`);
  }
  return hops > 0 && error instanceof Error ? new Error(`Redirected to ${at}: ${error.message}`) : error;
}

function toResult(url: string, response: EgressResponse): object {
  const contentType = response.headers["content-type"];
  const [type = "", ...parameters] = (contentType ?? "").toLowerCase().split(";");
  const result = { url, status: response.status, content_type: contentType ?? null };
  const isText = contentType === undefined ? !response.body.includes(0) : textTypes.test(type.trim());
  if (!isText)
    return { ...result, body: null, truncated: response.truncated, note: "not text, so the body is left out" };
  const charset = parameters.map((parameter) => /^\s*charset\s*=\s*"?([^"\s]+)/.exec(parameter)?.[1]).find(Boolean);
  return { ...result, body: decode(response, charset ?? "utf-8"), truncated: response.truncated };
}

function decode({ body, truncated }: EgressResponse, charset: string): string {
  let decoder: TextDecoder;
  try {
    decoder = new TextDecoder(charset);
  } catch {
    decoder = new TextDecoder();
  }
  // A cut body may end inside a character: `stream` keeps that back.
  return decoder.decode(body, { stream: truncated });
}
