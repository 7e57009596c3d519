/** A sequencer as its own process, for tests that kill it. */
import { startSequencer } from "@drover/runs";
import { openPool } from "@drover/storage";
import { createLogger } from "@drover/telemetry";

const logger = createLogger({ name: "sequencer", level: "warn" });
const url = process.env.DATABASE_URL!;
startSequencer({ pool: openPool({ url, logger, max: 1 }), directUrl: url, logger });
console.log("ready");
