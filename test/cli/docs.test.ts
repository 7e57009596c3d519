/** `docs/cli.md`, `--help` and the code say the same. */
import { readFile } from "node:fs/promises";
import { expect, it } from "vitest";
import { exitCodes, exitMeanings } from "../../apps/cli/src/exit.ts";
import { createProgram } from "../../apps/cli/src/program.ts";
import { drover } from "./drover.ts";

const text = await readFile(new URL("../../docs/cli.md", import.meta.url), "utf8");
type Command = ReturnType<typeof createProgram>;
const commands = (parent: Command): Command[] =>
  parent.commands.flatMap((command) => (command.commands.length > 0 ? commands(command) : [command]));
const all = commands(createProgram(() => {}));
const fullName = (command: Command) =>
  [command.parent?.name(), command.name()].filter((name) => name && name !== "drover").join(" ");

it("the table of exit codes is the code's", () => {
  const rows = [...text.matchAll(/^\| (\d+) +\| (.*?) +\|$/gm)].map(([, code, meaning]) => [Number(code), meaning]);
  const names = Object.keys(exitCodes) as (keyof typeof exitCodes)[];
  expect(rows).toEqual(names.map((name) => [exitCodes[name], exitMeanings[name]]));
});

it.each(all.map((command) => [fullName(command), command] as const))(
  "drover %s and its options are documented",
  (name, command) => {
    expect(text).toContain(`drover ${name}`);
    const missing = command.options.map((option) => option.long!).filter((long) => !text.includes(long));
    expect(missing).toEqual([]);
  },
);

it("--help shows the exit codes and every command's own help has its options, with code 0", async () => {
  const help = await drover(["--help"]);
  expect(help.code).toBe(0);
  for (const [name, code] of Object.entries(exitCodes))
    expect(help.stdout).toContain(`${code}  ${exitMeanings[name as keyof typeof exitCodes]}`);
  const run = await drover(["run", "--help"]);
  expect(run).toMatchObject({ code: 0, stderr: "" });
  expect(run.stdout).toMatch(/Examples:\n {2}\$ drover run/);
  expect(await drover([])).toMatchObject({ code: 2 });
});
