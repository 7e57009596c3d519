import { z } from "zod";
import { parseCidrs } from "./addresses.ts";

/** What may be reached although it is not public. */
export const egressConfig = z.object({
  DROVER_EGRESS_ALLOW: z
    .string()
    .default("")
    .transform((text, context) => {
      try {
        return parseCidrs(text);
      } catch (error) {
        context.addIssue({ code: "custom", message: (error as Error).message });
        return z.NEVER;
      }
    })
    .describe("comma-separated CIDRs that callbacks and tools may reach although they are not public (none)"),
});
export type EgressConfig = z.infer<typeof egressConfig>;
