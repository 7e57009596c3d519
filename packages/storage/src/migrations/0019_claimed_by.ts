/** Which worker is trying a delivery: once it is known to be dead, others need not wait for its claim to run out. */
import { inOrder } from "../in-order.ts";

export const claimedBy = inOrder("ALTER TABLE deliveries ADD COLUMN claimed_by uuid");
