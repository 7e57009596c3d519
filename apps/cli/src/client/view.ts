/** A run's log as it happens, for a person: one line for each event, the model's text as it streams. Works without a terminal too. */
import type { EventData, LogEvent } from "@drover/harness";
import { duration, money, paint, printable } from "../text.ts";
import { callLine, linesOf } from "./event-lines.ts";
import { type Delta, type Followed, isFinalEvent } from "./follow.ts";
import { ReplyText } from "./reply-text.ts";

const gutter = 20;
const indent = " ".repeat(gutter);
/** The first pieces of a reply are held back so long, ms: a short reply is then shown at once, and whole. */
const holdMs = 200;

export class RunView {
  readonly #write: (text: string) => void;
  readonly #taskId: string | undefined;
  readonly #text = new ReplyText();
  #timer: NodeJS.Timeout | undefined;
  #startedAt: number | undefined;
  /** Time of the last event by the run's own clock, and when it came here. */
  #last = { at: 0, here: performance.now() };
  /** Owner of the run as the log says so far; pieces of a later one wait for the log. */
  #epoch = 0;
  /** Tool calls without a result: the next reply begins after them. */
  #open = 0;
  #waiting: Delta[] = [];
  #cost: number | null = 0;
  #tokens = 0;

  /** `taskId`: whose log it is, for the commands that are shown with it. */
  constructor(write: (text: string) => void, taskId?: string) {
    this.#write = write;
    this.#taskId = taskId;
  }

  show(followed: Followed): void {
    if ("delta" in followed) this.#delta(followed.delta);
    else this.#event(followed.event);
  }

  /** A line between the events, such as trouble with the connection. */
  note(text: string): void {
    this.#endLine();
    this.#write(`${indent}${paint("yellow", text)}\n`);
  }

  /** Ends a line that streams, before somebody else writes. Nothing is shown afterwards. */
  close(): void {
    clearTimeout(this.#timer);
    this.#endLine();
  }

  #delta(delta: Delta): void {
    if (delta.epoch < this.#epoch) return;
    if (delta.epoch > this.#epoch) {
      this.#waiting.push(delta);
      return;
    }
    this.#text.add(delta);
    if (this.#text.isShown) this.#stream();
    else this.#timer ??= setTimeout(() => this.#stream(), holdMs);
  }

  /** Prints what has come of the reply, unless something is to be printed before it. */
  #stream(): void {
    this.#timer = undefined;
    if (this.#open > 0) return;
    const isFirst = !this.#text.isShown;
    const text = this.#text.take();
    if (text === "") return;
    if (isFirst) this.#head(this.#last.at + (performance.now() - this.#last.here), "model");
    this.#write(block(text));
  }

  #event(event: LogEvent): void {
    const at = Date.parse(event.at);
    this.#startedAt ??= at;
    this.#last = { at, here: performance.now() };
    switch (event.type) {
      case "model.partial":
      case "tool.intent":
        return;
      case "model.call":
        this.#reply(at, event.data);
        return;
      case "run.started":
        this.#endLine();
        this.#text.drop();
        break;
      case "action.called":
        this.#open = 1;
        break;
      case "tool.result":
        this.#open = Math.max(0, this.#open - 1);
        break;
      default:
        this.#endLine();
    }
    const [name, text, ...more] = linesOf(event, this.#taskId);
    this.#head(at, name);
    this.#write(`${text}${this.#totals(event)}\n`);
    for (const line of more) this.#write(`${indent}${line}\n`);
    if (event.type === "run.started") {
      this.#epoch = event.data.epoch;
      for (const delta of this.#waiting.splice(0)) this.#delta(delta);
    } else if (event.type === "tool.result" && this.#timer === undefined) this.#stream();
  }

  #reply(at: number, { iteration, text, tool_calls, usage, cost_usd }: EventData["model.call"]): void {
    const wasShown = this.#text.isShown;
    const { rest, again } = this.#text.end(iteration, text);
    if (again) this.#write("\n");
    if ((again || !wasShown) && rest !== "") this.#head(at, "model");
    if (wasShown || rest !== "") this.#write(`${block(rest)}\n`);
    for (const call of tool_calls) {
      this.#head(at, "tool");
      this.#write(`${callLine(call)}\n`);
    }
    this.#open = tool_calls.length;
    this.#tokens += usage.input + usage.output;
    this.#cost = cost_usd === null || this.#cost === null ? null : this.#cost + cost_usd;
  }

  #totals(event: LogEvent): string {
    if (!isFinalEvent(event) || this.#startedAt === undefined) return "";
    const took = duration(Date.parse(event.at) - this.#startedAt);
    return paint("dim", `  ${took}, ${money(this.#cost)}, ${this.#tokens} tokens`);
  }

  #head(at: number, name: string): void {
    const seconds = ((at - (this.#startedAt ?? at)) / 1000).toFixed(2);
    this.#write(`${paint("dim", `${seconds.padStart(7)} s`)}  ${name.padEnd(gutter - 11)}`);
  }

  /** A reply that was cut: its line ends where it is. */
  #endLine(): void {
    if (this.#text.isShown) this.#write("\n");
    this.#text.drop();
  }
}

const block = (text: string): string => printable(text).replaceAll("\n", `\n${indent}`);
