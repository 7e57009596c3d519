import { once } from "node:events";
import { readFileSync } from "node:fs";
import { chmod, chown, cp, lstat, mkdir, mkdtemp, readFile, rm, stat, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { startEmbeddedPostgres } from "@drover/storage";
import pg from "pg";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { findBinaries, launcher } from "../../packages/storage/src/embedded-programs.ts";
import { spawnNode } from "../support/process.ts";

const owner = new URL("../support/embedded-owner.ts", import.meta.url);
const settings = { fsync: "off" };
let dataDir: string;

beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), "drover-embedded-"));
});
afterEach(() => rm(dataDir, { recursive: true, force: true }));

async function query<T extends pg.QueryResultRow>(url: string, sql: string): Promise<T[]> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query<T>(sql)).rows;
  } finally {
    await client.end();
  }
}

/** Whether a process runs; one that has ended and waits for its parent to notice does not. */
function alive(pid: number): boolean {
  try {
    const line = readFileSync(`/proc/${pid}/stat`, "utf8");
    return line.charAt(line.lastIndexOf(")") + 2) !== "Z";
  } catch {
    return false;
  }
}

/** Start a server in a process of its own; resolves with what it printed: its URL and the server's pid. */
async function startElsewhere() {
  const child = spawnNode(owner, { args: [dataDir] });
  const { url, pid } = JSON.parse(await child.waitForLine("{")) as { url: string; pid: number };
  return { child, url, pid };
}

