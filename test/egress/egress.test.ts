import { once } from "node:events";
import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { inspect } from "node:util";
import { brotliCompressSync, createGzip, gzipSync } from "node:zlib";
import {
  createEgress,
  type Egress,
  EgressFailed,
  type EgressOptions,
  EgressRefused,
  EgressTimeout,
  type Lookup,
} from "@drover/egress";
import { describe, expect, it } from "vitest";
import { guardedConnector } from "../../packages/egress/src/connector.ts";
import { freePort } from "../support/ports.ts";
import { spawnNode } from "../support/process.ts";
import { selfSigned } from "./self-signed.ts";
import { afterTest, httpServer, httpsServer, tcpServer } from "./servers.ts";

const loopback = ["127.0.0.0/8"];
/** Long enough never to matter where another end is expected. */
const limits = { timeoutMs: 20_000, maxBytes: 100_000 };

function egressFor(options: EgressOptions = {}): Egress {
  const egress = createEgress({ allow: loopback, ...options });
  afterTest(() => egress.close());
  return egress;
}

/** Answers one list of addresses after the other, and the last one from then on. */
function scripted(...answers: string[][]): Lookup & { asked: string[] } {
  const asked: string[] = [];
  const lookup: Lookup = (hostname, _options, callback) => {
    const answer = answers[Math.min(asked.length, answers.length - 1)]!;
    asked.push(hostname);
    setImmediate(() =>
      callback(
        null,
        answer.map((address) => ({ address, family: address.includes(":") ? 6 : 4 })),
      ),
    );
  };
  return Object.assign(lookup, { asked });
}

async function failureOf(work: Promise<unknown>): Promise<Error> {
  return await work.then(
    () => expect.unreachable("the request should have failed"),
    (error) => error,
  );
}

