/** Postgres away, and one worker cut off from it, with BullMQ on the same Postgres, whose queue goes and comes with it. */
import { outages } from "./postgres-outages.ts";

outages("postgres", ["crashed", "away"]);
