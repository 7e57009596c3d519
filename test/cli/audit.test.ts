/** `drover audit` as people use it: over a database, over an export without one, and over a trail that was tampered with. */
import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type ChainedEntry, newSigningKey, readSigningKey } from "@drover/harness";
import { recordAudit, startSequencer } from "@drover/runs";
import { openPool, type Pool, transaction } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createDatabase, type TestDatabase } from "../support/database.ts";
import { drover, temporaryFolder, until } from "./drover.ts";

const folder = await temporaryFolder();
const file = (name: string) => join(folder.path, name);
const pair = newSigningKey();
const logger = createLogger({ name: "test", level: "silent" });
const hasPython = spawnSync("python3", ["--version"]).status === 0;
let database: TestDatabase;
let pool: Pool;

beforeAll(async () => {
  database = await createDatabase();
  pool = openPool({ url: database.url, logger });
  await write("acme", 5);
  await write("other", 2);
  await writeFile(file("public.pem"), pair.publicKey);
});

afterAll(async () => {
  await pool.end();
  await database.drop();
  await folder.remove();
});

/** Entries of a tenant, chained and signed. */
async function write(tenant: string, entries: number): Promise<void> {
  const key = readSigningKey(pair.privateKey);
  const sequencer = startSequencer({
    pool,
    directUrl: database.url,
    logger,
    signing: { key, everyEntries: 1, withinMs: 1000 },
  });
  const data = { text: "日本 \u{1f600}", numbers: [1e21, -0], "10": 1, "9": 2 };
  await recordAudit(
    pool,
    Array.from({ length: entries }, () => ({ tenant, actor: "worker", action: "tool.called", data, runId: null })),
  );
  await until(async () => (await pool.query("SELECT FROM audit_unchained")).rowCount === 0);
  await sequencer.close();
}

const audit = (args: string[], env: Record<string, string> = {}) =>
  drover(["audit", ...args], { env: { DATABASE_URL: database.url, ...env }, cwd: folder.path });
/** Without a database, and without a data folder to find one in. */
const offline = (args: string[], input?: string) =>
  drover(["audit", "verify", ...args], { cwd: folder.path, ...(input !== undefined && { input }) });

async function exported(): Promise<string[]> {
  const { stdout, code } = await audit(["export"]);
  expect(code).toBe(0);
  return stdout.trimEnd().split("\n");
}

