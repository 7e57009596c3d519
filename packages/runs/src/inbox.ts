/** How the sequencer looks into an inbox: rows named by UUIDv7, which is time, in batches, the latest mostly. */

export const batchSize = 1000;
/**
 * Most looks begin with what was made in the last seconds; a full one, now and then, finds what longer transactions committed. What was taken out of an
 * inbox stays in its index as long as the oldest snapshot (a backup's) needs it, and every full look reads it again.
 */
export const recentSeconds = 10;
/** What a full look begins after. */
export const firstId = "00000000-0000-0000-0000-000000000000";
