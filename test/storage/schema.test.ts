import { readFile } from "node:fs/promises";
import { expect, onTestFinished, test } from "vitest";
import { schemaPage, schemaPath } from "../../scripts/schema.ts";
import { createDatabase } from "../support/database.ts";

test("docs/schema.sql is what the migrations make", async () => {
  const database = await createDatabase();
  onTestFinished(() => database.drop());
  expect(await readFile(schemaPath, "utf8"), "run `npm run docs`").toBe(await schemaPage(database.url));
});
