/**
 * Clients and people: they submit what the plan says, cancel, decide what they are asked, and never give up on a request that carries an
 * idempotency key. Their books say what each was promised.
 */
import { setTimeout as delay } from "node:timers/promises";
import { setBudget } from "@drover/runs";
import type { Ledger } from "./ledger.ts";
import type { Plan, Submission } from "./plan.ts";
import type { Receivers } from "./receivers.ts";
import { callName, isRejected, queryOf } from "./scenario.ts";
import { apiKey, type Stage, webhookSecret } from "./stage.ts";

export interface Promised {
  submission: Submission;
  /** Ids that 202s named: `run_…`, or `bat_…` of a batch. */
  accepted: Set<string>;
  /** Answers that were no 202, and requests without an answer. */
  refused: number;
  /** What the cancel was told; null: it was not asked for, or nobody answered. */
  cancel: { status: string; requested: boolean } | null;
}

export interface ClientBooks {
  promised: Promised[];
  /** Answers that no client should get. */
  wrong: string[];
  answers: Map<string, number>;
  decisions: number;
}

export const newBooks = (): ClientBooks => ({ promised: [], wrong: [], answers: new Map(), decisions: 0 });

const patienceMs = 5000;
const callbackEvents = ["query.completed", "query.partial", "query.failed", "query.cancelled", "batch.completed"];

/** People look so often. */
const lookMs = 500;
/** The pause before the n-th try again (from 0), ms: no outage ends under a storm of clients. */
const againMs = (tries: number) => Math.min(400 * 2 ** tries, 6000) * (0.5 + Math.random() / 2);

interface Answer {
  /** 0: the connection was refused, cut, or silent for too long. */
  status: number;
  body: Record<string, unknown>;
}

export class Clients {
  readonly #stage: Stage;
  readonly #receivers: Receivers;
  readonly #ledger: Ledger;
  readonly #books: ClientBooks;
  readonly #signal: AbortSignal;
  #turn = 0;

  constructor(options: {
    stage: Stage;
    receivers: Receivers;
    ledger: Ledger;
    books: ClientBooks;
    signal: AbortSignal;
  }) {
    this.#stage = options.stage;
    this.#receivers = options.receivers;
    this.#ledger = options.ledger;
    this.#books = options.books;
    this.#signal = options.signal;
  }

