/** `scripts/guard.mjs` on a Node that is too old, in the three states an installation can be in. */
import { execFile } from "node:child_process";
import { cp, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, expect, it } from "vitest";
import { temporaryFolder } from "./drover.ts";

const folder = await temporaryFolder();
afterAll(() => folder.remove());

async function guard(project: string, version: string): Promise<{ code: number; stderr: string }> {
  await mkdir(join(project, "scripts"), { recursive: true });
  await cp(new URL("../../scripts/guard.mjs", import.meta.url), join(project, "scripts/guard.mjs"));
  const pretend = `Object.defineProperty(process, "versions", { value: { node: "${version}" } })`;
  const args = ["--import", `data:text/javascript,${encodeURIComponent(pretend)}`, join(project, "scripts/guard.mjs")];
  return await new Promise((resolve) => {
    execFile(process.execPath, args, (error, _stdout, stderr) =>
      resolve({ code: error ? Number(error.code) : 0, stderr }),
    );
  });
}

it("lets Node 24 and newer pass in silence", async () => {
  for (const version of ["24.0.0", "26.1.0"])
    expect(await guard(join(folder.path, "new"), version)).toEqual({ code: 0, stderr: "" });
});

it("says in one line what to do where nothing is installed, where the script did not run, and where npm was passed by", async () => {
  const project = join(folder.path, "old");
  const told = async () => {
    const { code, stderr } = await guard(project, "20.19.0");
    expect(code).toBe(1);
    expect(stderr.trim().split("\n")).toHaveLength(1);
    expect(stderr).toContain("Drover needs Node 24 or newer");
    return stderr;
  };
  expect(await told()).toContain("`npm install`");
  await mkdir(join(project, "node_modules/node/bin"), { recursive: true });
  await writeFile(join(project, "node_modules/node/package.json"), "{}");
  expect(await told()).toMatch(/npm rebuild node --ignore-scripts=false.*npm install-scripts approve node/);
  await writeFile(join(project, "node_modules/node/bin/node"), "");
  expect(await told()).toContain("npm start");
});
