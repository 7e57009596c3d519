/**
 * How an endpoint is sent to: what it verifies signatures with, and from which size on a message goes without its output. Endpoints that are there keep
 * what they have; and why a try failed, as a code.
 */
import { inOrder } from "../in-order.ts";

export const ports = inOrder(
  "ALTER TABLE endpoints ADD COLUMN thin_over_bytes integer",
  "ALTER TABLE delivery_attempts ADD COLUMN cause text",
);
