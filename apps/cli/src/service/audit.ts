/** `drover audit`: exports and verifies the audit trail, in whichever database is meant or from an export with none at hand. */
import { createReadStream, createWriteStream } from "node:fs";
import { readFile, rename, rm } from "node:fs/promises";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import {
  type ChainedEntry,
  type Checkpoint,
  newSigningKey,
  publicKeyOf,
  readPublicKey,
  readSigningKey,
  verifyChain,
} from "@drover/harness";
import { auditCheckpoint, auditEntry, canonicalJson } from "@drover/protocol";
import { listAuditTenants, readCheckpoints, readTrail, type VerifiedTrail, verifyAudit } from "@drover/runs";
import { z } from "zod";
import { CliError, exitCodes } from "../exit.ts";
import { oneLine, table } from "../text.ts";
import { withDatabase } from "./keys.ts";

interface AuditOptions {
  dataDir?: string;
  tenant?: string;
  json?: boolean;
}

export async function verify(
  options: AuditOptions & { fromFile?: string; checkpoint?: string; publicKey?: string },
): Promise<number> {
  const { tenant, fromFile } = options;
  const publicKeys = await trustedKeys(options.publicKey);
  const checkpoints = options.checkpoint === undefined ? [] : await checkpointsOf(options.checkpoint);
  const wanted = <T extends { tenant: string }>(one: T) => tenant === undefined || one.tenant === tenant;
  const trails: VerifiedTrail[] =
    fromFile === undefined
      ? await withDatabase(options, (pool) =>
          verifyAudit(pool, {
            checkpoints: checkpoints.filter(wanted),
            ...(tenant !== undefined && { tenant }),
            ...(publicKeys && { publicKeys }),
          }),
        )
      : (
          await verifyChain(entriesOf(fromFile, wanted), {
            checkpoints: checkpoints.filter(wanted),
            ...(publicKeys && { publicKeys }),
          })
        ).map((chain) => ({ ...chain, unchained: 0, stray: null }));
  const faults = trails.flatMap(faultsOf);
  if (options.json) {
    printJson({ ok: faults.length === 0, signatures_checked: publicKeys !== undefined, data: trails });
    return faults.length === 0 ? exitCodes.done : exitCodes.failed;
  }
  for (const trail of trails.filter((one) => faultsOf(one).length === 0)) print(goodLine(trail));
  if (trails.length === 0) print("no audit entries");
  if (!publicKeys && trails.some((trail) => trail.checkpoints > 0))
    process.stderr.write("signatures were not checked: no --public-key and no DROVER_AUDIT_KEY\n");
  if (faults.length > 0)
    throw new CliError(exitCodes.failed, `the audit trail is broken: ${faults[0]}`, faults.slice(1));
  return exitCodes.done;
}

export async function exportTrail(options: AuditOptions & { out?: string }): Promise<number> {
  const { out, tenant } = options;
  await withDatabase(options, async (pool) => {
    const tenants = tenant === undefined ? await listAuditTenants(pool) : [tenant];
    async function* lines() {
      let entries = 0;
      let toldAt = performance.now();
      for (const name of tenants)
        for await (const entry of readTrail(pool, name)) {
          yield `${canonicalJson(entry)}\n`;
          entries++;
          if (performance.now() - toldAt > progressMs) {
            toldAt = performance.now();
            process.stderr.write(`${entries} entries so far\n`);
          }
        }
      process.stderr.write(`${entries} entries of ${tenants.length} tenant${tenants.length === 1 ? "" : "s"}\n`);
    }
    if (out === undefined) {
      // A reader that has seen enough (`drover audit export | head`) is no error.
      process.stdout.on("error", () => process.exit(exitCodes.done));
      await pipeline(Readable.from(lines()), process.stdout, { end: false });
    } else await writeWhole(out, lines());
  });
  return exitCodes.done;
}

export async function checkpoints(options: AuditOptions): Promise<number> {
  const found = await withDatabase(options, (pool) => readCheckpoints(pool, options.tenant));
  if (options.json) printJson({ data: found });
  else if (found.length === 0) print("no checkpoints; a worker signs them when DROVER_AUDIT_KEY is set");
  else
    print(
      ...table([
        ["TENANT", "ENTRY", "SIGNED", "KEY", "HASH"],
        ...found.map((one) => [one.tenant, String(one.seq), one.at, one.key_id, one.hash]),
      ]),
    );
  return exitCodes.done;
}

