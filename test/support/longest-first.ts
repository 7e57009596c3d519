/** The order in which test files start: those that take longest first, so that none of them is alone at the end. */
import { BaseSequencer, type TestSpecification } from "vitest/node";

/** Measured; the rest is a matter of seconds. */
const long = [
  "chaos/queue-outage",
  "chaos/torture",
  "chaos/queue-restart",
  "conformance/signals",
  "chaos/kill",
  "chaos/blocked",
  "chaos/parking",
  "chaos/queue-lost",
  "chaos/liveness",
  "chaos/limits",
  "chaos/redis",
  "chaos/queue-looks",
  "harness/isolation",
  "cli/",
  "chaos/",
  "runs/worker",
  "runs/audit",
  "storage/embedded",
  "api/operate",
  "runs/machine",
  "api/process",
  "journeys/",
];

export class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification) => {
      const found = long.findIndex((name) => moduleId.includes(`/test/${name}`));
      return found < 0 ? long.length : found;
    };
    return files.toSorted((a, b) => place(a) - place(b) || (a.moduleId < b.moduleId ? -1 : 1));
  }
}
