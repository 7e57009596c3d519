import { z } from "zod";

/** How many webhooks one worker sends at once. */
export const deliveryConfig = z.object({
  DELIVERY_CONCURRENCY: z.coerce
    .number()
    .int()
    .min(1)
    .max(10_000)
    .default(200)
    .describe("webhook requests one worker has under way at once"),
  DELIVERY_PER_DESTINATION: z.coerce
    .number()
    .int()
    .min(1)
    .max(100)
    .default(8)
    .describe("of these, to one endpoint or callback host at once; one that fails gets a single request at a time"),
});
export type DeliveryConfig = z.infer<typeof deliveryConfig>;
