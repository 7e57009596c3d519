/** A finished run as a small picture: each step a bar on the run's time. Pure: events in, lines out. */
import type { LogEvent } from "@drover/harness";
import { duration, oneLine } from "../text.ts";

interface Bar {
  label: string;
  /** ms since the run was accepted */
  from: number;
  to: number;
}

const width = 40;
const queues: ReadonlySet<LogEvent["type"]> = new Set([
  "run.queued",
  "run.retrying",
  "run.handed_over",
  "run.rescued",
  "run.resumed",
]);

/** The bars of waiting for a worker or for people, of every model call and of every tool call that ended. */
export function timelineOf(events: LogEvent[]): Bar[] {
  const zero = Date.parse(events[0]?.at ?? "");
  const bars: Bar[] = [];
  let queuedSince: number | undefined;
  let waiting: { since: number; label: string } | undefined;
  for (const event of events) {
    const at = Date.parse(event.at) - zero;
    const step = (label: string, ms: number) => bars.push({ label, from: Math.max(0, at - ms), to: at });
    if (event.type === "run.waiting") waiting = { since: at, label: `waiting for ${event.data.waiting_for}` };
    else if (
      waiting !== undefined &&
      ["run.resumed", "run.cancelled", "run.partial", "run.failed"].includes(event.type)
    ) {
      step(waiting.label, at - waiting.since);
      waiting = undefined;
    }
    if (queues.has(event.type)) queuedSince = at;
    else if (event.type === "run.started" && queuedSince !== undefined) step("queued", at - queuedSince);
    else if (event.type === "model.call") step(`model ${event.data.iteration}`, event.data.duration_ms);
    else if (event.type === "tool.result") step(event.data.tool_name, event.data.duration_ms);
  }
  return bars;
}

export function drawTimeline(events: LogEvent[]): string[] {
  const bars = timelineOf(events);
  const total = Math.max(1, ...bars.map((bar) => bar.to));
  const names = Math.max(0, ...bars.map((bar) => bar.label.length));
  const scale = (ms: number) => (ms / total) * width;
  return bars.map(({ label, from, to }) => {
    const start = Math.min(width - 1, Math.floor(scale(from)));
    const length = Math.max(1, Math.min(width, Math.round(scale(to))) - start);
    const bar = " ".repeat(start) + (scale(to - from) < 0.5 ? "▏" : "█".repeat(length));
    return `${oneLine(label, 30).padEnd(names)} ${bar.padEnd(width)} ${duration(to - from).padStart(8)}`;
  });
}
