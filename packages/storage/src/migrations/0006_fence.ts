/** What a run's owner appended last: the part of the fence that refuses a copy of an append which comes through late. */
import { inOrder } from "../in-order.ts";

export const fence = inOrder("ALTER TABLE runs ADD COLUMN last_append uuid");
