/** Does what is due of a table of duties, one after the other: some in every worker, some only where this process leads. Each fails alone. */

export interface Duty {
  name: string;
  /** ms between two goes. */
  every: number;
  who: "each" | "leader";
  /** What it finds must not depend on the goes before: each may have died anywhere. Its answer, a number, says in how many ms it should go again. */
  run(): Promise<unknown>;
}

export interface DutiesOptions {
  duties: readonly Duty[];
  leads(): boolean;
  onError(duty: string, error: unknown): void;
}

export interface Duties {
  /** This one now, whoever leads: something is known to be due. */
  soon(duty: string): void;
  /** This process leads from now on: everything that a leader does is due. */
  begin(): void;
  /** Waits for the duty under way. */
  close(): Promise<void>;
}

/** No duty goes more often, however much it has to do, ms. */
const soonestMs = 50;
/** What is due within so many ms is not left to the leader, which may have looked just before it was known. */
const ownMs = 1500;

export function startDuties({ duties, leads, onError }: DutiesOptions): Duties {
  const never = Number.POSITIVE_INFINITY;
  const plans = duties.map((duty) => ({ duty, at: duty.who === "each" ? 0 : never, went: 0, asked: false }));
  let timer: NodeJS.Timeout | undefined;
  let going: Promise<void> | undefined;
  let stopped = false;

  function plan(): void {
    if (stopped || going) return;
    clearTimeout(timer);
    const next = Math.min(...plans.map(({ at }) => at));
    if (Number.isFinite(next)) timer = setTimeout(start, Math.max(0, next - performance.now()));
  }

  function start(): void {
    going = go().finally(() => {
      going = undefined;
      plan();
    });
  }

  async function go(): Promise<void> {
    for (const one of plans) {
      if (stopped) return;
      if (one.at > performance.now()) continue;
      const { duty, asked } = one;
      const isOurs = duty.who === "each" || leads();
      one.asked = false;
      one.at = isOurs ? performance.now() + duty.every * (0.8 + Math.random() * 0.4) : never;
      if (!isOurs && !asked) continue;
      one.went = performance.now();
      try {
        const again = await duty.run();
        if (typeof again === "number" && (isOurs || again < ownMs))
          one.at = Math.min(one.at, performance.now() + Math.max(again, soonestMs));
        if (!isOurs && Number.isFinite(one.at)) one.asked = true;
      } catch (error) {
        onError(duty.name, error);
      }
    }
  }

  plan();
  return {
    soon(name) {
      const one = plans.find(({ duty }) => duty.name === name)!;
      one.asked = true;
      one.at = Math.min(one.at, one.went + soonestMs);
      plan();
    },
    begin() {
      for (const one of plans) if (one.duty.who === "leader") one.at = 0;
      plan();
    },
    async close() {
      stopped = true;
      clearTimeout(timer);
      await going;
    },
  };
}
