/** A session's own runs, to know what it has spent: never all of its tenant's. */
import { inOrder } from "../in-order.ts";

export const sessions = inOrder("CREATE INDEX runs_by_session ON runs (session_id) WHERE session_id IS NOT NULL");
