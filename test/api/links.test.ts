/** Links for people without a key: what opens them, what the page shows, and that only its form decides. */
import { createHash } from "node:crypto";
import { fromWireId } from "@drover/protocol";
import { createLogger } from "@drover/telemetry";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { linkMaker } from "../../packages/runs/src/people/links.ts";
import { ask } from "./asking.ts";
import { startWorld, type World } from "./world.ts";

const publicUrl = "https://drover.example.com";
const lines: string[] = [];
let world: World;
beforeAll(async () => {
  const logger = createLogger({ name: "api", level: "trace", to: { write: (line) => void lines.push(line) } });
  world = await startWorld({ env: { DROVER_PUBLIC_URL: `${publicUrl}/` }, deps: { logger } });
});
afterAll(() => world.close());

/** The path of the link to a question. */
async function linkTo(id: string): Promise<string> {
  const { status, body } = await world.post(`/approvals/${id}/link`);
  expect(status).toBe(200);
  expect(body.url.startsWith(`${publicUrl}/approvals/link/`)).toBe(true);
  return body.url.slice(publicUrl.length);
}
const open = (path: string) => world.get(path, { key: null });
const send = (path: string, form: Record<string, string> | string) =>
  world.call("POST", path, {
    key: null,
    raw: typeof form === "string" ? form : String(new URLSearchParams(form)),
    headers: { "content-type": "application/x-www-form-urlencoded" },
  });
const statusOf = async (id: string) => (await world.get(`/approvals/${id}`)).body.status;

describe("a link", () => {
  test("is the same every time, and lasts as long as its question", async () => {
    const { id, request } = await ask(world);
    const first = await world.post(`/approvals/${id}/link`);
    expect(first.body).toEqual({
      url: expect.stringMatching(/\/approvals\/link\/[\w-]{64}$/),
      expires_at: request.expires_at,
    });
    expect((await world.post(`/approvals/${id}/link`)).body).toEqual(first.body);
  });

  test("is given to those who may decide, for what is still open", async () => {
    const { id } = await ask(world);
    for (const role of ["submitter", "operator"] as const)
      expect((await world.post(`/approvals/${id}/link`, undefined, { key: await world.keyOf(role) })).status).toBe(403);
    await world.post(`/approvals/${id}`, { decision: "approve" });
    const { status, body } = await world.post(`/approvals/${id}/link`);
    expect(status).toBe(409);
    expect(body.detail).toMatch(/approved already/);
  });

  test("cannot be made while nobody said where people reach the service", async () => {
    const local = await startWorld();
    try {
      const { id } = await ask(local);
      const { status, body } = await local.post(`/approvals/${id}/link`);
      expect(status).toBe(409);
      expect(body.detail).toContain("DROVER_PUBLIC_URL");
    } finally {
      await local.close();
    }
  });

  test("with any character changed, cut, longer or of another question opens nothing, and says nothing", async () => {
    const { id } = await ask(world);
    const { id: otherId } = await ask(world);
    const path = await linkTo(id);
    const other = await linkTo(otherId);
    const base = path.length - 64;
    const nothing = (await open(`${path.slice(0, base)}${"A".repeat(64)}`)).text;
    expect(nothing).not.toMatch(/apr_|run_|send_mail|default/);
    const changed = [...Array(64).keys()].map((at) => {
      const flipped = path[base + at] === "A" ? "B" : "A";
      return path.slice(0, base + at) + flipped + path.slice(base + at + 1);
    });
    const half = base + 22;
    for (const wrong of [
      ...changed,
      path.slice(0, -1),
      `${path}A`,
      path.slice(0, half) + other.slice(half),
      `${path.slice(0, base)}x`,
    ]) {
      const page = await open(wrong);
      expect(page.status, wrong).toBe(404);
      expect(page.text).toBe(nothing);
      expect((await send(wrong, { decision: "approve" })).status, wrong).toBe(404);
    }
    expect(await statusOf(id)).toBe("pending");
  });

  test("opens nothing once its time is up, decided or not", async () => {
    const { id } = await ask(world);
    const path = await linkTo(id);
    await world.pool.query("UPDATE approvals SET expires_at = now() - interval '1 ms' WHERE id = $1", [
      fromWireId("approval", id),
    ]);
    expect((await open(path)).status).toBe(404);
    // Signed for the time that it has now, and over all the same.
    const { rows } = await world.pool.query("SELECT id, expires_at FROM approvals WHERE id = $1", [
      fromWireId("approval", id),
    ]);
    const make = await linkMaker(world.pool, "default", "");
    expect((await open(make({ id: rows[0].id, expiresAt: rows[0].expires_at }))).status).toBe(404);
    expect((await send(path, { decision: "approve" })).status).toBe(404);
    expect(await statusOf(id)).toBe("pending");
  });

  test("of one tenant is not signed by another's secret", async () => {
    const { id, request } = await ask(world);
    await world.keyOf("admin", "other");
    const make = await linkMaker(world.pool, "other", "");
    expect(
      (await open(make({ id: fromWireId("approval", id)!, expiresAt: new Date(request.expires_at) }))).status,
    ).toBe(404);
  });
});

