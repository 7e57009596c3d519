/** Whom a worker's death is blamed on: runs whose users' code may have been running, or all, when that was none. */
import { inOrder } from "../in-order.ts";

export const blame = inOrder(
  // A tool call of it is open, or its agent has policies.
  "ALTER TABLE runs ADD COLUMN user_code boolean NOT NULL DEFAULT false",
  // The verdict on a crash, made once for all of the worker's runs: is everybody blamed, and how many suspects are among those that are?
  "ALTER TABLE workers ADD COLUMN blames_all boolean, ADD COLUMN suspects int",
);
