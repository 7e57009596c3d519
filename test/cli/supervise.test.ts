/** The supervisor's side of one child: started again, given up, told to stop, with programs that behave badly. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, expect, it, onTestFinished } from "vitest";
import { supervise } from "../../apps/cli/src/service/supervise.ts";
import { temporaryFolder, until } from "./drover.ts";

const folder = await temporaryFolder();
afterAll(() => folder.remove());

let programs = 0;
async function start(code: string) {
  const file = join(folder.path, `program-${++programs}.mjs`);
  await writeFile(file, code);
  const told: string[] = [];
  const child = supervise({
    name: "thing",
    entry: pathToFileURL(file).href,
    env: process.env,
    graceSeconds: 1,
    orphanGraceSeconds: 0,
    firstPauseMs: 8,
    onLine: (line) => told.push(line),
    onNews: (news) => told.push(news),
  });
  onTestFinished(() => child.kill());
  return { child, told };
}

it("gives up a program that ends five times right after its start, with growing pauses between", async () => {
  const { child, told } = await start(`console.error("cannot"); process.exit(3)`);
  expect(await child.givenUp).toBe("the thing ended 5 times in a row right after its start (exit code 3)");
  const again = [8, 16, 32, 64].flatMap((ms) => [
    "cannot",
    `the thing ended (exit code 3), starting it again in ${ms / 1000} s`,
  ]);
  expect(told).toEqual([...again, "cannot"]);
});

it("gives up at once when the program says that its configuration is wrong", async () => {
  const { child, told } = await start(`console.log("PORT must be a number"); process.exit(78)`);
  expect(await child.givenUp).toBe("the thing cannot start with this configuration");
  expect(told).toEqual(["PORT must be a number"]);
});

it("starts a killed program again, also when another process still holds its output", async () => {
  const { child, told } = await start(`
    import { spawn } from "node:child_process";
    const other = spawn("sleep", ["30"], { stdio: "inherit" });
    console.log("holds the output: " + other.pid);
    setInterval(() => {}, 1000);
  `);
  const holders = () => told.flatMap((line) => /output: (\d+)/.exec(line)?.[1] ?? []).map(Number);
  onTestFinished(() => {
    for (const pid of holders()) process.kill(pid, "SIGKILL");
  });
  await until(() => holders().length === 1);
  process.kill(child.pid!, "SIGKILL");
  await until(() => holders().length === 2);
  await child.stop();
  expect(child.pid).toBeUndefined();
});

it("ends a program that does not stop when asked", async () => {
  const { child } = await start(`
    process.on("SIGTERM", () => console.log("no"));
    process.send({ ready: true });
    setInterval(() => {}, 1000);
  `);
  await child.ready;
  await child.stop();
  expect(child.pid).toBeUndefined();
});
