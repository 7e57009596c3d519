/**
 * Puts a streamed reply together: its text, its tool calls, its usage, and the assistant message that goes back into the
 * conversation. The message keeps what a provider wants to see again (thinking and its signatures, item ids) and is plain
 * JSON, the same bytes before and after storing, so that the provider's prompt cache finds its prefix again.
 */
import type { AssistantModelMessage, LanguageModelUsage, Experimental_LanguageModelStreamPart as StreamPart } from "ai";
import type { ModelMessage, ToolCallRequest } from "./model.ts";

type Content = Exclude<AssistantModelMessage["content"], string>;
type ContentPart = Content[number];
type Metadata = Extract<StreamPart, { type: "text-start" }>["providerMetadata"];

export class Reply {
  text = "";
  readonly toolCalls: ToolCallRequest[] = [];
  /** Undefined until the provider's closing event has come. */
  finishReason: string | undefined;
  /** The provider's own word for it. */
  rawFinishReason: string | undefined;
  usage: LanguageModelUsage | undefined;
  /** What the provider had counted before it ended, where it says so at the beginning. */
  inputSoFar: { input: number; cached: number; cacheWrite: number } | undefined;
  /** Something has come. */
  began = false;
  /** The provider's id of the answer: what its support asks for. */
  id: string | undefined;
  readonly #content: ContentPart[] = [];
  readonly #open = new Map<string, { text: string; providerOptions?: Metadata }>();
  readonly #conversation: ModelMessage[];
  #usedIds: Set<string> | undefined;

  /** `conversation`: what the reply answers; its tool call ids are not given a second time. */
  constructor(conversation: ModelMessage[]) {
    this.#conversation = conversation;
  }

  /** Takes the next part of the stream; returns the text in it, "" mostly. Error parts are the caller's business. */
  add(part: StreamPart): string {
    if (part.type !== "model-call-start") this.began = true;
    switch (part.type) {
      case "text-start":
      case "reasoning-start": {
        const type = part.type === "text-start" ? "text" : "reasoning";
        const open = { type, text: "", ...options(part.providerMetadata) } as const;
        this.#content.push(open);
        this.#open.set(`${type} ${part.id}`, open);
        return "";
      }
      case "text-delta":
        this.#extend(`text ${part.id}`, part.providerMetadata, part.text);
        this.text += part.text;
        return part.text;
      case "text-end":
        this.#extend(`text ${part.id}`, part.providerMetadata);
        return "";
      case "reasoning-delta":
        this.#extend(`reasoning ${part.id}`, part.providerMetadata, part.text);
        return "";
      case "reasoning-end":
        this.#extend(`reasoning ${part.id}`, part.providerMetadata);
        return "";
      case "file":
      case "reasoning-file": {
        const { base64: data, mediaType } = part.file;
        this.#content.push({ type: part.type, data, mediaType, ...options(part.providerMetadata) });
        return "";
      }
      case "custom":
        // Bookkeeping of the adapter, which it drops when it comes back.
        if (part.kind === "anthropic.message_start") {
          this.inputSoFar = countedAtStart(part.providerMetadata?.anthropic?.usage);
          return "";
        }
        this.#content.push({ type: "custom", kind: part.kind, ...options(part.providerMetadata) });
        return "";
      case "tool-call":
        this.#call(part);
        return "";
      case "model-call-response-metadata":
        this.id ??= part.id;
        return "";
      case "model-call-end":
        this.finishReason = part.finishReason;
        this.rawFinishReason = part.rawFinishReason;
        this.usage = part.usage;
        return "";
      default:
        return "";
    }
  }

  /** The assistant's message, none when there is nothing to say again. */
  messages(): ModelMessage[] {
    // An empty text without metadata is refused by providers when it comes back.
    const content = this.#content.filter((part) => part.type !== "text" || part.text !== "" || part.providerOptions);
    if (content.length === 0) return [];
    return JSON.parse(JSON.stringify([{ role: "assistant", content }])) as ModelMessage[];
  }

  #extend(key: string, metadata: Metadata, text = ""): void {
    const open = this.#open.get(key);
    if (!open) return;
    open.text += text;
    if (metadata) open.providerOptions = metadata;
  }

  #call(part: Extract<StreamPart, { type: "tool-call" }>): void {
    const { toolName, providerMetadata } = part;
    const toolCallId = this.#unusedId(part.toolCallId);
    const invalid = part.invalid === true ? whyInvalid(part.error, toolName) : undefined;
    // Providers want an object back, whatever the model wrote.
    const isObject = typeof part.input === "object" && part.input !== null;
    const none = part.input === null || part.input === undefined;
    const input: unknown = none || (invalid !== undefined && !isObject) ? {} : part.input;
    this.#content.push({ type: "tool-call", toolCallId, toolName, input, ...options(providerMetadata) });
    // Small models write `null` for a tool without parameters.
    const call = { id: toolCallId, name: toolName, input: none ? {} : part.input };
    this.toolCalls.push(invalid === undefined ? call : { ...call, invalid });
  }

  /** Small servers send empty ids, or count from 0 in every reply; results could not be told apart then. */
  #unusedId(wanted: string): string {
    this.#usedIds ??= new Set(callIds(this.#conversation));
    let id = wanted;
    for (let n = this.#usedIds.size; id === "" || this.#usedIds.has(id); n++) id = `${wanted || "call"}_${n}`;
    this.#usedIds.add(id);
    return id;
  }
}

/** Every tool call in a conversation, by its id. */
function callIds(conversation: ModelMessage[]): string[] {
  return conversation.flatMap(({ role, content }) =>
    role === "assistant" && typeof content !== "string"
      ? content.flatMap((part) => (part.type === "tool-call" ? [part.toolCallId] : []))
      : [],
  );
}

function countedAtStart(usage: unknown): Reply["inputSoFar"] {
  const { input_tokens, cache_read_input_tokens, cache_creation_input_tokens } = (usage ?? {}) as Record<
    string,
    unknown
  >;
  const [plain, cached, cacheWrite] = [
    input_tokens,
    cache_read_input_tokens ?? 0,
    cache_creation_input_tokens ?? 0,
  ].map(tokenCount);
  if (plain === undefined || cached === undefined || cacheWrite === undefined) return undefined;
  return { input: plain + cached + cacheWrite, cached, cacheWrite };
}

/** No call has more tokens. */
const mostTokens = 1e9;

/** A count as a provider gives it, made whole; undefined when it is none. */
export function tokenCount(value: unknown): number | undefined {
  return typeof value === "number" && value >= 0 && value <= mostTokens ? Math.ceil(value) : undefined;
}

const options = (metadata: Metadata) => (metadata ? { providerOptions: metadata } : {});

function whyInvalid(error: unknown, toolName: string): string {
  const { name = "" } = (error ?? {}) as { name?: string };
  return name.includes("NoSuchTool")
    ? `There is no tool ${toolName} here.`
    : `The arguments of ${toolName} are not valid JSON. Call it again with valid JSON.`;
}
