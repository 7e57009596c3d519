/** Webhook endpoints, their secrets, and the log of what was delivered. */
import { z } from "zod";
import { page, timestamp, wireId } from "./fields.ts";
import { messageTypes } from "./submit.ts";

const url = z.string().min(1).max(2048).describe("http(s) URL");
const events = z
  .array(z.enum(messageTypes, { error: `must be one of ${messageTypes.join(", ")}` }))
  .min(1)
  .max(messageTypes.length)
  .nullable()
  .describe("message types it gets; null: all");
const description = z
  .string()
  .max(500)
  .refine((text) => !text.includes("\0"), "must not contain NUL");
const overlapSeconds = z
  .int()
  .min(0)
  .max(2_592_000)
  .optional()
  .describe("how long requests carry a signature of the old secret too (default a day)");
const secret = z
  .string()
  .describe(
    "what https://www.standardwebhooks.com libraries verify with: `whsec_` + base64; of an `ed25519` endpoint its public key, `whpk_` + base64",
  );
const thinOverBytes = z
  .int()
  .min(1000)
  .max(1_000_000_000)
  .nullable()
  .describe("a larger message goes without its output, with `thin` and `result_url`; null: never");
const signature = z.enum(["hmac", "ed25519"]);

export const createEndpointBody = z
  .strictObject({
    url,
    events: events.optional(),
    description: description.optional(),
    signature: signature
      .optional()
      .describe(
        "`hmac`: a shared secret (default); `ed25519`: a key pair, whose public key is all that the receiver needs. For good",
      ),
    thin_over_bytes: thinOverBytes.optional().describe("see the endpoint (default 20,000)"),
  })
  .meta({
    id: "CreateEndpoint",
    examples: [{ url: "https://example.com/hooks/drover", events: ["query.completed", "query.failed"] }],
  });

export const updateEndpointBody = z
  .strictObject({
    url: url.optional(),
    events: events.optional(),
    description: description.optional(),
    thin_over_bytes: thinOverBytes.optional(),
    enabled: z.boolean().optional().describe("false: what it is still owed is not delivered"),
  })
  .refine((patch) => Object.keys(patch).length > 0, {
    error: "must change something: url, events, description, thin_over_bytes or enabled",
    when: ({ issues }) => issues.length === 0,
  })
  .meta({ id: "UpdateEndpoint", examples: [{ enabled: false }] });

export const rotateSecretBody = z
  .strictObject({ overlap_seconds: overlapSeconds })
  .nullish()
  .meta({ examples: [{ overlap_seconds: 3600 }] });

const endpointFields = {
  id: wireId("endpoint"),
  url: z.string(),
  events: z.array(z.string()).nullable(),
  description: z.string(),
  enabled: z.boolean(),
  disabled_reason: z.string().nullable(),
  signature,
  thin_over_bytes: thinOverBytes,
  created_at: timestamp,
};
export const endpoint = z.object(endpointFields).meta({ id: "Endpoint" });
export type EndpointAnswer = z.infer<typeof endpoint>;
export const endpointWithSecret = z.object({ ...endpointFields, secret }).meta({ id: "EndpointWithSecret" });
export const endpointPage = page(endpoint).meta({ id: "EndpointPage" });

export const webhookSecret = z
  .object({ secret })
  .meta({ id: "WebhookSecret", examples: [{ secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" }] });

export const webhookKeys = z
  .object({
    keys: z.array(z.string()).describe("`whpk_` + base64 of the ed25519 public key; two while one is rotated out"),
  })
  .meta({ id: "WebhookKeys", examples: [{ keys: ["whpk_3qHyZqs+ueU5Wy4JnXCaDKGO/w2G2oyx/qdJGkYzHbQ="] }] });

export const delivery = z
  .object({
    id: wireId("delivery"),
    message_id: z
      .string()
      .describe("the `webhook-id`: the same for every try, and for every endpoint that gets the message"),
    endpoint_id: wireId("endpoint").nullable().describe("null: the query's own `callback_url`"),
    url: z.string(),
    type: z.string(),
    status: z.enum(["pending", "delivered", "failed", "disabled"]),
    attempts: z.array(
      z.object({
        at: timestamp,
        status_code: z.int().nullable(),
        error: z.string().nullable(),
        cause: z.string().nullable().describe("why it failed, as a code; null when it was delivered"),
        hint: z.string().nullable().describe("what can be done about it"),
        duration_ms: z.int(),
      }),
    ),
    delivered_at: timestamp
      .nullable()
      .describe("when it was first delivered; not null although `pending`: it was asked for once more"),
    next_attempt_at: timestamp.nullable(),
    created_at: timestamp,
  })
  .meta({ id: "Delivery" });
export type DeliveryAnswer = z.infer<typeof delivery>;
export const deliveryPage = page(delivery).meta({ id: "DeliveryPage" });
