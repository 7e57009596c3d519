/** What a process says about itself. */
import { z } from "zod";

export const health = z.object({ status: z.literal("ok") }).meta({ id: "Health", examples: [{ status: "ok" }] });

export const ready = z
  .object({
    status: z.enum(["ready", "not_ready"]),
    reasons: z.array(z.string()).optional().describe("why it is not ready"),
    degraded: z.array(z.string()).optional().describe("what does not work although this process does its duty"),
  })
  .meta({ id: "Ready", examples: [{ status: "ready" }, { status: "ready", degraded: ["no live worker"] }] });
export type ReadyAnswer = z.infer<typeof ready>;
