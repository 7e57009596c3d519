import { setTimeout } from "node:timers/promises";
import { defineTool } from "@drover/harness";
import { z } from "zod";

const mostSeconds = 3600;

/** Holds its slot and counts as active time; after a crash it begins anew. */
export const waitTool = defineTool({
  name: "wait",
  description:
    "Waits before going on, for example until something asked for elsewhere may be ready. It uses the run's time limit.",
  input: z.object({
    seconds: z.number().min(0).max(mostSeconds).describe(`how long, 0 to ${mostSeconds}`),
  }),
  permission: "read",
  effect: "pure",
  timeoutMs: (mostSeconds + 10) * 1000,
  async execute({ seconds }, { signal }) {
    await setTimeout(seconds * 1000, undefined, { signal });
    return { waited_seconds: seconds };
  },
});
