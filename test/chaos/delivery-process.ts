/**
 * A process that delivers, for tests that kill it: the real delivery loop over the real way out. With KILL=before it kills itself, by SIGKILL, when a
 * delivery is claimed and its request is about to begin; with KILL=after when the request was answered and nothing is written down yet.
 */
import { createDelivery } from "@drover/delivery";
import { createEgress } from "@drover/egress";
import { openPool, postgresBlobs } from "@drover/storage";
import { createLogger } from "@drover/telemetry";

const logger = createLogger({ name: "delivery", level: "debug" });
const pool = openPool({ url: process.env.DATABASE_URL!, logger, max: 5 });
const egress = createEgress({ allow: ["127.0.0.0/8"] });
const dieAt = (moment: string) => {
  if (process.env.KILL === moment) process.kill(process.pid, "SIGKILL");
};

const delivery = createDelivery({
  pool,
  blobs: postgresBlobs(pool),
  egress: {
    async request(url, init) {
      dieAt("before");
      const answer = await egress.request(url, init);
      dieAt("after");
      return answer;
    },
  },
  logger,
  metrics: { delivered: (_ms, result) => console.log(`written: ${result}`) },
});
delivery.start();
console.log("ready");
