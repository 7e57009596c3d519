import { isWebhookSecret, newWebhookSecret } from "@drover/delivery";
import fc from "fast-check";
import { Webhook } from "standardwebhooks";
import { describe, expect, it } from "vitest";
import { giveUpAfterMs, pauseMs, retryAfterMs } from "../../packages/delivery/src/schedule.ts";
import { signedHeaders } from "../../packages/delivery/src/signature.ts";

const second = 1000;
const hour = 3600 * second;

describe("the schedule", () => {
  it("grows, and covers the three days with ten tries", () => {
    const pauses = Array.from({ length: 9 }, (_, failures) => pauseMs(failures, null, 0.5));
    expect(pauses).toEqual([
      5 * second,
      300 * second,
      1800 * second,
      ...[2, 5, 10, 14, 20, 24].map((hours) => hours * hour),
    ]);
    const total = pauses.reduce((sum, pause) => sum + pause, 0);
    expect(total).toBeGreaterThan(giveUpAfterMs);
    expect(total - pauses.at(-1)!).toBeLessThan(giveUpAfterMs);
  });

  it("is jittered by at most a fifth, whatever is asked for never shorter, and never past the three days", () => {
    fc.assert(
      fc.property(
        fc.nat(100),
        fc.option(fc.maxSafeNat()),
        fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }),
        (failures, asked, random) => {
          const planned = pauseMs(failures, null, 0.5);
          const pause = pauseMs(failures, asked, random);
          expect(Number.isSafeInteger(pause)).toBe(true);
          expect(pause).toBeGreaterThanOrEqual(planned * 0.8 - 1);
          expect(pause).toBeLessThanOrEqual(Math.max(planned * 1.2 + 1, Math.min(asked ?? 0, giveUpAfterMs)));
          expect(pause).toBeGreaterThanOrEqual(Math.floor(Math.min(asked ?? 0, giveUpAfterMs)));
        },
      ),
    );
  });
});

describe("Retry-After", () => {
  const now = Date.parse("2026-11-21T08:00:00Z");
  it.each([
    ["120", 120_000],
    [" 0 ", 0],
    ["Sat, 21 Nov 2026 08:01:00 GMT", 60_000],
    ["Saturday, 21-Nov-26 08:01:00 GMT", 60_000],
    ["Sat, 21 Nov 2026 07:00:00 GMT", 0],
    ["-5", null],
    ["1.5", null],
    ["120, 60", null],
    ["later", null],
    ["", null],
    [undefined, null],
  ])("%j is %j ms", (header, expected) => {
    expect(retryAfterMs(header, now)).toBe(expected);
  });
});

describe("signatures", () => {
  it("are what the standardwebhooks library makes, for any body and secret", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), fc.uint8Array({ minLength: 24, maxLength: 64 }), (body, key) => {
        const secret = `whsec_${Buffer.from(key).toString("base64")}`;
        const at = new Date(1_790_000_000_999);
        const text = body.toWellFormed();
        expect(isWebhookSecret(secret)).toBe(true);
        expect(signedHeaders({ id: "evt_1", body: text }, [secret], at.getTime())).toEqual({
          "webhook-id": "evt_1",
          "webhook-timestamp": "1790000000",
          "webhook-signature": new Webhook(secret).sign("evt_1", at, text),
        });
      }),
    );
  });

  it("take only secrets of 24 to 64 bytes in plain base64", () => {
    expect(isWebhookSecret(newWebhookSecret())).toBe(true);
    const of = (bytes: number) => `whsec_${Buffer.alloc(bytes, 1).toString("base64")}`;
    for (const bad of [
      of(23),
      of(65),
      "whsec_",
      of(32).slice(6),
      `${of(32)}!`,
      of(32).replace("=", ""),
      "whsec_not base64 at all, though it is long",
    ]) {
      expect(isWebhookSecret(bad), bad).toBe(false);
    }
  });
});
