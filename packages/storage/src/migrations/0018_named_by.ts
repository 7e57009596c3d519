/** Who named an endpoint's address: where keys may not approve what they submitted themselves, no link to do so goes to their own. */
import { inOrder } from "../in-order.ts";

export const namedBy = inOrder("ALTER TABLE endpoints ADD COLUMN named_by text");
