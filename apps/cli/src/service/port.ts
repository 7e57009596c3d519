import { once } from "node:events";
import { createServer } from "node:net";
import { CliError, exitCodes } from "../exit.ts";

/** Whether `host:port` can be listened on now; the error's code when not. */
async function tryPort(port: number, host: string): Promise<{ port: number } | { code: string }> {
  const server = createServer().listen(port, host);
  try {
    await once(server, "listening");
  } catch (error) {
    return { code: (error as NodeJS.ErrnoException).code ?? String(error) };
  }
  const found = (server.address() as { port: number }).port;
  server.close();
  await once(server, "close");
  return { port: found };
}

/** The port; for 0 any that is free. @throws CliError that names the port and how to choose another */
export async function requireFreePort(port: number, host: string): Promise<number> {
  const tried = await tryPort(port, host);
  if ("port" in tried) return tried.port;
  const why: Record<string, string> = {
    EADDRINUSE: `port ${port} on ${host} is in use by another program; choose another with --port or PORT`,
    EACCES: `port ${port} may not be used by this user; choose one over 1023 with --port or PORT`,
    EADDRNOTAVAIL: `${host} is not an address of this machine; choose another with --host or HOST`,
    ENOTFOUND: `${host} is not the name of a host; choose another with --host or HOST`,
  };
  throw new CliError(exitCodes.failed, why[tried.code] ?? `cannot listen on ${host}:${port} (${tried.code})`);
}

/** `wanted` when it is free, else any port that is. */
export async function freePortNear(wanted: number, host: string): Promise<number> {
  for (const port of [wanted, 0]) {
    const tried = await tryPort(port, host);
    if ("port" in tried) return tried.port;
  }
  throw new CliError(exitCodes.failed, `no port of ${host} can be listened on`);
}
