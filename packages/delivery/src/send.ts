/** One try: the signed request, and what its answer means for the delivery. */
import { type Egress, EgressFailed, EgressRefused, EgressTimeout } from "@drover/egress";
import { toWireId } from "@drover/protocol";
import { causeOfError, causeOfStatus } from "./cause.ts";
import type { ClaimedDelivery } from "./claim.ts";
import type { Attempt } from "./outcome.ts";
import { pauseMs, retryAfterMs } from "./schedule.ts";
import { signedHeaders } from "./signature.ts";

/** Of an answer's body, which nobody reads, this much is taken in so that the connection can be used again. */
const answerBytes = 65_536;

/**
 * Sends a claimed delivery once. Network trouble is an outcome, not an error. A receiver that finds it too large (413) gets `thin` at once, within the same try.
 * @param timeoutMs for the whole exchange, the answer's body included
 * @throws the signal's reason when it ended the request: whether it arrived is not known
 */
export async function send(
  egress: Pick<Egress, "request">,
  delivery: ClaimedDelivery,
  options: { body: string; thin?: () => string | null; timeoutMs: number; signal: AbortSignal },
): Promise<Attempt> {
  const { body, thin, timeoutMs, signal } = options;
  const startedAt = performance.now();
  const post = (text: string, withinMs: number) =>
    egress.request(delivery.url, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        "user-agent": "Drover",
        ...signedHeaders({ id: toWireId("event", delivery.messageId), body: text }, delivery.secrets),
      },
      body: text,
      timeoutMs: withinMs,
      maxBytes: answerBytes,
      signal,
      // The receiver knows the message by its id.
      repeatable: true,
    });
  let answer: Answer;
  try {
    let response = await post(body, timeoutMs);
    const short = response.status === 413 ? thin?.() : null;
    if (short) response = await post(short, Math.max(1, timeoutMs - (performance.now() - startedAt)));
    answer = judge(response.status, response.headers["retry-after"]);
  } catch (error) {
    if (signal.aborted) throw error;
    if (!(error instanceof EgressRefused || error instanceof EgressTimeout || error instanceof EgressFailed))
      throw error;
    // A refused address is tried again as well: DNS and the operator's list can be put right within three days, the guard
    // judges every connection anew, and a look-up is all that such a try costs.
    answer = { result: "retry", statusCode: null, error: error.message, cause: causeOfError(error), askedMs: null };
  }
  const { askedMs, ...rest } = answer;
  return {
    ...rest,
    deliveryId: delivery.id,
    attempt: delivery.attempt,
    pauseMs: pauseMs(delivery.failures, askedMs),
    recovered: delivery.failing && answer.result === "delivered" ? delivery.endpointId : null,
    durationMs: Math.round(performance.now() - startedAt),
  };
}

/** A try that ended before there was a request. */
export function unsent(delivery: ClaimedDelivery, why: { result: "retry" | "failed"; error: string }): Attempt {
  return {
    ...why,
    cause: "internal",
    deliveryId: delivery.id,
    attempt: delivery.attempt,
    pauseMs: pauseMs(delivery.failures, null),
    statusCode: null,
    recovered: null,
    durationMs: 0,
  };
}

interface Answer extends Pick<Attempt, "result" | "statusCode" | "error" | "cause"> {
  askedMs: number | null;
}

function judge(status: number, retryAfter: string | undefined): Answer {
  if (status >= 200 && status < 300)
    return { result: "delivered", statusCode: status, error: null, cause: null, askedMs: null };
  const cause = causeOfStatus(status);
  if (status === 410)
    return { result: "gone", statusCode: status, error: "answered 410: gone for good", cause, askedMs: null };
  const why = status >= 300 && status < 400 ? ": redirects are not followed" : "";
  return {
    result: "retry",
    statusCode: status,
    error: `answered ${status}${why}`,
    cause,
    askedMs: retryAfterMs(retryAfter),
  };
}
