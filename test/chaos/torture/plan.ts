/**
 * The plan of a torture run: what is submitted when, and what is broken when. A pure function of its options, so that a failing seed can be
 * replayed; what the processes make of it is up to the machine.
 */
import { Random } from "./random.ts";
import type { Scenario, ToolKind } from "./scenario.ts";

export type Backend = "redis" | "postgres";

export interface PlanOptions {
  seed: number;
  /** How long queries are submitted and things are broken, ms. */
  durationMs: number;
  backend: Backend;
  apis: number;
  workers: number;
  /** Queries a second, those in batches included. */
  rate: number;
  /** `LEASE_SECONDS` of the workers; some pauses of a process outlast it. */
  leaseMs: number;
}

export interface Submission {
  /** From the start, ms. */
  atMs: number;
  /** One: a query. Several: a batch. */
  items: Scenario[];
  /** Of the batch, or the query's own. */
  label: string;
  /** Sent with an Idempotency-Key, and again until it is accepted. */
  keyed: boolean;
  /** The same request to both APIs at once, and once more later. */
  twice: boolean;
  callback: boolean;
  delaySeconds: number;
  priority: number;
  /** So long after it was accepted, ms. */
  cancelAfterMs: number | null;
}

/** Of one process. */
const processFaults = [
  "kill",
  "stop",
  "terminate",
  "cut postgres",
  "blackhole postgres",
  "refuse postgres",
  "cut redis",
  "blackhole redis",
  "refuse redis",
  "cut off",
] as const;
/** Of everybody. */
const sharedFaults = [
  "rolling restart",
  "flushall",
  "restart redis",
  "kill redis",
  "restart postgres",
  "crash postgres",
  "stop postgres",
  "terminate backends",
] as const;
export type ProcessFault = (typeof processFaults)[number];
export type SharedFault = (typeof sharedFaults)[number];

export interface Fault {
  atMs: number;
  kind: ProcessFault | SharedFault;
  /** `api0`, `worker2`; null for what is shared. */
  target: string | null;
  /** How long it lasts, for those that last, ms. */
  durationMs: number;
}

export interface Plan {
  submissions: Submission[];
  faults: Fault[];
}

export function makePlan(options: PlanOptions): Plan {
  return { submissions: planSubmissions(options), faults: planFaults(options) };
}

const tools: Record<ToolKind, number> = { pure: 4, idempotent: 3, unsafe: 4, ask: 1, send: 0.7, kill: 0, block: 0 };
/** Queries that end their worker, a minute. */
const killersPerMinute = 2;

function planSubmissions({ seed, durationMs, rate }: PlanOptions): Submission[] {
  const random = new Random(seed);
  const submissions: Submission[] = [];
  let made = 0;
  const scenario = (): Scenario => {
    const turns = Array.from({ length: Number(random.weighted({ 0: 1, 1: 3, 2: 4, 3: 2, 4: 1 })) }, () =>
      Array.from({ length: random.chance(0.2) ? 2 : 1 }, () => random.weighted(tools)),
    );
    if (random.chance(killersPerMinute / 60 / rate)) turns.push([random.chance(0.5) ? "kill" : "block"]);
    return { label: `q${made++}`, turns };
  };
  for (let atMs = 0; ; ) {
    const size = random.chance(0.02) ? random.between(3, 20) : 1;
    atMs += random.pause((1000 * size) / rate);
    if (atMs >= durationMs) return submissions;
    const items = Array.from({ length: size }, scenario);
    const keyed = size > 1 || random.chance(0.7);
    submissions.push({
      atMs: Math.round(atMs),
      items,
      label: size > 1 ? `b${items[0]!.label}` : items[0]!.label,
      keyed,
      twice: keyed && random.chance(0.2),
      callback: random.chance(0.5),
      delaySeconds: size === 1 && random.chance(0.1) ? random.between(1, 3) : 0,
      priority: random.chance(0.2) ? random.between(1, 9) : 0,
      cancelAfterMs: random.chance(0.1) ? random.between(0, 2500) : null,
    });
  }
}

