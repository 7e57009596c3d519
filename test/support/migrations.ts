/** The names of all migrations, in their order, as their files have them. */
import { readdirSync } from "node:fs";
import { basename } from "node:path";

export const migrationNames = readdirSync(new URL("../../packages/storage/src/migrations", import.meta.url))
  .map((file) => basename(file, ".ts"))
  .sort();
