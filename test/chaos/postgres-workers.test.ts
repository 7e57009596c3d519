/** Postgres away, and one worker cut off from it, with BullMQ on Redis. */
import { outages } from "./postgres-outages.ts";

outages("redis", ["restarted", "crashed", "away", "standing still", "full"]);