  /** Before anything is broken: endpoints for every message, and a cap of money, so that every model call sets some aside. */
  async prepare(): Promise<void> {
    await setBudget(this.#stage.pool, "default", { month: 1e15 }, "key_admin");
    this.#receivers.secrets.callback = webhookSecret;
    for (const kind of ["steady", "slow", "failing"] as const) {
      const { status, body } = await this.#ask("POST", "/webhooks", { url: `${this.#receivers.url(kind)}/${kind}` });
      if (status !== 201) throw new Error(`no webhook endpoint could be made: ${status} ${JSON.stringify(body)}`);
      this.#receivers.secrets[kind] = String(body.secret);
    }
  }

  /** Resolves when everything of the plan is submitted, accepted where it must be, and cancelled where it is to be. */
  async submit({ submissions }: Plan): Promise<void> {
    const startedAt = performance.now();
    await Promise.all(
      submissions.map(async (submission) => {
        await this.#pause(submission.atMs - (performance.now() - startedAt));
        if (this.#signal.aborted) return;
        const promised: Promised = { submission, accepted: new Set(), refused: 0, cancel: null };
        this.#books.promised.push(promised);
        const sent = [this.#send(promised, 0)];
        if (submission.twice) sent.push(this.#send(promised, 1));
        await Promise.all(sent);
        if (submission.cancelAfterMs !== null) {
          await this.#pause(submission.cancelAfterMs);
          await this.#cancel(promised);
        }
        if (submission.twice) await this.#send(promised, 0);
      }),
    );
  }

  /** People answer what they are asked, by what they can see of the world, until `done`. */
  async decide(done: AbortSignal): Promise<void> {
    while (!done.aborted) {
      const { status, body } = await this.#ask("GET", "/approvals?status=pending&limit=200").catch(nobody);
      if (status === 200) for (const question of body.data as Question[]) await this.#answer(question);
      await delay(lookMs, undefined, { signal: done }).catch(() => {});
    }
  }

  async #answer({ id, subject, input }: Question): Promise<void> {
    const { label, turn, index } = input;
    const name = callName(label, turn, index);
    const approved = isRejected(label, turn) ? { decision: "reject", note: "not today" } : { decision: "approve" };
    // Whoever is asked about an uncertain call goes and looks.
    const found = this.#ledger.effects.has(name) ? { decision: "done", result: `did ${name}` } : { decision: "retry" };
    const { status, body } = await this.#ask("POST", `/approvals/${id}`, subject === "call" ? approved : found).catch(
      nobody,
    );
    if (status === 200) this.#books.decisions++;
    else if (status !== 409 && status !== 503 && status !== 0)
      this.#books.wrong.push(`deciding ${id}: ${status} ${JSON.stringify(body)}`);
  }

  async #send(promised: Promised, api: number): Promise<void> {
    const { submission } = promised;
    const { items, label, keyed } = submission;
    const more = {
      ...(submission.callback && { callback_url: `${this.#receivers.url("callback")}/${label}` }),
      ...(submission.priority > 0 && { priority: submission.priority }),
      ...(submission.delaySeconds > 0 && { delay_seconds: submission.delaySeconds }),
    };
    const queries = items.map((item) => ({ query: queryOf(item), metadata: { label: item.label } }));
    const batch = items.length > 1;
    // A batch's callback hears of its items where it asks to.
    const events = submission.callback ? { events: callbackEvents } : {};
    const [path, body] = batch
      ? ["/query/batch", { queries, ...more, ...events }]
      : ["/query", { ...queries[0]!, ...more }];
    for (let tries = 0; ; tries++) {
      const headers: Record<string, string> = keyed ? { "idempotency-key": `key-${label}` } : {};
      const answer = await this.#ask("POST", path, body, { headers, api: api++ }).catch(nobody);
      if (answer.status === 202) {
        promised.accepted.add(String(batch ? answer.body.batch_id : answer.body.task_id));
        return;
      }
      promised.refused++;
      if (answer.status !== 0 && answer.status !== 503) {
        this.#books.wrong.push(`submitting ${label}: ${answer.status} ${JSON.stringify(answer.body)}`);
        return;
      }
      if (!keyed || this.#signal.aborted) return;
      await this.#pause(againMs(tries));
    }
  }

  async #cancel(promised: Promised): Promise<void> {
    const [id] = promised.accepted;
    if (id === undefined) return;
    const path = id.startsWith("bat_") ? `/query/batch/${id}/cancel` : `/query/${id}/cancel`;
    for (let times = 0; times < 20 && !this.#signal.aborted; times++) {
      const { status, body } = await this.#ask("POST", path).catch(nobody);
      if (status === 200 || status === 202) {
        promised.cancel = { status: String(body.status), requested: body.cancel_requested === true };
        return;
      }
      if (status !== 0 && status !== 503) {
        this.#books.wrong.push(`cancelling ${id}: ${status} ${JSON.stringify(body)}`);
        return;
      }
      await this.#pause(againMs(times));
    }
  }

  async #ask(
    method: string,
    path: string,
    body?: unknown,
    options: { headers?: Record<string, string>; api?: number } = {},
  ): Promise<Answer> {
    const urls = this.#stage.apiUrls;
    const url = urls[(options.api ?? this.#turn++) % urls.length]!;
    const answer = await fetch(`${url}${path}`, {
      method,
      headers: {
        authorization: `Bearer ${apiKey}`,
        ...(body !== undefined && { "content-type": "application/json" }),
        ...options.headers,
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(patienceMs),
    });
    const kind = `${method} ${path.replace(/(run|bat|apr)_[^/]+/, ":id").replace(/\?.*/, "")} ${answer.status}`;
    this.#books.answers.set(kind, (this.#books.answers.get(kind) ?? 0) + 1);
    return { status: answer.status, body: (await answer.json()) as Record<string, unknown> };
  }

  async #pause(ms: number): Promise<void> {
    await delay(Math.max(0, ms), undefined, { signal: this.#signal }).catch(() => {});
  }
}

interface Question {
  id: string;
  subject: string;
  input: { label: string; turn: number; index: number };
}

const nobody = (): Answer => ({ status: 0, body: {} });