describe("where it goes", () => {
  it("refuses a name when only one of its addresses is private, and connects to none", async () => {
    const server = await httpServer((_request, response) => response.end());
    const lookup = scripted(["127.0.0.1", "10.0.0.1"]);
    const error = await failureOf(egressFor({ lookup }).request(`http://mixed.test:${server.port}/`, limits));
    expect(error).toBeInstanceOf(EgressRefused);
    expect(error.message).toContain("mixed.test");
    expect(inspect(error)).not.toContain("10.0.0.1");
    expect(server.connections).toBe(0);
  });

  it("looks a name up once per connection and judges every answer anew", async () => {
    const server = await httpServer((_request, response) => response.end("hello"));
    const asked: string[] = [];
    let answer = "127.0.0.1";
    const lookup: Lookup = (hostname, _options, callback) => {
      asked.push(hostname);
      callback(null, [{ address: answer, family: 4 }]);
    };
    const egress = egressFor({ lookup });
    const url = `http://rebinding.test:${server.port}/`;
    for (let i = 0; i < 5; i++) expect((await egress.request(url, limits)).body.toString()).toBe("hello");
    const { connections } = server;
    expect(asked).toEqual(Array(connections).fill("rebinding.test"));
    expect(connections).toBeLessThan(5);

    answer = "192.168.0.1";
    server.closeConnections();
    // Until undici has noticed the close, the old connections fail the request instead.
    let error: Error;
    do error = await failureOf(egress.request(url, limits));
    while (asked.length === connections);
    expect(error).toBeInstanceOf(EgressRefused);
    expect(server.connections).toBe(connections);
  });

  it("refuses an address without a look-up in the connector too, whoever uses it", async () => {
    const server = await httpServer((_request, response) => response.end());
    const connect = guardedConnector([], scripted(["127.0.0.1"]));
    const target = { hostname: "127.0.0.1", protocol: "http:", port: String(server.port) };
    const outcome = await new Promise((resolve) => connect(target, (error, socket) => resolve(error ?? socket)));
    expect(outcome).toBeInstanceOf(EgressRefused);
    expect(server.connections).toBe(0);
  });

  it("looks again at where the socket ended up", async () => {
    const server = await httpServer((_request, response) => response.end());
    // The system connects 0.0.0.0 to 127.0.0.1, which is not allowed here.
    const egress = egressFor({ allow: ["0.0.0.0/32"] });
    const error = await failureOf(egress.request(`http://0.0.0.0:${server.port}/`, limits));
    expect(error).toBeInstanceOf(EgressRefused);
    expect(server.requests).toEqual([]);
  });

  it("refuses an answer of the resolver that is not an address", async () => {
    const egress = egressFor({ lookup: scripted(["not an address"]) });
    expect(await failureOf(egress.request("http://odd.test/", limits))).toBeInstanceOf(EgressRefused);
  });

  it.each(["ftp://127.0.0.1/", "http://user:pass@127.0.0.1/", "nonsense"])(
    "refuses %s before it does anything",
    async (url) => {
      const error = await failureOf(egressFor().request(url, limits));
      expect(error).toBeInstanceOf(EgressRefused);
      expect(error.message).not.toContain("pass@");
    },
  );

  it("tries the next address of a name", async () => {
    const server = await httpServer((_request, response) => response.end("second"));
    const lookup = scripted(["127.0.0.9", "127.0.0.1"]);
    const response = await egressFor({ lookup }).request(`http://two.test:${server.port}/`, limits);
    expect(response.body.toString()).toBe("second");
  });

  it("looks real names up", async () => {
    const server = await httpServer((_request, response) => response.end("here"));
    const egress = egressFor({ allow: [...loopback, "::1/128"] });
    const response = await egress.request(`http://localhost:${server.port}/`, limits);
    expect(response.body.toString()).toBe("here");
    const error = await failureOf(egressFor({ allow: [] }).request(`http://localhost:${server.port}/`, limits));
    expect(error).toBeInstanceOf(EgressRefused);
  });

  it("answers a redirect as it is", async () => {
    const server = await httpServer((_request, response) => {
      response.writeHead(302, { location: "/elsewhere" }).end("moved");
    });
    const response = await egressFor().request(`${server.url}/start`, limits);
    expect(response).toMatchObject({ status: 302, headers: { location: "/elsewhere" } });
    expect(server.requests).toEqual(["GET /start"]);
  });

  it("uses no proxy of the environment, where fetch does", async () => {
    const target = await httpServer((_request, response) => response.end());
    const proxy = await tcpServer((socket) => socket.once("data", () => socket.end("HTTP/1.1 502 No\r\n\r\n")));
    const child = spawnNode(new URL("proxy-process.ts", import.meta.url), {
      args: [`${target.url}/direct`],
      env: {
        NODE_USE_ENV_PROXY: "1",
        HTTP_PROXY: proxy.url,
        http_proxy: proxy.url,
        ALL_PROXY: proxy.url,
        NO_PROXY: undefined,
        no_proxy: undefined,
      },
    });
    await child.exited;
    expect(child.lines, child.output()).toEqual(["fetch failed", "egress 200"]);
    expect(proxy.connections).toBe(1);
    expect(target.requests).toEqual(["GET /direct"]);
  });
});

