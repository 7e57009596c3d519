import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { gzipSync } from "node:zlib";
import { createEgress } from "@drover/egress";
import { describe, expect, it, onTestFinished } from "vitest";
import { httpGetTool } from "../../packages/tools/src/http-get.ts";
import { callTool, messageOf } from "./call.ts";

async function serve(answer: RequestListener): Promise<{ url: string; requests: string[] }> {
  const requests: string[] = [];
  const server = createServer((request, response) => {
    requests.push(request.url!);
    answer(request, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(async () => {
    server.close();
    server.closeAllConnections();
    await once(server, "close");
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, requests };
}

function tool(allow: string[], limits?: { totalMs: number }) {
  const egress = createEgress({ allow });
  onTestFinished(() => egress.close());
  return httpGetTool(egress, limits);
}
const open = (limits?: { totalMs: number }) => tool(["127.0.0.0/8"], limits);

describe("http_get refuses", () => {
  it("a private address, and asks nobody", async () => {
    const server = await serve((_request, response) => response.end("secret"));
    const message = await messageOf(callTool(tool([]), { url: `${server.url}/` }));
    expect(message).toContain("private or reserved address");
    expect(server.requests).toEqual([]);
  });

  it("a redirect to one", async () => {
    const server = await serve((_request, response) => {
      response.writeHead(302, { location: "http://169.254.169.254/latest/meta-data/" }).end();
    });
    const message = await messageOf(callTool(open(), { url: server.url }));
    expect(message).toContain("Redirected to http://169.254.169.254/latest/meta-data/");
    expect(message).toContain("private or reserved address");
  });

  it.each([
    ["file:///etc/passwd", "http or https"],
    ["http://name:word@example.com/", "must not contain a user name"],
    ["//example.com", "absolute URL"],
  ])("a redirect to %s, and the URL itself", async (location, message) => {
    const server = await serve((_request, response) => response.writeHead(301, { location }).end());
    if (location !== "//example.com") {
      expect(await messageOf(callTool(open(), { url: server.url }))).toContain(message);
    }
    expect(await messageOf(callTool(open(), { url: location }))).toContain(message);
  });

  it("a redirect to nothing that is a URL", async () => {
    const server = await serve((_request, response) => response.writeHead(301, { location: "http://" }).end());
    expect(await messageOf(callTool(open(), { url: server.url }))).toContain("which is not a URL");
  });

  it("the sixth redirect", async () => {
    const server = await serve((request, response) => {
      response.writeHead(307, { location: `${Number(request.url!.slice(1)) + 1}` }).end();
    });
    expect(await messageOf(callTool(open(), { url: `${server.url}/0` }))).toBe(
      "More than 5 redirects, the last one to 6",
    );
    expect(server.requests).toEqual(["/0", "/1", "/2", "/3", "/4", "/5"]);
  });

  it("to wait longer than its total time, over redirects and a body that drips", async () => {
    const server = await serve((request, response) => {
      if (request.url === "/0") return response.writeHead(302, { location: "/1" }).end();
      response.writeHead(200);
      const drip = setInterval(() => response.write("x"), 5);
      response.on("close", () => clearInterval(drip));
    });
    const message = await messageOf(callTool(open({ totalMs: 300 }), { url: `${server.url}/0` }));
    expect(message).toMatch(/did not answer in full within 0\.3 s, redirects included\.$/);
    expect(server.requests).toEqual(["/0", "/1"]);
  });

  it("to go on when the run stops", async () => {
    const asked = Promise.withResolvers<void>();
    const server = await serve(() => asked.resolve());
    const controller = new AbortController();
    const call = callTool(open(), { url: server.url }, { signal: controller.signal });
    await asked.promise;
    const reason = new Error("cancelled");
    controller.abort(reason);
    await expect(call).rejects.toBe(reason);
  });
});

describe("http_get gives", () => {
  it("status, type and text, also of a failure", async () => {
    const server = await serve((_request, response) => {
      response.writeHead(404, { "content-type": "application/problem+json; charset=utf-8" }).end('{"detail":"né"}');
    });
    expect(await callTool(open(), { url: `${server.url}/x` })).toEqual({
      url: `${server.url}/x`,
      status: 404,
      content_type: "application/problem+json; charset=utf-8",
      body: '{"detail":"né"}',
      truncated: false,
    });
  });

  it("where redirects led in the end, five of them", async () => {
    const server = await serve((request, response) => {
      const step = Number(request.url!.slice(1));
      if (step === 5) response.end("there");
      else response.writeHead([301, 302, 303, 307, 308][step]!, { location: `/${step + 1}` }).end();
    });
    const result = await callTool(open(), { url: `${server.url}/0` });
    expect(result).toMatchObject({ url: `${server.url}/5`, status: 200, body: "there" });
  });

  it("a redirect without a target as it is", async () => {
    const server = await serve((_request, response) => response.writeHead(302).end("nowhere"));
    expect(await callTool(open(), { url: server.url })).toMatchObject({ status: 302, body: "nowhere" });
  });

  it("as much of the body as was asked for, in whole characters, decoded", async () => {
    const server = await serve((_request, response) => {
      response
        .writeHead(200, { "content-type": "text/html", "content-encoding": "gzip" })
        .end(gzipSync("€".repeat(100_000)));
    });
    const result = await callTool(open(), { url: server.url, max_bytes: 100 });
    expect(result).toMatchObject({ body: "€".repeat(33), truncated: true });
    expect((await callTool(open(), { url: server.url })).body.length).toBe(Math.floor(65_536 / 3));
    await expect(callTool(open(), { url: server.url, max_bytes: 1_000_000 })).rejects.toThrow();
  });

  it.each([
    ["text/plain; charset=iso-8859-1", Buffer.from("na\u00efve", "latin1"), "naïve"],
    ['text/plain; charset="UTF-8"', "naïve", "naïve"],
    ["text/plain; charset=no-such-thing", "naïve", "naïve"],
    ["TEXT/CSV", "a,b", "a,b"],
    ["application/xhtml+xml", "<p/>", "<p/>"],
    ["application/x-ndjson", "{}\n", "{}\n"],
    ["image/png", "\x89PNG", null],
    ["application/octet-stream", "bytes", null],
  ])("%s", async (type, bytes, body) => {
    const server = await serve((_request, response) => response.writeHead(200, { "content-type": type }).end(bytes));
    const result = await callTool(open(), { url: server.url });
    expect(result).toMatchObject({ status: 200, content_type: type, body });
    expect(result.note).toBe(body === null ? "not text, so the body is left out" : undefined);
  });

  it("text without a type, but not bytes without one", async () => {
    const server = await serve((request, response) => response.end(request.url === "/text" ? "text" : "a\0b"));
    expect(await callTool(open(), { url: `${server.url}/text` })).toMatchObject({ content_type: null, body: "text" });
    expect(await callTool(open(), { url: `${server.url}/bytes` })).toMatchObject({ content_type: null, body: null });
  });
});