const ofProcess: Record<ProcessFault, number> = {
  kill: 8,
  stop: 4,
  terminate: 2,
  "cut postgres": 3,
  "blackhole postgres": 2,
  "refuse postgres": 1.5,
  "cut redis": 2,
  "blackhole redis": 1.5,
  "refuse redis": 1,
  "cut off": 2,
};
const ofAll: Record<SharedFault, number> = {
  "rolling restart": 1,
  flushall: 3,
  "restart redis": 2,
  "kill redis": 2,
  "restart postgres": 1.5,
  "crash postgres": 1.5,
  "stop postgres": 1,
  "terminate backends": 2,
};
/** Shortest and longest, ms; what is not here is over at once. */
const lasts: Partial<Record<Fault["kind"], [number, number]>> = {
  "blackhole postgres": [300, 9000],
  "refuse postgres": [500, 6000],
  "blackhole redis": [300, 9000],
  "refuse redis": [500, 6000],
  "cut off": [1000, 9000],
  "kill redis": [100, 5000],
  "crash postgres": [0, 3000],
  "stop postgres": [300, 4000],
};
/** How long a process takes to be back, and what is shared to be of use again, ms. */
const recovery = { process: 3000, shared: 6000, rolling: 20_000 };
const meanPauseMs = 3000;
/** How far a pause may outlast the lease: less than `unsafeTimeoutMs`, so that nobody asks too early what became of an unsafe call. */
const overLeaseMs = 2000;
const workerShare = 0.75;

function planFaults({ seed, durationMs, backend, apis, workers, leaseMs }: PlanOptions): Fault[] {
  const random = new Random(seed ^ 0x5eed);
  const faults: Fault[] = [];
  const busyUntil = new Map<string, number>();
  const withoutRedis = <T extends string>(weights: Record<T, number>): Record<T, number> =>
    backend === "redis"
      ? weights
      : (Object.fromEntries(Object.entries(weights).filter(([kind]) => !/redis|flush/.test(kind))) as Record<
          T,
          number
        >);
  const [own, shared] = [withoutRedis(ofProcess), withoutRedis(ofAll)];
  for (let atMs = 1000 + random.pause(meanPauseMs); atMs < durationMs; atMs += random.pause(meanPauseMs)) {
    const isShared = random.chance(0.25);
    const kind = isShared ? random.weighted(shared) : random.weighted(own);
    const name = random.chance(workerShare)
      ? `worker${random.between(0, workers - 1)}`
      : `api${random.between(0, apis - 1)}`;
    const [least, most] = kind === "stop" ? [300, leaseMs + overLeaseMs] : (lasts[kind] ?? [0, 0]);
    const fault: Fault = {
      atMs: Math.round(atMs),
      kind,
      target: isShared ? null : name,
      durationMs: random.between(least, most),
    };
    const target = isShared ? "shared" : name;
    if ((busyUntil.get(target) ?? 0) > atMs) continue;
    faults.push(fault);
    const backIn = kind === "rolling restart" ? recovery.rolling : isShared ? recovery.shared : recovery.process;
    busyUntil.set(target, atMs + fault.durationMs + backIn);
    // A rolling restart has the workers to itself.
    if (kind === "rolling restart")
      for (let index = 0; index < workers; index++) busyUntil.set(`worker${index}`, atMs + backIn);
  }
  return faults;
}

/** One line for each thing that happens, in its order. */
export function* planLines({ submissions, faults }: Plan): Generator<string> {
  const seconds = (ms: number) => `${(ms / 1000).toFixed(2)} s`;
  const lines = [
    ...faults.map((fault) => ({
      atMs: fault.atMs,
      text: `FAULT ${fault.kind}${fault.target ? ` of ${fault.target}` : ""}${fault.durationMs ? ` for ${seconds(fault.durationMs)}` : ""}`,
    })),
    ...submissions.map((it) => ({
      atMs: it.atMs,
      text: `${it.label}${it.items.length > 1 ? ` (batch of ${it.items.length})` : `: ${it.items[0]!.turns.map((turn) => turn.join("+")).join(" ")}`}${it.keyed ? " keyed" : ""}${it.twice ? " twice" : ""}${it.cancelAfterMs === null ? "" : ` cancelled after ${seconds(it.cancelAfterMs)}`}`,
    })),
  ];
  for (const { atMs, text } of lines.sort((a, b) => a.atMs - b.atMs)) yield `${seconds(atMs).padStart(10)}  ${text}`;
}
