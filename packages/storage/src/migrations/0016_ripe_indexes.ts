import { indexes } from "../in-order.ts";

export const ripeIndexes = indexes({
  deliveries_ripe: "deliveries (destination, next_at) WHERE status = 'pending' AND ripe",
  deliveries_unripe: "deliveries (next_at) WHERE status = 'pending' AND NOT ripe",
});