describe("when it ends", () => {
  // The test's own limit is shorter than the connector's: the deadline must not wait for that one.
  it("gives up a name that is never answered", { timeout: 5_000 }, async () => {
    const egress = egressFor({ lookup: () => {} });
    const error = await failureOf(egress.request("http://slow.test/", { ...limits, timeoutMs: 50 }));
    expect(error).toBeInstanceOf(EgressTimeout);
    expect(error.message).toBe("slow.test did not answer in full within 50 ms");
  });

  it("never sends a request that was given up before it had a connection", async () => {
    const server = await httpServer((_request, response) => response.end());
    const held: (() => void)[] = [];
    const lookup: Lookup = (_hostname, _options, callback) => {
      held.push(() => callback(null, [{ address: "127.0.0.1", family: 4 }]));
    };
    const egress = egressFor({ lookup });
    const url = `http://held.test:${server.port}`;
    const late = egress.request(`${url}/late`, { ...limits, method: "POST", body: "{}", timeoutMs: 50 });
    expect(await failureOf(late)).toBeInstanceOf(EgressTimeout);
    const inTime = egress.request(`${url}/in-time`, limits);
    for (const answer of held) answer();
    expect((await inTime).status).toBe(200);
    expect(server.requests).toEqual(["GET /in-time"]);
  });

  it("gives up a TLS handshake that is never answered", async () => {
    const server = await tcpServer(() => {});
    const request = egressFor().request(`https://127.0.0.1:${server.port}/`, { ...limits, timeoutMs: 200 });
    expect(await failureOf(request)).toBeInstanceOf(EgressTimeout);
  });

  it("cuts a body that drips for ever, and the connection with it", async () => {
    const closed = Promise.withResolvers<void>();
    const server = await httpServer((_request, response) => {
      response.write("drip");
      const drip = setInterval(() => response.write("drip"), 5);
      response.on("close", () => {
        clearInterval(drip);
        closed.resolve();
      });
    });
    const request = egressFor().request(server.url, { timeoutMs: 300, maxBytes: 10_000_000 });
    const error = await failureOf(request);
    expect(error).toBeInstanceOf(EgressTimeout);
    expect(error).toMatchObject({ status: 200 });
    await closed.promise;
  });

  it("ends with the signal's reason, before and during the request", async () => {
    const asked = Promise.withResolvers<Socket>();
    const server = await httpServer((request) => asked.resolve(request.socket));
    const egress = egressFor();
    const reason = new Error("the run was cancelled");
    expect(await failureOf(egress.request(server.url, { ...limits, signal: AbortSignal.abort(reason) }))).toBe(reason);
    expect(server.connections).toBe(0);

    const controller = new AbortController();
    const request = failureOf(egress.request(server.url, { ...limits, signal: controller.signal }));
    const socket = await asked.promise;
    const closed = once(socket, "close");
    controller.abort(reason);
    expect(await request).toBe(reason);
    await closed;
  });

  it("fails what is under way when it is closed, and everything after", async () => {
    const asked = Promise.withResolvers<void>();
    const server = await httpServer(() => asked.resolve());
    const egress = createEgress({ allow: loopback });
    const request = failureOf(egress.request(server.url, limits));
    await asked.promise;
    await egress.close();
    expect(await request).toBeInstanceOf(EgressFailed);
    expect(await failureOf(egress.request(server.url, limits))).toBeInstanceOf(EgressFailed);
  });
});

