/** The policy that looks for text which tries to give the model orders. */
import { z } from "zod";
import { phrases } from "./injection-phrases.ts";
import { mapTexts } from "./json-texts.ts";
import { policyName, readOptions, stages } from "./options.ts";
import { definePolicy, type Policy } from "./policy.ts";
import { divider, type Reading, readings } from "./readings.ts";
import { count } from "./screen.ts";

const schema = z.strictObject({
  name: policyName.default("prompt-injection"),
  action: z.enum(["flag", "ask", "block"]).default("flag"),
  stages: stages.default(["input", "result"]),
});

export type PromptInjectionOptions = z.input<typeof schema>;

/** Longer than the tag sequence of any flag emoji (UTS #51), than any row of variation selectors that means something. */
const hidden = /[\u{e0020}-\u{e007e}]{10}|[\ufe00-\ufe0f\u{e0100}-\u{e01ef}]{8}/u;

/**
 * Finds the well-known English phrases of prompt injection ("ignore previous instructions", "override the system prompt", "system
 * override", "you are now …", "new instructions:", "reveal your prompt"), chat-template tokens, faked role headings and text hidden in
 * invisible characters: also in look-alike letters, with invisible characters between, spaced out letter by letter, and in base64 or
 * hexadecimal up to twice. Asked where text comes in (`input`, `result`); what the model writes into arguments has come in before.
 * Throws `ConfigError`.
 *
 * It is a tripwire, no wall. It does not understand text: other words, other languages, misspellings, pictures, other encodings, or
 * an order spread over several fields pass; and a text that only quotes such a phrase is found too. Rely on permissions, approvals
 * and the rule of two for what must not happen.
 */
export function promptInjection(options: PromptInjectionOptions = {}): Policy {
  const { name, action, stages } = readOptions(schema, options, "promptInjection(options)");
  return definePolicy({
    name,
    stages,
    check(value) {
      const texts: string[] = [];
      mapTexts(value, (text) => {
        texts.push(text);
        return text;
      });
      const all = texts.join(divider);
      const read = readings(all);
      const parts = [
        ...look(read.filter(({ decoded }) => !decoded)),
        ...(hidden.test(all) ? ["text in invisible characters"] : []),
        ...look(read.filter(({ decoded }) => decoded)).map((part) => `${part} in base64 or hexadecimal`),
      ];
      return parts.length === 0 ? { action: "allow" } : { action, reason: parts.join(", ") };
    },
  });
}

function look(read: Reading[]): string[] {
  return phrases.flatMap(({ one, many, spaced, glued }) => {
    const numbers = read.map((reading) => {
      const pattern = reading.glued ? glued : spaced;
      return pattern === undefined ? 0 : [...reading.text.matchAll(pattern)].length;
    });
    return count(Math.max(0, ...numbers), one, many);
  });
}
