/** Programs that tests need and npm does not bring. */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/**
 * Where the program is; as root on Debian it is installed first, from the package of its name. @throws Error with `hint`, which says how to get it
 */
export async function findProgram(name: string, hint: string): Promise<string> {
  const folders = [
    ...(process.env.PATH ?? "").split(delimiter),
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/opt/homebrew/bin",
  ];
  const onPath = () => folders.map((folder) => join(folder, name)).find((file) => existsSync(file));
  const found = onPath();
  if (found) return found;
  if (process.getuid?.() !== 0 || !existsSync("/etc/debian_version")) throw new Error(hint);

  console.log(`No ${name} found: installing it with apt-get, once.`);
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  const install = () => run("apt-get", ["install", "-y", "--no-install-recommends", name], { env });
  try {
    // The package lists may be missing or old.
    await install().catch(() => run("apt-get", ["update"], { env }).then(install));
  } catch (error) {
    throw new Error(`${hint}\napt-get could not install it: ${error instanceof Error ? error.message : error}`);
  }
  const installed = onPath();
  if (!installed) throw new Error(hint);
  return installed;
}
