/** Waiting on behalf of a client that may go away, in a process that may stop. */
import type { FastifyReply } from "fastify";

/** Aborted when the client's connection closes or the process stops, whichever is first; leaves nothing behind when the answer is sent. */
export function untilClosed(reply: FastifyReply, stopping: AbortSignal): AbortSignal {
  const gone = new AbortController();
  const stop = () => gone.abort();
  if (stopping.aborted || reply.raw.destroyed) gone.abort();
  stopping.addEventListener("abort", stop);
  reply.raw.once("close", () => {
    stopping.removeEventListener("abort", stop);
    gone.abort();
  });
  return gone.signal;
}
