import { defineConfig } from "vitest/config";
import { LongestFirst } from "./test/support/longest-first.ts";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: ["test/support/global-setup.ts"],
    reporters: ["default", "./test/support/skipped.ts"],
    pool: "forks",
    // On two cores: tests wait more than they work.
    maxWorkers: 4,
    sequence: { sequencer: LongestFirst },
    experimental: { viteModuleRunner: false, nodeLoader: false },
    testTimeout: 30_000,
    hookTimeout: 60_000,
    // What is waited for comes; how soon is no claim of a test.
    expect: { poll: { timeout: 15_000 } },
  },
});
