/** JSON on the command line, or `@file`. */
import { readFile } from "node:fs/promises";
import { CliError, exitCodes } from "../exit.ts";

/** @throws CliError naming `option` when there is no such file, or it is not JSON */
export async function readJson(option: string, given: string): Promise<unknown> {
  let json = given;
  if (given.startsWith("@")) {
    try {
      json = await readFile(given.slice(1), "utf8");
    } catch (error) {
      throw new CliError(exitCodes.usage, `${option}: cannot read ${given.slice(1)} (${(error as Error).message})`);
    }
  }
  try {
    return JSON.parse(json);
  } catch (error) {
    throw new CliError(exitCodes.usage, `${option} is not JSON: ${(error as Error).message}`);
  }
}
