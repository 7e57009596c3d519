/** Asks for the URL in its first argument by `fetch` and by egress, under the proxy variables it was started with. */
import { createEgress } from "@drover/egress";

const url = process.argv[2]!;
await fetch(url).then(
  (response) => console.log(`fetch ${response.status}`),
  () => console.log("fetch failed"),
);
const egress = createEgress({ allow: ["127.0.0.0/8"] });
console.log(`egress ${(await egress.request(url, { timeoutMs: 10_000, maxBytes: 100 })).status}`);
await egress.close();
