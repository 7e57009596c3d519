/** A worker's own disk: the workspaces of runs whose contents are no longer kept. */
import { opendir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Queryable } from "@drover/storage";

const together = 500;

/** `<folder>/<tenant>/<run id>` of runs that ended so long ago, or of which nothing is known any more; how many are gone. */
export async function sweepWorkspaces(db: Queryable, folder: string, contentsDays: number): Promise<number> {
  let gone = 0;
  for await (const tenant of namesIn(folder)) {
    let ids: string[] = [];
    const sweep = async () => {
      for (const id of await whichMayGo(db, ids, contentsDays)) {
        await rm(join(folder, tenant, id), { recursive: true, force: true });
        gone++;
      }
      ids = [];
    };
    for await (const id of namesIn(join(folder, tenant))) {
      if (isRunId(id)) ids.push(id);
      if (ids.length === together) await sweep();
    }
    await sweep();
  }
  return gone;
}

const isRunId = (name: string): boolean => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(name);

async function* namesIn(folder: string): AsyncGenerator<string> {
  try {
    for await (const entry of await opendir(folder)) if (entry.isDirectory()) yield entry.name;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
}

async function whichMayGo(db: Queryable, ids: string[], contentsDays: number): Promise<string[]> {
  if (ids.length === 0) return [];
  const { rows } = await db.query<{ id: string }>(
    `SELECT i.id FROM unnest($1::uuid[]) AS i(id) LEFT JOIN runs r ON r.id = i.id
     WHERE i.id < uuidv7_floor(now() - $2 * interval '1 day')
       AND (r.id IS NULL OR r.finished_at < now() - $2 * interval '1 day')`,
    [ids, contentsDays],
  );
  return rows.map((row) => row.id);
}
