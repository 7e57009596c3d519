/** A closed-loop load driver: N connections, each sends its next request when its last was answered. Latencies in ms, to the microsecond. */
import { Pool } from "undici";

export interface LoadResult {
  perSecond: number;
  p50: number;
  p99: number;
}

export interface Load {
  url: string;
  path: string;
  headers: Record<string, string>;
  body: string;
  connections: number;
  requests: number;
  /** The status every answer must have. */
  status: number;
}

export async function load(options: Load): Promise<LoadResult> {
  const pool = new Pool(options.url, { connections: options.connections, pipelining: 1 });
  const request = { path: options.path, method: "POST" as const, headers: options.headers, body: options.body };
  const one = async () => {
    const answer = await pool.request(request);
    await answer.body.dump();
    if (answer.statusCode !== options.status) throw new Error(`${options.path} answered ${answer.statusCode}`);
  };
  // Connections opened, code compiled.
  await Promise.all(Array.from({ length: options.connections * 10 }, one));
  const latencies: number[] = [];
  let sent = 0;
  const startedAt = performance.now();
  await Promise.all(
    Array.from({ length: options.connections }, async () => {
      while (sent++ < options.requests) {
        const at = performance.now();
        await one();
        latencies.push(performance.now() - at);
      }
    }),
  );
  const tookMs = performance.now() - startedAt;
  await pool.close();
  return { perSecond: (latencies.length / tookMs) * 1000, ...percentiles(latencies) };
}

export function percentiles(values: number[]): { p50: number; p99: number } {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
  return { p50: at(0.5), p99: at(0.99) };
}