describe("a good trail", () => {
  it("verifies in the database, all tenants or one, with what waits for its place", async () => {
    await recordAudit(pool, [{ tenant: "waiting", actor: "worker", action: "x", data: {}, runId: null }]);
    const all = await audit(["verify", "--public-key", "public.pem"]);
    expect(all).toMatchObject({ code: 0, stderr: "" });
    expect(all.stdout).toMatch(/^acme: 5 entries verified, the last hash is [0-9a-f]{64}, 1 checkpoint met$/m);
    expect(all.stdout).toMatch(/^waiting: 0 entries verified, 0 checkpoints met; 1 more wait for their place$/m);
    const one = await audit(["verify", "--tenant", "other", "--json"], { DROVER_AUDIT_KEY: pair.privateKey });
    expect(one.json()).toMatchObject({
      ok: true,
      signatures_checked: true,
      data: [{ tenant: "other", entries: 2, checkpoints: 1, unchained: 0, bad: null }],
    });
    const unsigned = await audit(["verify"]);
    expect(unsigned).toMatchObject({ code: 0, stderr: expect.stringContaining("signatures were not checked") });
  });

  it("is exported as the lines that are hashed, into a file too, and verifies offline", async () => {
    const lines = await exported();
    expect(lines).toHaveLength(7);
    expect(JSON.parse(lines[0]!)).toMatchObject({ tenant: "acme", seq: 1, data: { "10": 1, "9": 2 } });
    const whole = await audit(["export", "--tenant", "acme", "--out", "acme.jsonl"]);
    expect(whole).toMatchObject({ code: 0, stdout: "", stderr: "5 entries of 1 tenant\n" });
    expect((await readFile(file("acme.jsonl"), "utf8")).trimEnd().split("\n")).toEqual(lines.slice(0, 5));
    expect(await offline(["--from-file", "acme.jsonl"])).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^acme: 5 entries verified/),
    });
    const piped = await offline(["--from-file", "-", "--tenant", "other", "--json"], `${lines.join("\n")}\n`);
    expect(piped.json()).toMatchObject({ ok: true, data: [{ tenant: "other", entries: 2 }] });
  });

  it("is exported in the very text that is hashed", async () => {
    let before = Buffer.alloc(32);
    for (const line of (await exported()).slice(0, 5)) {
      const hash = /,"hash":"([0-9a-f]{64})","id":/.exec(line)!;
      const text = line.replace(hash[0], ',"id":');
      before = createHash("sha256").update(before).update(text).digest();
      expect(before.toString("hex")).toBe(hash[1]);
    }
  });

  it.runIf(hasPython)("verifies by the script of docs/audit.md", async () => {
    const page = await readFile(new URL("../../docs/audit.md", import.meta.url), "utf8");
    const script = /```python\n([\s\S]*?)```/.exec(page)![1]!;
    const lines = await exported();
    const verify = (given: string[]) =>
      execFileSync("python3", ["-c", script], { input: `${given.join("\n")}\n`, encoding: "utf8" }).trim();
    expect(verify(lines)).toBe("7 entries verified");
    expect(() => verify(lines.toSpliced(2, 1))).toThrow();
  });

  it("has its checkpoints, for people and for keeping", async () => {
    const list = await audit(["checkpoints"]);
    expect(list.stdout).toMatch(/^TENANT +ENTRY +SIGNED +KEY +HASH\nacme +5 /);
    const { stdout } = await audit(["checkpoints", "--tenant", "acme", "--json"]);
    await writeFile(file("anchored.json"), stdout);
    const args = ["--from-file", "acme.jsonl", "--checkpoint", "anchored.json", "--public-key", "public.pem"];
    await audit(["export", "--tenant", "acme", "--out", "acme.jsonl"]);
    expect(await offline(args)).toMatchObject({ code: 0, stdout: expect.stringContaining("1 checkpoint met") });
    const lines = (await readFile(file("acme.jsonl"), "utf8")).split("\n");
    await writeFile(file("acme.jsonl"), lines.slice(0, 3).join("\n"));
    expect(await offline(args)).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/broken: tenant acme: entry 4 is missing: the trail ends with entry 3, and the/),
    });
    const stranger = newSigningKey();
    await writeFile(file("stranger.pem"), stranger.publicKey);
    expect(await audit(["verify", "--public-key", "stranger.pem", "--tenant", "other"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("entry 2 has a checkpoint of"),
    });
  });
});