export async function keygen(options: { json?: boolean }): Promise<number> {
  const { privateKey, publicKey, keyId } = newSigningKey();
  if (options.json) printJson({ key_id: keyId, private_key: privateKey, public_key: publicKey });
  else {
    print(`DROVER_AUDIT_KEY=${privateKey}`, "", publicKey.trim());
    process.stderr.write(
      `key ${keyId}: give DROVER_AUDIT_KEY to the workers alone, and keep the public key where you verify\n`,
    );
  }
  return exitCodes.done;
}

const progressMs = 2000;

function goodLine({ tenant, entries, cut, head, checkpoints, unchained }: VerifiedTrail): string {
  const end = head ? `, the last hash is ${head.hash}` : "";
  const waiting = unchained > 0 ? `; ${unchained} more wait for their place` : "";
  const begin = cut > 0 ? ` (those up to ${cut} were cut by retention)` : "";
  const many = (count: number, word: string) => `${count} ${word}${count === 1 ? "" : "s"}`;
  return `${tenant}: ${entries} entr${entries === 1 ? "y" : "ies"} verified${begin}${end}, ${many(checkpoints, "checkpoint")} met${waiting}`;
}

/** What is wrong with a trail, first things first, as sentences. */
function faultsOf({ tenant, bad, stray }: VerifiedTrail): string[] {
  const faults = [];
  if (bad) faults.push(`tenant ${tenant}: entry ${bad.seq}${bad.id === null ? "" : ` (${bad.id})`} ${bad.message}`);
  if (stray) faults.push(`tenant ${tenant}: entry ${stray.id} ${stray.message}`);
  return faults;
}

/** The keys whose checkpoints count; undefined: none is known, and signatures are not looked at. */
async function trustedKeys(file: string | undefined) {
  const given = file === undefined ? process.env.DROVER_AUDIT_KEY : await textOf(file);
  if (!given) return undefined;
  try {
    return [file === undefined ? publicKeyOf(readSigningKey(given)) : readPublicKey(given)];
  } catch (error) {
    throw new CliError(exitCodes.usage, `${file ?? "DROVER_AUDIT_KEY"} ${(error as Error).message}`);
  }
}

const checkpointFile = z.union([
  z.object({ data: z.array(auditCheckpoint) }).transform(({ data }) => data),
  z.array(auditCheckpoint),
  auditCheckpoint.transform((one) => [one]),
]);

/** One checkpoint, an array, or what `drover audit checkpoints --json` prints. */
async function checkpointsOf(file: string): Promise<Checkpoint[]> {
  try {
    return checkpointFile.parse(JSON.parse(await textOf(file)));
  } catch (error) {
    if (error instanceof CliError) throw error;
    throw new CliError(exitCodes.usage, `${file} is not what \`drover audit checkpoints --json\` prints`);
  }
}

/** The entries of an export, one a line. */
async function* entriesOf(file: string, wanted: (entry: ChainedEntry) => boolean): AsyncGenerator<ChainedEntry> {
  let number = 0;
  for await (const line of linesOf(file)) {
    number++;
    if (line.trim() === "") continue;
    const entry = parseEntry(line);
    if (!entry)
      throw new CliError(exitCodes.failed, `the audit trail is broken: line ${number} of ${file} is no entry`, [
        oneLine(line),
      ]);
    if (wanted(entry)) yield entry;
  }
}

async function* linesOf(file: string): AsyncGenerator<string> {
  const input = (file === "-" ? process.stdin : createReadStream(file)).setEncoding("utf8");
  let rest = "";
  try {
    for await (const chunk of input) {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop()!;
      yield* lines;
    }
  } catch (error) {
    throw unreadable(file, error as Error);
  }
  yield rest;
}

function parseEntry(line: string): ChainedEntry | undefined {
  try {
    const parsed = auditEntry.strict().safeParse(JSON.parse(line));
    return parsed.data;
  } catch {
    return undefined;
  }
}

async function textOf(file: string): Promise<string> {
  return await readFile(file, "utf8").catch((error) => {
    throw unreadable(file, error);
  });
}

const unreadable = (file: string, error: Error) =>
  new CliError(exitCodes.usage, `cannot read ${file}: ${error.message}`);

/** Under another name until it is whole, so that half an export is never taken for one. */
async function writeWhole(file: string, lines: AsyncIterable<string>): Promise<void> {
  const part = `${file}.part`;
  try {
    await pipeline(Readable.from(lines), createWriteStream(part));
    await rename(part, file);
  } catch (error) {
    await rm(part, { force: true });
    const { code, syscall } = error as NodeJS.ErrnoException;
    throw syscall ? new CliError(exitCodes.failed, `cannot write ${file}: ${code}`) : error;
  }
}

const print = (...lines: string[]): void => void process.stdout.write(`${lines.join("\n")}\n`);
const printJson = (value: unknown): void => print(JSON.stringify(value, null, 2));
