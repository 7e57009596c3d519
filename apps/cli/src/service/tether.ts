/**
 * Preloaded into the supervisor's children. They stop by themselves when the supervisor is gone, also by SIGKILL (the channel to it
 * closes); this puts an end to one that takes too long. With an embedded database, which goes with the supervisor, that is at
 * once: nothing could be recorded any more.
 */
import { isMainThread } from "node:worker_threads";

if (isMainThread && process.channel) {
  const graceSeconds = Number(process.env.DROVER_ORPHAN_GRACE_SECONDS ?? 0);
  const kill = () => process.kill(process.pid, "SIGKILL");
  process.prependOnceListener("disconnect", () => {
    if (graceSeconds === 0) kill();
    setTimeout(kill, graceSeconds * 1000).unref();
  });
  // Listening must not keep the process alive.
  process.channel.unref();
}
