/** Puts the second name of its arguments in the place of the first and back, as fast as it can, until it is ended. */
import { renameSync } from "node:fs";

const [name, other] = process.argv.slice(2) as [string, string];
console.log("swapping");
for (;;) {
  renameSync(name, `${name}-aside`);
  renameSync(other, name);
  renameSync(name, other);
  renameSync(`${name}-aside`, name);
}
