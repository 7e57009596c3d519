/**
 * The conversation as providers accept it. The log keeps what was said, made-up tool names and odd ids included; what is sent is derived from it here, each
 * time anew and always the same, so that no history is poisoned: not for a retry, and not for another provider.
 */
import type { ModelMessage } from "./model.ts";

/** What every provider takes as the name of a tool, and as the id of a call. */
const accepted = /^[a-zA-Z0-9_-]{1,64}$/;
const mostCharacters = 64;

export function acceptable(messages: ModelMessage[]): ModelMessage[] {
  const ids = new Ids();
  const whole: ModelMessage[] = [];
  for (const message of messages) {
    if (typeof message.content === "string") {
      if (message.role !== "assistant" || message.content.trim() !== "") whole.push(message);
      continue;
    }
    const content = message.content.flatMap((part): unknown[] => {
      switch (part.type) {
        case "text":
          // Providers refuse blank texts; one that carries a provider's own data is that provider's.
          return part.text.trim() !== "" || part.providerOptions ? [part] : [];
        case "tool-call": {
          const input = typeof part.input === "object" && part.input !== null ? part.input : {};
          return [{ ...part, toolCallId: ids.of(part.toolCallId), toolName: tame(part.toolName, "tool"), input }];
        }
        case "tool-result":
          return [{ ...part, toolCallId: ids.of(part.toolCallId), toolName: tame(part.toolName, "tool") }];
        default:
          return [part];
      }
    });
    if (content.length > 0) whole.push({ ...message, content } as ModelMessage);
  }
  return whole;
}

/** The like of it that is accepted. That a made-up name gets that of a real tool does no harm: its call has failed. */
const tame = (name: string, empty: string): string =>
  accepted.test(name) ? name : name.slice(0, mostCharacters).replace(/[^a-zA-Z0-9_-]/g, "_") || empty;

/** Ids made acceptable: the same for the same one, and different for different ones. */
class Ids {
  readonly #made = new Map<string, string>();
  readonly #taken = new Set<string>();

  of(id: string): string {
    const known = this.#made.get(id);
    if (known !== undefined) return known;
    const plain = tame(id, "call");
    let made = plain;
    for (let n = 2; this.#taken.has(made); n++) made = `${plain.slice(0, mostCharacters - 8)}_${n}`;
    this.#taken.add(made);
    this.#made.set(id, made);
    return made;
  }
}
