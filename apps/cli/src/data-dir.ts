/**
 * What `drover dev` leaves in its data folder for the commands next to it, readable by its user only: `api-key`, the key made at
 * the first start, and `service.json`, where the running service and its database are.
 */
import { chmod, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join, relative, resolve } from "node:path";

export interface RunningService {
  pid: number;
  url: string;
  database_url: string;
}

export class DataDir {
  readonly path: string;

  /** `given`, else `DROVER_DATA_DIR`, else `.drover` of the current folder. */
  constructor(given: string | undefined, env: NodeJS.ProcessEnv = process.env) {
    this.path = resolve(given || env.DROVER_DATA_DIR || ".drover");
  }

  /** Whether it is the one that commands in this folder use without being told. */
  get isDefault(): boolean {
    return this.path === resolve(process.env.DROVER_DATA_DIR || ".drover");
  }

  get postgres(): string {
    return join(this.path, "postgres");
  }

  get workspaces(): string {
    return join(this.path, "workspaces");
  }

  get keyFile(): string {
    return join(this.path, "api-key");
  }

  /** As a person in the current folder would write it. */
  get shownKeyFile(): string {
    const path = relative(process.cwd(), this.keyFile);
    return path.startsWith("..") ? this.keyFile : path;
  }

  /** The service that runs on this folder now, and answers; undefined when none does. */
  async running(): Promise<RunningService | undefined> {
    const service = await this.recorded();
    return service && (await isDrover(service.url)) ? service : undefined;
  }

  /** The service last started here, if a process of its number lives: after a crash that may be another program. */
  async recorded(): Promise<RunningService | undefined> {
    try {
      const { pid, url, database_url } = JSON.parse(
        await readFile(this.#serviceFile, "utf8"),
      ) as Partial<RunningService>;
      if (!pid || !url || !database_url || !isAlive(pid)) return undefined;
      return { pid, url, database_url };
    } catch {
      return undefined;
    }
  }

  async setRunning(service: RunningService): Promise<void> {
    await this.#write(this.#serviceFile, `${JSON.stringify(service, null, 2)}\n`);
  }

  async clearRunning(): Promise<void> {
    await rm(this.#serviceFile, { force: true });
  }

  async readKey(): Promise<string | undefined> {
    return (await readText(this.keyFile))?.trim() || undefined;
  }

  async writeKey(key: string): Promise<void> {
    await this.#write(this.keyFile, `${key}\n`);
  }

  get #serviceFile(): string {
    return join(this.path, "service.json");
  }

  async #write(file: string, text: string): Promise<void> {
    await mkdir(this.path, { recursive: true });
    await rm(file, { force: true });
    await writeFile(file, text, { mode: 0o600, flag: "wx" });
    await chmod(file, 0o600);
  }
}

async function readText(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, "utf8");
  } catch {
    return undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

async function isDrover(url: string): Promise<boolean> {
  try {
    const response = await fetch(`${url}/health`, { signal: AbortSignal.timeout(3000) });
    return ((await response.json()) as { status?: string }).status === "ok";
  } catch {
    return false;
  }
}
