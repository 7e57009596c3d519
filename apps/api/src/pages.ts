/** What is the same for every page: nothing comes from another origin, nobody frames it. And the first one, which says what this is. */
import type { App } from "./context.ts";

/** For pages that say nothing of their own. */
const policy =
  "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'";

/** Links of a page's head that lead elsewhere. A page is small, and not made of anybody's text. */
const foreign = /<link[^>]{0,500}href="https?:\/\/[^"]{0,500}"[^>]{0,100}>/g;

export function pageHeaders(app: App): void {
  app.addHook("onSend", (_request, reply, payload, done) => {
    if (!String(reply.getHeader("content-type") ?? "").startsWith("text/html")) return done(null, payload);
    const own: Record<string, string> = {
      "content-security-policy": policy,
      "x-content-type-options": "nosniff",
      "x-frame-options": "DENY",
      "referrer-policy": "no-referrer",
    };
    for (const [name, value] of Object.entries(own)) if (!reply.hasHeader(name)) reply.header(name, value);
    if (typeof payload !== "string" || !payload.includes("://")) return done(null, payload);
    reply.removeHeader("content-length");
    done(null, payload.replace(foreign, ""));
  });
}

export const frontPage = (version: string): string => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Drover</title>
<style>
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 12vh auto; max-width: 36rem; padding: 0 1rem; }
code { font-size: 0.9em; }
</style>
</head>
<body>
<h1>Drover</h1>
<p>Background jobs for AI agents, version ${version}. This is the API: send <code>POST /query</code> with a key.</p>
<ul>
<li><a href="/docs">Documentation of every route</a>, also as <a href="/openapi.json">OpenAPI</a></li>
<li><a href="/ready">Whether it can do its duty</a>, and <a href="/metrics">its metrics</a></li>
<li><a href="/admin/queues">The queue</a>, for operators</li>
</ul>
</body>
</html>
`;
