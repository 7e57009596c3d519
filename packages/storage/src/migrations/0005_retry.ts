/** Which run a retry takes up again. */
import { inOrder } from "../in-order.ts";

export const retry = inOrder(
  `ALTER TABLE runs
    ADD COLUMN retry_of uuid REFERENCES runs ON DELETE SET NULL,
    ADD CONSTRAINT runs_retry_of CHECK (retry_of IS NULL OR kind = 'query')`,
  `CREATE INDEX runs_retries ON runs (retry_of) WHERE retry_of IS NOT NULL`,
);
