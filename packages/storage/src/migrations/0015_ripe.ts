/** Deliveries that are due and those that wait: a claim visits the destinations of the first only, however many wait. */
import { inOrder } from "../in-order.ts";

export const ripe = inOrder(
  // Due, as far as its row has been told; a worker of the former schema leaves it as it is, and `next_at` decides.
  "ALTER TABLE deliveries ADD COLUMN ripe boolean NOT NULL DEFAULT true",
);
