/** Preloaded into measured processes: asked for it over IPC, collects garbage and prints what is left. */
process.on("message", (message) => {
  if (message !== "memory") return;
  for (let round = 0; round < 3; round++) (globalThis as { gc?: () => void }).gc?.();
  const { rss, heapUsed, external } = process.memoryUsage();
  console.log(`memory ${rss} ${heapUsed + external}`);
});
