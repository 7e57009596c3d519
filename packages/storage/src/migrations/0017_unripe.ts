/** What the two indexes of 0016 took the place of. */
import { inOrder } from "../in-order.ts";

export const unripe = inOrder("DROP INDEX deliveries_by_destination", "DROP INDEX deliveries_due");
