/** What the documentation points at exists. */
import { existsSync, globSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { expect, test } from "vitest";

const root = resolve(import.meta.dirname, "../..");
const pages = globSync(["*.md", "docs/**/*.md", "bench/*.md"], { cwd: root });

test.each(pages)("%s names only files that exist", (page) => {
  const text = readFileSync(join(root, page), "utf8");
  const named = [...text.matchAll(/`((?:packages|apps|test|docs|bench|scripts|examples)\/[\w./-]*)`/g)].map(
    (match) => match[1]!,
  );
  const linked = [...text.matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)].map((match) => join(dirname(page), match[1]!));
  expect([...named, ...linked].filter((path) => !existsSync(join(root, path)))).toEqual([]);
});

test.each(["runs", "harness"])("docs/internals.md tells of every file of %s", (name) => {
  const text = readFileSync(join(root, "docs/internals.md"), "utf8");
  const section = text.slice(text.indexOf(`## The rooms of \`packages/${name}/src\``)).split("\n## ")[0]!;
  const rooms = Map.groupBy(globSync("**/*.ts", { cwd: join(root, "packages", name, "src") }), (file) => dirname(file));
  for (const [room, files] of rooms) {
    const told = room === "." ? section : section.slice(section.indexOf(`\`${room}/\`:`)).split(/\n`\w+\/`:/)[0]!;
    expect(told.length, `${room}/ has its paragraph`).toBeGreaterThan(0);
    for (const file of files) expect(told, `${room}/ of packages/${name}`).toContain(`\`${file.split("/").at(-1)}\``);
  }
});

test("no page and no source names a folder of somebody's machine, or a registry's host", () => {
  const files = globSync(
    ["*.{md,json,yml}", "{apps,packages,test,docs,bench,scripts,examples}/**/*.{ts,mjs,md,json}", "Dockerfile.*"],
    {
      cwd: root,
      exclude: (path) => path.includes("node_modules"),
    },
  );
  const hosts = ["registry." + "npmjs", "deb." + "debian"];
  const found = files.filter((file) => {
    const text = readFileSync(join(root, file), "utf8");
    return hosts.some((host) => text.includes(host)) || /\/(home|Users)\/[a-z]/.test(text);
  });
  expect(found).toEqual([]);
});
