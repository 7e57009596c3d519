/** Waiting on behalf of a client that may go away, in a process that may stop. */
import type { FastifyReply } from "fastify";
import type { Context } from "./context.ts";

/** Aborted when the client's connection closes, its key is revoked or the process stops, whichever is first; leaves nothing behind when the answer is sent. */
export function untilClosed(reply: FastifyReply, { stopping, keys }: Pick<Context, "stopping" | "keys">): AbortSignal {
  const gone = new AbortController();
  const release = keys.hold(reply.request.caller.keyId, () => gone.abort());
  const stop = () => gone.abort();
  if (stopping.aborted || reply.raw.destroyed) gone.abort();
  stopping.addEventListener("abort", stop);
  reply.raw.once("close", () => {
    stopping.removeEventListener("abort", stop);
    release();
    gone.abort();
  });
  return gone.signal;
}
