/** The real PgBouncer in front of a database of the run's Postgres, in transaction mode. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { freePort } from "./ports.ts";
import { findProgram } from "./program.ts";

export interface TestPooler {
  url: string;
  stop(): Promise<void>;
}

/** `size`: connections to the server at most; who comes later waits in its queue. */
export async function startPgBouncer(target: string, size = 5): Promise<TestPooler> {
  const program = await findProgram(
    "pgbouncer",
    'The tests need the real PgBouncer: install it ("apt-get install pgbouncer", "brew install pgbouncer").',
  );
  const { hostname, port: targetPort, pathname, username, password } = new URL(target);
  const name = pathname.slice(1);
  const port = await freePort();
  const folder = await mkdtemp(join(tmpdir(), "drover-pgbouncer-"));
  // It does not run as root; whoever it runs as instead must be able to read this.
  const root = process.getuid?.() === 0;
  if (root) await chmod(folder, 0o755);
  const settings = join(folder, "pgbouncer.ini");
  await writeFile(
    settings,
    [
      "[databases]",
      `${name} = host=${hostname} port=${targetPort} dbname=${name} user=${username} password='${decodeURIComponent(password)}'`,
      "[pgbouncer]",
      "listen_addr = 127.0.0.1",
      `listen_port = ${port}`,
      "unix_socket_dir =",
      "auth_type = any",
      "pool_mode = transaction",
      `default_pool_size = ${size}`,
      "max_client_conn = 500",
      ...(root ? ["user = nobody"] : []),
      "",
    ].join("\n"),
  );
  const child: ChildProcess = spawn(program, [settings], { stdio: ["ignore", "pipe", "pipe"] });
  const kill = () => child.kill("SIGKILL");
  process.once("exit", kill);
  const lines: string[] = [];
  await new Promise<void>((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", () => reject(new Error(`pgbouncer did not start:\n${lines.slice(-10).join("\n")}`)));
    createInterface({ input: child.stderr! }).on("line", (line) => {
      if (lines.length < 100) lines.push(line);
      if (line.includes("process up")) resolve();
    });
  });
  const url = new URL(target);
  url.host = `127.0.0.1:${port}`;
  return {
    url: url.href,
    async stop() {
      process.off("exit", kill);
      const ended = once(child, "exit");
      child.kill("SIGTERM");
      child.kill("SIGINT");
      const giveUp = setTimeout(kill, 2000);
      await ended;
      clearTimeout(giveUp);
      await rm(folder, { recursive: true, force: true });
    },
  };
}