describe("a broken trail names tenant, place, id and what is wrong", () => {
  const broken: [string, (entries: ChainedEntry[]) => ChainedEntry[], RegExp][] = [
    ["an edit", (e) => e.with(1, { ...e[1]!, actor: "nobody" }), /tenant acme: entry 2 \(ID1\) was changed/],
    ["a deletion", (e) => e.toSpliced(2, 1), /tenant acme: entry 3 is missing/],
    ["an insertion", (e) => e.toSpliced(2, 0, { ...e[0]!, seq: 3 }), /tenant acme: entry 3 \(ID0\) was put in/],
    [
      "a swap",
      (e) => e.with(1, e[3]!).with(3, e[1]!),
      /tenant acme: entry 2 \(ID3\) stands where entry ID1 was chained/,
    ],
  ];
  it.each(broken)("%s, offline", async (_, change, message) => {
    const entries = (await exported()).map((line): ChainedEntry => JSON.parse(line));
    const changed = change(entries).map((entry) => JSON.stringify(entry));
    const ended = await offline(["--from-file", "-"], changed.join("\n"));
    const expected = message.source.replaceAll(/ID(\d)/g, (_all, index) => entries[index]!.id);
    expect(ended).toMatchObject({ code: 1, stderr: expect.stringMatching(expected) });
    // The other tenant's is told to be good all the same.
    expect(ended.stdout).toMatch(/^other: 2 entries verified/);
    const asJson = await offline(["--from-file", "-", "--json"], changed.join("\n"));
    expect(asJson).toMatchObject({ code: 1, stderr: "" });
    expect(asJson.json()).toMatchObject({
      ok: false,
      data: [{ tenant: "acme", bad: { seq: expect.any(Number) } }, {}],
    });
  });

  it("a line that is no entry", async () => {
    const lines = await exported();
    for (const line of ["{", "{}", '{"tenant":"acme"}', lines[0]!.replace('"seq":1', '"seq":"1"')])
      expect(await offline(["--from-file", "-"], [lines[0], line].join("\n"))).toMatchObject({
        code: 1,
        stderr: expect.stringContaining("line 2 of - is no entry"),
      });
  });

  it("in the database: edited, or taken out of the inbox", async () => {
    await recordAudit(pool, [{ tenant: "hidden", actor: "worker", action: "x", data: {}, runId: null }]);
    await pool.query("DELETE FROM audit_unchained WHERE tenant = 'hidden'");
    const hidden = await audit(["verify"]);
    expect(hidden).toMatchObject({ code: 1 });
    expect(hidden.stderr).toMatch(/tenant hidden: entry [0-9a-f-]{36} is in neither the chain nor the inbox/);

    const { id } = (await pool.query("SELECT entry_id AS id FROM audit_chain WHERE tenant = 'acme' AND seq = 4"))
      .rows[0];
    await transaction(pool, async (tx) => {
      await tx.query("SET LOCAL session_replication_role = replica");
      await tx.query("UPDATE audit_entries SET actor = 'nobody' WHERE id = $1", [id]);
    });
    const edited = await audit(["verify", "--tenant", "acme"]);
    expect(edited).toMatchObject({
      code: 1,
      stderr: expect.stringContaining(`tenant acme: entry 4 (${id}) was changed`),
    });
  });
});

describe("wrong usage", () => {
  it.each([
    [["verify", "--from-file", "nowhere.jsonl"], "cannot read nowhere.jsonl"],
    [["verify", "--public-key", "nowhere.pem"], "cannot read nowhere.pem"],
    [["verify", "--checkpoint", "public.pem"], "public.pem is not what `drover audit checkpoints --json` prints"],
  ])("%j is told", async (args, message) => {
    expect(await audit(args)).toMatchObject({ code: 2, stderr: expect.stringContaining(message) });
  });

  it("a key that is none is refused, here and by a worker, and not repeated", async () => {
    const env = { DROVER_AUDIT_KEY: "no-key-at-all-0123456789" };
    const here = await audit(["verify"], env);
    expect(here).toMatchObject({ code: 2, stderr: expect.stringContaining("DROVER_AUDIT_KEY must be an ed25519") });
    const worker = await drover(["worker"], { env: { DATABASE_URL: database.url, ...env } });
    expect(worker).toMatchObject({ code: 78, stderr: expect.stringContaining("DROVER_AUDIT_KEY must be an ed25519") });
    expect(here.stderr + worker.stderr).not.toContain("no-key-at-all");
  });

  it("an export that cannot be written leaves nothing", async () => {
    expect(await audit(["export", "--out", "no/such/folder.jsonl"])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("cannot write no/such/folder.jsonl: ENOENT"),
    });
  });
});

it("keygen makes a pair that works", async () => {
  const made = (await drover(["audit", "keygen", "--json"])).json<
    Record<"key_id" | "private_key" | "public_key", string>
  >();
  expect(made.key_id).toMatch(/^[0-9a-f]{16}$/);
  expect(() => readSigningKey(made.private_key)).not.toThrow();
  const shown = await drover(["audit", "keygen"]);
  expect(shown.stdout).toMatch(/^DROVER_AUDIT_KEY=[\w+/=]+\n\n-----BEGIN PUBLIC KEY-----\n/);
});
