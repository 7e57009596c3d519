/** How the sequencer looks into an inbox: rows named by UUIDv7, which is time, in batches, the latest mostly. */
import type { Queryable } from "@drover/storage";

export const batchSize = 1000;
/**
 * Most looks begin with what was made in the last seconds; a full one, now and then, finds what longer transactions committed. What was taken out of an
 * inbox stays in its index as long as the oldest snapshot (a backup's) needs it, and every full look reads it again.
 */
export const recentSeconds = 10;
/** What a full look begins after. */
export const firstId = "00000000-0000-0000-0000-000000000000";

/** Which of the two inboxes have anything of the last seconds. What most looks come to is that neither has: it costs one statement. */
export async function peek(db: Queryable): Promise<{ messages: boolean; entries: boolean }> {
  const recent = "uuidv7_floor(now() - $1 * interval '1 second')";
  const { rows } = await db.query<{ messages: boolean; entries: boolean }>(
    `SELECT EXISTS (SELECT FROM messages_unnumbered WHERE message_id > ${recent}) AS messages,
            EXISTS (SELECT FROM audit_unchained WHERE entry_id > ${recent}) AS entries`,
    [recentSeconds],
  );
  return rows[0]!;
}
