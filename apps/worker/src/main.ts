/** The worker as a process: SIGTERM hands its runs over; it also stops when the supervisor that started it is gone. */

import { ConfigError } from "@drover/harness";
import { strayOwner } from "@drover/harness/worker";
import { ConfigurationError } from "@drover/protocol";
import { messageOf, scrub } from "@drover/telemetry";
import closeWithGrace from "close-with-grace";
import { startWorkerProcess } from "./index.ts";

/** EX_TEMPFAIL of sysexits.h: not zero, so that every supervisor starts it again. */
const exitOutgrown = 75;

try {
  const worker = await startWorkerProcess(process.env);
  // The worker keeps its own grace; this one only ends a stop that hangs.
  const graceMs = (Number(process.env.SHUTDOWN_GRACE_SECONDS || 25) + 10) * 1000;
  const { close } = closeWithGrace({ delay: graceMs, skip: ["uncaughtException", "unhandledRejection"] }, () =>
    worker.stop(),
  );
  for (const event of ["uncaughtException", "unhandledRejection"] as const)
    process.on(event, (thrown: unknown) => {
      // Code of users, whose it is is known: their call fails, and nobody else notices anything.
      if (worker.blame(strayOwner(), thrown)) return;
      process.exitCode = 1;
      void close();
    });
  void worker.outgrown.then(async () => {
    await worker.stop();
    process.exit(exitOutgrown);
  });
  process.on("disconnect", close);
  process.send?.({ ready: true, url: worker.url });
} catch (error) {
  const known = error instanceof ConfigurationError || error instanceof ConfigError;
  console.error(scrub(known ? error.message : `The worker cannot start: ${messageOf(error)}`));
  process.exit(known ? 78 : 1);
}