describe("what it reads", () => {
  it("gives status, headers and the body's bytes", async () => {
    const received: Buffer[] = [];
    const server = await httpServer(async (request, response) => {
      for await (const chunk of request) received.push(chunk);
      expect(request.headers).toMatchObject({ "x-one": "1", "accept-encoding": "gzip, br", "content-length": "4" });
      response.writeHead(418, { "X-Two": "2", "Set-Cookie": ["a=1", "b=2"] }).end(Buffer.from([0, 255, 10]));
    });
    const response = await egressFor().request(`${server.url}/path?q=1#fragment`, {
      ...limits,
      method: "POST",
      headers: { "x-one": "1" },
      body: "päy",
    });
    expect(response).toMatchObject({ status: 418, headers: { "x-two": "2", "set-cookie": "a=1, b=2" } });
    expect([...response.body]).toEqual([0, 255, 10]);
    expect(response.truncated).toBe(false);
    expect(Buffer.concat(received).toString()).toBe("päy");
    expect(server.requests).toEqual(["POST /path?q=1"]);
  });

  it("stops at its limit, counted in decoded bytes: an endless gzip bomb ends", async () => {
    const closed = Promise.withResolvers<void>();
    const server = await httpServer((_request, response) => {
      response.writeHead(200, { "content-encoding": "gzip" });
      const bomb = createGzip({ level: 9 });
      bomb.pipe(response);
      const zeros = Buffer.alloc(1 << 20);
      const feed = () => bomb.write(zeros, () => response.closed || feed());
      feed();
      response.on("close", () => closed.resolve());
    });
    const response = await egressFor().request(server.url, { ...limits, maxBytes: 12_345 });
    expect(response).toMatchObject({ status: 200, truncated: true });
    expect(response.body).toEqual(Buffer.alloc(12_345));
    await closed.promise;
  });

  it("does not call a body truncated that just fits", async () => {
    const server = await httpServer((_request, response) => response.end("x".repeat(70_000)));
    const egress = egressFor();
    const whole = await egress.request(server.url, { ...limits, maxBytes: 70_000 });
    expect([whole.body.length, whole.truncated]).toEqual([70_000, false]);
    const cut = await egress.request(server.url, { ...limits, maxBytes: 69_999 });
    expect([cut.body.length, cut.truncated]).toEqual([69_999, true]);
    const nothing = await egress.request(server.url, { ...limits, maxBytes: 0 });
    expect([nothing.body.length, nothing.truncated]).toEqual([0, true]);
  });

  it("decodes what it said it understands", async () => {
    const text = "again and again ".repeat(1000);
    const bodies: Record<string, Buffer> = { gzip: gzipSync(text), br: brotliCompressSync(text) };
    const server = await httpServer((request, response) => {
      const coding = request.url!.slice(1);
      response.writeHead(200, { "content-encoding": coding }).end(bodies[coding]);
    });
    const egress = egressFor();
    for (const coding of Object.keys(bodies)) {
      expect((await egress.request(`${server.url}/${coding}`, limits)).body.toString()).toBe(text);
    }
  });

  it.each([
    [200, "GET", Buffer.alloc(0)],
    [204, "GET", undefined],
    [304, "GET", undefined],
    [200, "HEAD", undefined],
  ])("takes an empty %i to %s although it claims to be gzip", async (status, method, body) => {
    const server = await httpServer((_request, response) => {
      response.writeHead(status, { "content-encoding": "gzip" }).end(body);
    });
    const response = await egressFor().request(server.url, { ...limits, method });
    expect([response.status, response.body.length]).toEqual([status, 0]);
  });

  it.each([
    ["compress", "x", "ENCODING"],
    ["gzip, gzip", gzipSync(gzipSync("x")), "ENCODING"],
    ["constructor", "x", "ENCODING"],
    ["gzip", "not gzip at all", "Z_DATA_ERROR"],
    ["gzip", gzipSync("cut in the middle").subarray(0, 20), "Z_BUF_ERROR"],
    ["br", "not brotli at all", "ERR__ERROR_FORMAT_PADDING_2"],
  ])("fails on a body in %s that cannot be decoded", async (coding, body, code) => {
    const closed = Promise.withResolvers<void>();
    const server = await httpServer((request, response) => {
      request.socket.on("close", () => closed.resolve());
      response.writeHead(200, { "content-encoding": coding }).write(body);
      if (code === "Z_BUF_ERROR") response.end(() => request.socket.end());
    });
    const error = await failureOf(egressFor().request(server.url, limits));
    await closed.promise;
    expect(error).toBeInstanceOf(EgressFailed);
    expect(error).toMatchObject({ code, status: 200, message: expect.stringContaining("content-encoding") });
  });
});

