/** Claims as tests want them: of certain runs, or so many of those that are next. What comes back is what was claimed. */
import type { Queryable } from "@drover/storage";
import { type ClaimOptions, claimNext } from "../../packages/runs/src/moves/claim.ts";

type More = Omit<ClaimOptions, "most" | "only">;

export const claimRuns = async (db: Queryable, worker: string, ids: string[], more: More = {}) =>
  (await claimNext(db, worker, { most: ids.length, only: ids, ...more })).runs;

export const claimMany = async (db: Queryable, worker: string, most: number, more: More = {}) =>
  (await claimNext(db, worker, { most, ...more })).runs;