describe("embedded Postgres", () => {
  test("initialises a new folder, and a second start finds its data", async () => {
    const first = await startEmbeddedPostgres({ dataDir, settings });
    expect(new URL(first.url)).toMatchObject({ hostname: "127.0.0.1", username: "drover", pathname: "/drover" });
    await query(first.url, "CREATE TABLE kept AS SELECT 'ж' AS word");
    await first.stop();
    expect(alive(first.pid)).toBe(false);
    await first.stop();

    const lines: string[] = [];
    const second = await startEmbeddedPostgres({
      dataDir,
      settings: { ...settings, work_mem: "7MB" },
      log: (l) => lines.push(l),
    });
    try {
      expect(await query(second.url, "SELECT word FROM kept")).toEqual([{ word: "ж" }]);
      expect(await query(second.url, "SHOW max_connections")).toEqual([{ max_connections: "200" }]);
      expect(await query(second.url, "SHOW work_mem")).toEqual([{ work_mem: "7MB" }]);
      expect(await query(second.url, "SHOW listen_addresses")).toEqual([{ listen_addresses: "127.0.0.1" }]);
      expect(lines.some((line) => line.includes("ready to accept connections"))).toBe(true);
    } finally {
      await second.stop();
    }
  });

  test("asks for the password, which only its owner may read", async () => {
    const server = await startEmbeddedPostgres({ dataDir, settings });
    try {
      const wrong = new URL(server.url);
      wrong.password = "guess";
      await expect(query(wrong.href, "SELECT 1")).rejects.toMatchObject({ code: "28P01" });
      expect((await stat(join(dataDir, "password"))).mode & 0o777).toBe(0o600);
      expect((await stat(join(dataDir, "cluster"))).mode & 0o777).toBe(0o700);
    } finally {
      await server.stop();
    }
  });

  test("refuses a folder that a living process uses, and says which", async () => {
    const { child, url } = await startElsewhere();
    await expect(startEmbeddedPostgres({ dataDir, settings })).rejects.toThrow(`in use by process ${child.pid}`);
    expect(await query(url, "SELECT 1 AS one")).toEqual([{ one: 1 }]);
    await child.kill();
    const after = await startEmbeddedPostgres({ dataDir, settings });
    await after.stop();
  });

  test("refuses a folder that this process uses already", async () => {
    const server = await startEmbeddedPostgres({ dataDir, settings });
    await expect(startEmbeddedPostgres({ dataDir, settings })).rejects.toThrow(`in use by process ${process.pid}`);
    await server.stop();
  });

  test.for(["SIGTERM", "SIGINT", "SIGKILL"] as const)(
    "goes when its owner is ended by %s, and starts again",
    async (signal) => {
      const { child, url, pid } = await startElsewhere();
      await query(url, "CREATE TABLE kept AS SELECT 1 AS one");
      await child.kill(signal);
      const again = await startEmbeddedPostgres({ dataDir, settings });
      try {
        expect(alive(pid)).toBe(false);
        expect(await query(again.url, "SELECT one FROM kept")).toEqual([{ one: 1 }]);
      } finally {
        await again.stop();
      }
    },
  );

  test("takes over from an owner that was killed together with its watcher", async () => {
    const { child, url, pid } = await startElsewhere();
    await query(url, "CREATE TABLE kept AS SELECT 1 AS one");
    // The watcher is the owner's other child: a shell that waits on a pipe.
    const children = await readFile(`/proc/${child.pid}/task/${child.pid}/children`, "utf8");
    const watcher = children
      .trim()
      .split(" ")
      .map(Number)
      .filter((other) => other !== pid);
    expect(watcher).toHaveLength(1);
    process.kill(watcher[0]!, "SIGKILL");
    await child.kill("SIGKILL");
    expect(alive(pid)).toBe(true);

    const again = await startEmbeddedPostgres({ dataDir, settings });
    try {
      expect(alive(pid)).toBe(false);
      expect(await query(again.url, "SELECT one FROM kept")).toEqual([{ one: 1 }]);
    } finally {
      await again.stop();
    }
  });

  test("starts after a crash of the server, and over a postmaster.pid whose number another program has now", async () => {
    const server = await startEmbeddedPostgres({ dataDir, settings });
    await query(server.url, "CREATE TABLE kept AS SELECT 1 AS one");
    process.kill(server.pid, "SIGKILL");
    expect(await server.exited).toEqual({ code: null, signal: "SIGKILL" });

    const file = join(dataDir, "cluster/postmaster.pid");
    const [, ...rest] = (await readFile(file, "utf8")).split("\n");
    await writeFile(file, [process.pid, ...rest].join("\n"));
    const again = await startEmbeddedPostgres({ dataDir, settings });
    try {
      expect(await query(again.url, "SELECT one FROM kept")).toEqual([{ one: 1 }]);
    } finally {
      await again.stop();
    }
  });

  test("makes the links that npm's blocked install script left out", async () => {
    const first = await startEmbeddedPostgres({ dataDir, settings });
    const maps = await readFile(`/proc/${first.pid}/maps`, "utf8");
    await first.stop();
    const library = /(\/\S+)\/libicuuc\.so\.60\.2/.exec(maps)?.[1];
    expect(library).toBeDefined();
    const link = join(library!, "libpq.so");
    await unlink(link);
    const second = await startEmbeddedPostgres({ dataDir, settings });
    await second.stop();
    expect((await lstat(link)).isSymbolicLink()).toBe(true);
  });

  test("says why it does not start: a setting that is none, a port that is taken", async () => {
    await expect(startEmbeddedPostgres({ dataDir, settings: { ...settings, no_such_setting: 1 } })).rejects.toThrow(
      /did not start[\s\S]*no_such_setting/,
    );
    const server = await startEmbeddedPostgres({ dataDir, settings });
    const other = await mkdtemp(join(tmpdir(), "drover-embedded-"));
    try {
      await expect(startEmbeddedPostgres({ dataDir: other, port: server.port, settings })).rejects.toThrow(
        /did not start[\s\S]*could not bind/,
      );
    } finally {
      await server.stop();
      await rm(other, { recursive: true, force: true });
    }
  });

  test("works where the system user cannot enter the folder", async () => {
    const closed = join(dataDir, "closed", "db");
    const server = await startEmbeddedPostgres({ dataDir: closed, settings });
    await server.stop();
    await chmod(dirname(closed), 0o700);
    const again = await startEmbeddedPostgres({ dataDir: closed, settings });
    try {
      expect(await query(again.url, "SELECT 1 AS one")).toEqual([{ one: 1 }]);
    } finally {
      await again.stop();
    }
  });

  test("works where the system user cannot enter the programs' folder either, as in a clone below root's home", async () => {
    const { initdb } = await findBinaries();
    const closed = join(dataDir, "closed");
    await mkdir(closed, { mode: 0o700 });
    await cp(dirname(dirname(initdb)), join(closed, "native"), { recursive: true, verbatimSymlinks: true });
    const program = join(closed, "native/bin/initdb");
    const cluster = join(dataDir, "cluster");
    await mkdir(cluster);
    const { account, start } = await launcher(dataDir, program);
    if (account) await chown(cluster, account.uid, account.gid);
    const made = start(program, ["-D", cluster, "-U", "drover", "--no-sync", "--no-instructions"]);
    let said = "";
    made.stderr!.on("data", (piece) => {
      said += piece;
    });
    made.stdout!.resume();
    const [code] = await once(made, "exit");
    expect([code, said]).toEqual([0, expect.not.stringContaining("error")]);
  });

  test("ends by itself when the server is stopped from outside, and tells", async () => {
    const server = await startEmbeddedPostgres({ dataDir, settings });
    const ended = once(process, "never", { signal: AbortSignal.timeout(20_000) }).catch(() => "late");
    process.kill(server.pid, "SIGINT");
    expect(await Promise.race([server.exited, ended])).toEqual({ code: 0, signal: null });
    const again = await startEmbeddedPostgres({ dataDir, settings });
    await again.stop();
  });
});
