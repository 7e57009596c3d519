/** API processes look twice a second whose keys were revoked just now. */
import { indexes } from "../in-order.ts";

export const revoked = indexes({
  api_keys_revoked: "api_keys (revoked_at) WHERE revoked_at IS NOT NULL",
});
