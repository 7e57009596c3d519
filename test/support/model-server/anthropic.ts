/** Anthropic's Messages API as a stream (`POST /v1/messages`). */
import { asString, type Frame, type Json, message, type ResolvedReply, sse, textOf, type Wire } from "./wire.ts";

const event = (type: string, more: Json = {}): string => sse({ type, ...more }, type);

export const anthropic: Wire = {
  parse(body) {
    return {
      model: asString(body.model),
      system: textOf(body.system),
      tools: ((body.tools as Json[] | undefined) ?? []).map((tool) => asString(tool.name)),
      messages: (body.messages as Json[]).flatMap(({ role, content }) => {
        const parts = typeof content === "string" ? [{ type: "text", text: content }] : (content as Json[]);
        const of = (type: string) => parts.filter((part) => part.type === type);
        if (role === "assistant") {
          const toolCalls = of("tool_use").map((p) => ({ id: `${p.id}`, name: `${p.name}`, input: p.input }));
          return [message("assistant", { text: textOf(of("text")), toolCalls })];
        }
        const toolResults = of("tool_result").map((p) => ({ id: `${p.tool_use_id}`, content: textOf(p.content) }));
        const results = toolResults.length > 0 ? [message("user", { toolResults })] : [];
        return of("text").length > 0 ? [...results, message("user", { text: textOf(of("text")) })] : results;
      }),
    };
  },

  frames({ index, model, chunks, reasoning, toolCalls, usage, finishReason }: ResolvedReply) {
    const frames: Frame[] = [];
    const input = usage && {
      input_tokens: usage.input - usage.cached - usage.cacheWrite,
      cache_read_input_tokens: usage.cached,
      cache_creation_input_tokens: usage.cacheWrite,
    };
    const base = { id: `msg_${index}`, type: "message", role: "assistant", model, content: [], stop_reason: null };
    // The adapter insists on a usage; a reply "without" one reports zeros.
    const first = { ...(input ?? { input_tokens: 0 }), output_tokens: usage ? 1 : 0 };
    frames.push({ data: event("message_start", { message: { ...base, stop_sequence: null, usage: first } }) });
    let block = 0;
    const open = (content: Json) => ({ data: event("content_block_start", { index: block, content_block: content }) });
    const delta = (content: Json) => ({ data: event("content_block_delta", { index: block, delta: content }) });
    const close = () => ({ data: event("content_block_stop", { index: block++ }) });
    if (reasoning !== undefined) {
      frames.push(open({ type: "thinking", thinking: "", signature: "" }));
      frames.push(delta({ type: "thinking_delta", thinking: reasoning }));
      frames.push(delta({ type: "signature_delta", signature: `signature-${index}` }), close());
    }
    if (chunks.length > 0) {
      frames.push(open({ type: "text", text: "" }));
      for (const text of chunks) frames.push({ ...delta({ type: "text_delta", text }), text: true });
      frames.push(close());
    }
    for (const call of toolCalls) {
      frames.push(open({ type: "tool_use", id: call.id, name: call.name, input: {} }));
      frames.push(delta({ type: "input_json_delta", partial_json: call.arguments }), close());
    }
    const reason = finishReason ?? (toolCalls.length > 0 ? "tool_use" : "end_turn");
    const end = { delta: { stop_reason: reason, stop_sequence: null }, usage: { output_tokens: usage?.output ?? 0 } };
    frames.push({ data: event("message_delta", end) }, { data: event("message_stop") });
    return frames;
  },

  errorFrame: ({ type, message }) => event("error", { error: { type, message } }),
  errorBody: (status, text) => JSON.stringify({ type: "error", error: { type: `status_${status}`, message: text } }),
};
