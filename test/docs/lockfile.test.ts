import { readFile } from "node:fs/promises";
import { expect, test } from "vitest";

interface Entry {
  link?: boolean;
  optionalDependencies?: Record<string, string>;
}

test("the lock file has an entry for every package of every platform: npm install has nothing to add", async () => {
  const lock = JSON.parse(await readFile("package-lock.json", "utf8")) as { packages: Record<string, Entry> };
  const missing = Object.entries(lock.packages).flatMap(([at, { optionalDependencies = {} }]) =>
    Object.keys(optionalDependencies)
      .filter((name) => !(`node_modules/${name}` in lock.packages || `${at}/node_modules/${name}` in lock.packages))
      .map((name) => `${at}: ${name}`),
  );
  expect(missing).toEqual([]);
});
