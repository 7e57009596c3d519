/** The command line: what is asked for, and the exit code at its end. */
import { CommanderError } from "commander";
import { CliError, exitCodes } from "./exit.ts";
import { createProgram } from "./program.ts";
import { paint, printable } from "./text.ts";

try {
  await createProgram((code) => {
    process.exitCode = code;
  }).parseAsync();
} catch (error) {
  process.exitCode = report(error);
}

function report(error: unknown): number {
  // commander has said it already
  if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.done : exitCodes.usage;
  const known = error instanceof CliError ? error : undefined;
  const [first, ...more] = known
    ? [known.message, ...known.more]
    : [`this is a bug: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`];
  const name = known?.exitCode === exitCodes.interrupted ? "" : `${paint("red", "drover:", process.stderr)} `;
  process.stderr.write(`${name}${printable(first!)}\n${more.map((line) => `  ${printable(line)}\n`).join("")}`);
  return known?.exitCode ?? exitCodes.failed;
}