describe("how it fails", () => {
  it("says connection refused, and keeps the URL's secrets and the address to itself", async () => {
    const port = await freePort();
    const egress = egressFor({ lookup: scripted(["127.0.0.1"]) });
    const error = await failureOf(egress.request(`http://closed.test:${port}/s3cret?token=s3cret`, limits));
    expect(error).toBeInstanceOf(EgressFailed);
    expect(error.message).toBe(`closed.test:${port}: connection refused (ECONNREFUSED)`);
    expect(inspect(error)).not.toMatch(/s3cret|127\.0\.0\.1/);
    expect(error).toMatchObject({ status: undefined });
  });

  it.each([
    ["ENOTFOUND", "host not found"],
    ["EAI_AGAIN", "host name look-up failed for now"],
  ])("passes a look-up's %s on", async (code, meaning) => {
    const lookup: Lookup = (_hostname, _options, callback) => callback(Object.assign(new Error("dns"), { code }), []);
    const error = await failureOf(egressFor({ lookup }).request("http://gone.test/", limits));
    expect(error).toBeInstanceOf(EgressFailed);
    expect(error.message).toBe(`gone.test: ${meaning} (${code})`);
  });

  it("takes an empty answer for not found", async () => {
    const error = await failureOf(egressFor({ lookup: scripted([]) }).request("http://empty.test/", limits));
    expect(error).toMatchObject({ name: "EgressFailed", code: "ENOTFOUND" });
  });

  it("does not trust a self-signed certificate, nor speak TLS to a plain server", async () => {
    const signed = await httpsServer(selfSigned, (_request, response) => response.end());
    const egress = egressFor({ lookup: scripted(["127.0.0.1"]) });
    const distrust = await failureOf(egress.request(`https://self-signed.test:${signed.port}/`, limits));
    expect(distrust).toBeInstanceOf(EgressFailed);
    expect(distrust).toMatchObject({ code: "DEPTH_ZERO_SELF_SIGNED_CERT", message: expect.stringContaining("TLS") });
    expect(signed.requests).toEqual([]);

    const plain = await httpServer((_request, response) => response.end());
    const mismatch = await failureOf(egress.request(`https://plain.test:${plain.port}/`, limits));
    expect(mismatch).toBeInstanceOf(EgressFailed);
    expect(mismatch.message).toContain("TLS");
  });

  it.each([
    ["closes without an answer", "", "UND_ERR_SOCKET"],
    ["speaks something else", "SSH-2.0-OpenSSH_9.9\r\n", "HTTPParserError"],
    ["closes in the middle of the body", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "UND_ERR_SOCKET"],
    ["sends endless headers", `HTTP/1.1 200 OK\r\nx: ${"x".repeat(1 << 20)}`, "UND_ERR_HEADERS_OVERFLOW"],
  ])("fails on a server that %s", async (_what, bytes, code) => {
    const server = await tcpServer((socket) => socket.once("data", () => socket.end(bytes)));
    const error = await failureOf(egressFor().request(server.url, limits));
    expect(error).toBeInstanceOf(EgressFailed);
    expect(error).toMatchObject({ code });
  });

  it.each([{ method: "NOT VALID" }, { headers: { "x-split": "a\r\nx-smuggled: b" } }])(
    "refuses to send %o",
    async (wrong) => {
      const server = await httpServer((_request, response) => response.end());
      const error = await failureOf(egressFor().request(server.url, { ...limits, ...wrong }));
      expect(error).toMatchObject({ name: "EgressFailed", code: "UND_ERR_INVALID_ARG" });
      expect(server.requests).toEqual([]);
    },
  );
});

describe("a dead host", () => {
  it("does not keep others waiting, however many requests hang on it", async () => {
    const hanging: ServerResponse[] = [];
    const all = Promise.withResolvers<void>();
    const dead = await httpServer((_request, response) => {
      if (hanging.push(response) === 128) all.resolve();
    });
    const alive = await httpServer((_request, response) => response.end("alive"));
    const egress = egressFor();
    const controller = new AbortController();
    const requests = Array.from({ length: 200 }, () =>
      failureOf(egress.request(dead.url, { ...limits, signal: controller.signal })),
    );
    await all.promise;
    expect((await egress.request(alive.url, limits)).body.toString()).toBe("alive");
    expect(dead.connections).toBe(128);

    controller.abort(new Error("enough"));
    for (const error of await Promise.all(requests)) expect(error.message).toBe("enough");
  });

  it("holds one look-up, however many requests need it", async () => {
    const asked: string[] = [];
    const server = await httpServer((_request, response) => response.end("alive"));
    const lookup: Lookup = (hostname, _options, callback) => {
      asked.push(hostname);
      if (hostname === "alive.test") callback(null, [{ address: "127.0.0.1", family: 4 }]);
    };
    const egress = egressFor({ lookup });
    const controller = new AbortController();
    const requests = Array.from({ length: 50 }, () =>
      failureOf(egress.request("http://dead.test/", { ...limits, signal: controller.signal })),
    );
    expect((await egress.request(`http://alive.test:${server.port}/`, limits)).body.toString()).toBe("alive");
    expect(asked).toEqual(["dead.test", "alive.test"]);
    controller.abort();
    await Promise.all(requests);
  });
});
