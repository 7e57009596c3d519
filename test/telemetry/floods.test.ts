import { createLogger, everyLine } from "@drover/telemetry";
import { afterEach, beforeEach, expect, test, vi } from "vitest";

type Line = { msg: string; repeated?: number; job_id?: number };
let lines: Line[];
const logger = () => createLogger({ name: "test", to: { write: (line: string) => void lines.push(JSON.parse(line)) } });

beforeEach(() => {
  lines = [];
  vi.useFakeTimers();
});
afterEach(() => vi.useRealTimers());

test("a flood of one warning is a few lines and, at the end, one with the count", () => {
  const log = logger();
  const child = log.child({ part: "queue" });
  for (let n = 0; n < 10_000; n++) (n % 2 ? log : child).warn({ job_id: n }, "a ring lost its lock");
  log.error("something else");
  expect(lines).toHaveLength(21);
  vi.advanceTimersByTime(10_000);
  expect(lines).toHaveLength(22);
  expect(lines.at(-1)).toMatchObject({ msg: "a ring lost its lock", repeated: 9980, within_ms: 10_000 });
  // What comes later is told again, and a window without a flood says nothing at its end.
  log.warn({ job_id: 1 }, "a ring lost its lock");
  vi.advanceTimersByTime(60_000);
  expect(lines).toHaveLength(23);
});

test("what happens once to each of many things is told of each, and so is what is no trouble", () => {
  const log = logger();
  const each = everyLine(log);
  for (let n = 0; n < 100; n++) {
    each.warn({ task_id: n }, "run failed");
    log.info({ request_id: n }, "request");
  }
  expect(lines).toHaveLength(200);
});

test("texts made on the spot do not fill the memory of what was seen", () => {
  const log = logger();
  for (let n = 0; n < 5000; n++) log.warn(`text ${n}`);
  expect(lines).toHaveLength(5000);
  expect(vi.getTimerCount()).toBeLessThanOrEqual(1000);
});