describe("the page", () => {
  const hostile = {
    "</pre><script>alert(1)</script>": "\"'&<b>",
    turned: "pay \u202e001\u2069 now",
    hidden: "a\u200bb",
    bell: "\u0007",
  };

  test("shows what is asked, escaped, and decides nothing however often it is opened", async () => {
    const { id } = await ask(world, { input: hostile, reason: "<img src=x onerror=alert(1)>" });
    const path = await linkTo(id);
    for (let n = 0; n < 3; n++) {
      const page = await open(path);
      expect(page.status).toBe(200);
      expect(page.text).toContain("&lt;/pre&gt;&lt;script&gt;alert(1)");
      expect(page.text).toContain("&lt;img src=x onerror=alert(1)&gt;");
      expect(page.text).toContain("pay \\u{202e}001\\u{2069} now");
      expect(page.text).toContain("a\\u{200b}b");
      expect(page.text).not.toMatch(/<script|<img|\u202e|\u200b|onerror=alert\(1\)>/);
      expect(page.text).toMatch(/<button[^>]* value="approve">/);
      expect(page.text).toMatch(/<button[^>]* value="reject">/);
    }
    expect(await statusOf(id)).toBe("pending");
  });

  test("may load nothing, run nothing and be framed nowhere; nothing keeps it or tells where it was", async () => {
    const page = await open(await linkTo((await ask(world)).id));
    const style = /<style>([\s\S]*)<\/style>/.exec(page.text)![1]!;
    expect(page.headers.get("content-security-policy")).toBe(
      `default-src 'none'; style-src 'sha256-${createHash("sha256").update(style).digest("base64")}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'`,
    );
    expect(Object.fromEntries(page.headers)).toMatchObject({
      "content-type": "text/html; charset=utf-8",
      "referrer-policy": "no-referrer",
      "cache-control": "no-store",
      "x-robots-tag": expect.stringContaining("noindex"),
      "x-content-type-options": "nosniff",
    });
    // A policy has no use for what it does not know of.
    expect(page.text).not.toMatch(/<script|<link|style="|https?:\/\//);
  });

  test("is cut where nobody would read on, says so, and then takes no yes", async () => {
    const page = await open(
      await linkTo((await ask(world, { subject: "output", tool_name: "", input: "x".repeat(300_000) })).id),
    );
    expect(page.text).toContain("the beginning of 300000 characters");
    expect(page.text.length).toBeLessThan(220_000);
    expect([...page.text.matchAll(/name="decision" value="(\w+)"/g)].map(([, value]) => value)).toEqual(["reject"]);
  });

  test.each([
    ["approve", "approved", "Approved"],
    ["reject", "rejected", "Rejected"],
  ])("its form decides: %s", async (decision, status, shown) => {
    const { id, taskId } = await ask(world);
    const path = await linkTo(id);
    const page = await send(path, { decision, note: "So <be> it.\r\nYes." });
    expect(page.status).toBe(200);
    expect(page.text).toContain(`<h1>${shown}</h1>`);
    expect(page.text).toContain("So &lt;be&gt; it.\nYes.");
    expect(page.text).not.toContain("<form");
    const { body } = await world.get(`/approvals/${id}`);
    expect(body).toMatchObject({ status, decided_by: "link", note: "So <be> it.\nYes." });
    const { body: log } = await world.get(`/query/${taskId}/events`);
    expect(log.data.at(-1)).toMatchObject({ type: "approval.decided", data: { decision, by: "link" } });
  });

  test("sent twice, or after somebody else, it shows what was decided", async () => {
    const { id } = await ask(world);
    const path = await linkTo(id);
    const pages = await Promise.all([1, 2, 3, 4, 5].map(() => send(path, { decision: "approve" })));
    expect(pages.map((page) => page.status).sort()).toEqual([200, 409, 409, 409, 409]);
    const late = await send(path, { decision: "reject" });
    expect(late.status).toBe(409);
    for (const page of [...pages, late, await open(path)]) {
      expect(page.text).toContain("<h1>Approved</h1>");
      expect(page.text).toContain("somebody with this link");
    }
    const { id: decided } = await ask(world);
    const other = await linkTo(decided);
    const { body } = await world.post(`/approvals/${decided}`, { decision: "reject" });
    expect((await open(other)).text).toContain(`Decided by ${body.decided_by}`);
  });

  test("a run that was cancelled has nothing to decide any more", async () => {
    const { id, taskId } = await ask(world);
    const path = await linkTo(id);
    await world.pool.query("UPDATE runs SET status = 'queued', worker = NULL WHERE id = $1", [
      fromWireId("run", taskId),
    ]);
    await world.post(`/query/${taskId}/cancel`);
    const page = await send(path, { decision: "approve" });
    expect(page.status).toBe(409);
    expect(page.text).toContain("The run has ended.");
    expect(await statusOf(id)).toBe("expired");
  });

  test("a call that may have taken effect: it did, again, or the end", async () => {
    const { id } = await ask(world, { subject: "uncertain" });
    const path = await linkTo(id);
    const { text } = await open(path);
    expect([...text.matchAll(/name="decision" value="(\w+)"/g)].map(([, value]) => value)).toEqual([
      "done",
      "retry",
      "fail",
    ]);
    expect((await send(path, { decision: "done" })).status).toBe(200);
    expect((await world.get(`/approvals/${id}`)).body).toMatchObject({ status: "approved", decision: "done" });
  });

  test.each([
    ["no decision", "note=x"],
    ["one that is none", "decision=maybe"],
    ["one that does not fit the question", "decision=done"],
    ["a note that is too long", `decision=approve&note=${"x".repeat(2001)}`],
    ["NUL", "decision=approve&note=%00"],
    ["nothing", ""],
  ])("a form with %s decides nothing", async (_, form) => {
    const { id } = await ask(world);
    const page = await send(await linkTo(id), form);
    expect(page.status).toBe(400);
    expect(page.text).toContain("<h1>This cannot be decided so</h1>");
    expect(await statusOf(id)).toBe("pending");
  });

  test("only a form is a form, and only a small one", async () => {
    const { id } = await ask(world);
    const path = await linkTo(id);
    expect((await world.post(path, { decision: "approve" }, { key: null })).status).toBe(400);
    expect((await send(path, `decision=approve&note=${"x".repeat(40_000)}`)).status).toBe(413);
    expect(await statusOf(id)).toBe("pending");
  });
});

test("no line of the log has a token, not even when something breaks", async () => {
  const { id } = await ask(world);
  const path = await linkTo(id);
  await world.pool.query("ALTER TABLE approvals RENAME TO approvals_away");
  try {
    const page = await open(path);
    expect(page.status).toBe(500);
    expect(page.text).toContain("Something went wrong");
    expect(page.text).not.toMatch(/relation|approvals_away|SELECT/);
  } finally {
    await world.pool.query("ALTER TABLE approvals_away RENAME TO approvals");
  }
  await send(path, { decision: "approve" });
  await world.get(`${path}/more`, { key: null });
  expect(lines.some((line) => line.includes("a request failed"))).toBe(true);
  const token = path.split("/").at(-1)!;
  expect(lines.filter((line) => line.includes(token))).toEqual([]);
});
