/** Which agents and models a worker knows, and runs that wait for one that knows theirs. */
import { inOrder } from "../in-order.ts";

export const known = inOrder(
  // NULL: it takes every one. A model is "provider/model", or "provider/*" for all of a provider.
  "ALTER TABLE workers ADD COLUMN agents text[], ADD COLUMN models text[]",
  // The model its submission asks for; NULL: its agent's.
  "ALTER TABLE runs ADD COLUMN model text",
  // Since when a run that is due waits for a worker that knows its agent and model: such a run is not woken.
  "ALTER TABLE runs ADD COLUMN set_aside_at timestamptz(3)",
  "CREATE INDEX runs_set_aside ON runs (agent, set_aside_at) WHERE set_aside_at IS NOT NULL",
  "DROP INDEX runs_due",
  "CREATE INDEX runs_due ON runs (available_at) WHERE status = 'queued' AND NOT woken AND set_aside_at IS NULL",
);
