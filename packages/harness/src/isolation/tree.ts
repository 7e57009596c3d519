/**
 * Ending a process with all it started. A tool's process leads a group of its own, which one signal ends; what left the group (`setsid`, a daemon)
 * is found by the mark in its environment, on Linux. Only what also cleared its environment gets away.
 */
import { readdir, readFile } from "node:fs/promises";
import { markerName } from "./environment.ts";

/** What starts children faster than they are found gets away as well. */
const mostPasses = 5;
const marked = new RegExp(`(?:^|\\0)${markerName}=([^\\0]+)`);
const wanted = new Set<string>();
let searching: Promise<void> | undefined;

/** Ends the group, at once, and resolves when what had left it is ended too. Never throws; harmless when nothing is there any more. */
export function endTree(groupId: number, marker: string): Promise<void> {
  kill(-groupId);
  return endStrays(marker);
}

/** Ends what this process started, then its own group, itself included. */
export async function endSelf(): Promise<void> {
  await endStrays(process.env[markerName] ?? "");
  kill(-process.pid);
}

/** Ends every process but this one that carries the mark. Many may ask at once: one search serves them all. */
async function endStrays(marker: string): Promise<void> {
  wanted.add(marker);
  // A search that is under way may have passed by already.
  await searching;
  searching ??= search().finally(() => {
    searching = undefined;
  });
  await searching;
}

async function search(): Promise<void> {
  const markers = new Set(wanted);
  wanted.clear();
  for (let pass = 0, found = 1; found > 0 && pass < mostPasses; pass++) {
    found = 0;
    for (const name of await readdir("/proc").catch(() => [])) {
      if (!/^\d+$/.test(name) || Number(name) === process.pid) continue;
      // Gone meanwhile, or somebody else's.
      const environment = await readFile(`/proc/${name}/environ`, "latin1").catch(() => "");
      const marker = marked.exec(environment)?.[1];
      if (marker === undefined || !markers.has(marker)) continue;
      found++;
      kill(Number(name));
    }
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It is gone.
  }
}
