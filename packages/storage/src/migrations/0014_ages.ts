/** What retention looks for. */
import { indexes } from "../in-order.ts";

export const ages = indexes({
  blobs_age: "blobs (created_at)",
});
