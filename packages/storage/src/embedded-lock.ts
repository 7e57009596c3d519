/**
 * One owner for the folder of an embedded Postgres: a lock file with the owner's process id and start, and clearing away what
 * an owner that died left behind.
 */
import { execFile } from "node:child_process";
import { readFile, rm, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { promisify } from "node:util";

const run = promisify(execFile);
/** A stop first asks (fast shutdown, with a checkpoint), then insists, then kills. Milliseconds. */
export const stopSteps: [NodeJS.Signals, number][] = [
  ["SIGINT", 15_000],
  ["SIGQUIT", 5_000],
  ["SIGKILL", 5_000],
];

/** Claim the folder for this process. Clears what a dead owner left: its lock, its server, a postmaster.pid with a foreign pid. */
export async function lockFolder(folder: string, cluster: string): Promise<() => Promise<void>> {
  const path = join(folder, "drover.lock");
  const mine = `${process.pid} ${(await describe(process.pid))?.started ?? ""}`.trim();
  let left = false;
  while (!(await createExclusively(path, mine))) {
    const [pid, ...started] = (await readFile(path, "utf8").catch(() => "")).split(" ");
    const owner = await describe(Number(pid));
    if (owner && owner.started === started.join(" ")) {
      throw new Error(
        `The database folder ${folder} is in use by process ${pid}. Stop that one first, or choose another folder.`,
      );
    }
    left = true;
    await unlink(path).catch(() => undefined);
  }
  const release = async () => {
    if ((await readFile(path, "utf8").catch(() => "")) === mine) await rm(path, { force: true });
  };
  try {
    await clearLeftServer(folder, cluster, left);
  } catch (error) {
    await release();
    throw error;
  }
  return release;
}

async function clearLeftServer(folder: string, cluster: string, ownerDied: boolean): Promise<void> {
  const pidFile = join(cluster, "postmaster.pid");
  const pid = Number((await readFile(pidFile, "utf8").catch(() => "")).split("\n")[0]);
  const server = pid ? await describe(pid) : undefined;
  if (!server) return; // no file, or its process is gone: Postgres itself knows what to do
  if (!server.command.includes("postgres")) {
    await rm(pidFile, { force: true }); // the number was given to another program since
    return;
  }
  if (!ownerDied) {
    throw new Error(
      `The database folder ${folder} is in use by a Postgres server (process ${pid}) that Drover did not start.`,
    );
  }
  for (const [signal, patience] of stopSteps) {
    process.kill(pid, signal);
    const until = performance.now() + patience;
    while (performance.now() < until) {
      if ((await describe(pid))?.started !== server.started) return;
      await pause(50);
    }
  }
  throw new Error(`A left-over Postgres server (process ${pid}) on ${folder} does not end.`);
}

/** Writes a file (0600) that must not exist; false when it does. */
export async function createExclusively(path: string, content: string): Promise<boolean> {
  try {
    await writeFile(path, content, { flag: "wx", mode: 0o600 });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

/** What runs under a process id, and since when (pids are given again); undefined when nothing does. */
async function describe(pid: number): Promise<{ command: string; started: string } | undefined> {
  if (!Number.isInteger(pid) || pid <= 0) return undefined;
  if (process.platform === "linux") {
    try {
      const [line, command] = await Promise.all([
        readFile(`/proc/${pid}/stat`, "utf8"),
        readFile(`/proc/${pid}/cmdline`, "utf8"),
      ]);
      // After the command in parentheses, which may hold spaces: state is field 3, start time field 22.
      const fields = line.slice(line.lastIndexOf(")") + 2).split(" ");
      return fields[0] === "Z" ? undefined : { command, started: fields[19]! };
    } catch {
      return undefined;
    }
  }
  try {
    const { stdout } = await run("ps", ["-o", "lstart=,command=", "-p", String(pid)], { env: { LC_ALL: "C" } });
    return { started: stdout.slice(0, 24).trim(), command: stdout.slice(24).trim() };
  } catch {
    return undefined;
  }
}
