/** A process that starts an embedded Postgres, prints its URL and pid, and knows nothing about signals. For `embedded.test.ts`. */
import { startEmbeddedPostgres } from "@drover/storage";

const { url, pid } = await startEmbeddedPostgres({ dataDir: process.argv[2]!, settings: { fsync: "off" } });
console.log(JSON.stringify({ url, pid }));
