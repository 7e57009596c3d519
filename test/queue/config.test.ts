import { queueConfig } from "@drover/queue";
import { describe, expect, test } from "vitest";

const parse = (env: Record<string, string>) => queueConfig.safeParse(env);
const problems = (env: Record<string, string>) =>
  parse(env).error?.issues.map((issue) => [issue.path.join("."), issue.message]) ?? [];

describe("queue configuration", () => {
  test("needs nothing: BullMQ on Postgres, keys in one Cluster slot", () => {
    expect(queueConfig.parse({})).toEqual({ DROVER_QUEUE_PREFIX: "{drover}" });
  });

  test.for([
    "redis://localhost",
    "rediss://user:p%40ss@cache.example:6380/2",
    "redis://[::1]:7000",
    "redis://a:6379,b:6379,c:6379",
    "rediss://user:secret@a:6379, b:6380",
    "redis://cluster.example:6379,",
  ])("takes %s", (url) => {
    expect(problems({ REDIS_URL: url })).toEqual([]);
  });

  test.for([
    "",
    "localhost:6379",
    "http://localhost",
    "redis://",
    "redis://a:99999",
    ",redis://a",
    "redis://a,http://b",
  ])("refuses %j by name", (url) => {
    expect(problems({ REDIS_URL: url })).toEqual([["REDIS_URL", expect.stringContaining("redis://")]]);
  });

  test("wants braces in the prefix on a Cluster, which else spreads a queue over its nodes", () => {
    const single = { REDIS_URL: "redis://a", DROVER_QUEUE_PREFIX: "drover" };
    expect(problems(single)).toEqual([]);
    expect(problems({ ...single, REDIS_URL: "redis://a,b" })).toEqual([
      ["DROVER_QUEUE_PREFIX", expect.stringContaining("braces")],
    ]);
    expect(problems({ DROVER_QUEUE_PREFIX: "a b" })).toEqual([["DROVER_QUEUE_PREFIX", expect.any(String)]]);
  });
});
