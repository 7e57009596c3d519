/** What foreign keys look for when a run is deleted. */
import { indexes } from "../in-order.ts";

export const keys = indexes({
  runs_of_run: "runs (of_run) WHERE of_run IS NOT NULL",
});
