/** OpenAI's two wires: Responses (`POST /v1/responses`) and Chat Completions (`POST /v1/chat/completions`). */
import type { ServedMessage } from "./script.ts";
import type { Wire } from "./wire.ts";
import { asString, type Frame, type Json, message, parseLoosely, type ResolvedReply, sse, textOf } from "./wire.ts";

const event = (type: string, more: Json = {}): string => sse({ type, ...more }, type);
const errorBody = (status: number, text: string): string =>
  JSON.stringify({ error: { message: text, type: `status_${status}`, param: null, code: null } });

export const responses: Wire = {
  parse(body) {
    const messages: ServedMessage[] = [];
    let system = "";
    for (const item of body.input as Json[]) {
      if (item.role === "system" || item.role === "developer") system += textOf(item.content);
      else if (item.role === "user") messages.push(message("user", { text: textOf(item.content) }));
      else if (item.role === "assistant") messages.push(message("assistant", { text: textOf(item.content) }));
      else if (item.type === "function_call") {
        const call = { id: `${item.call_id}`, name: `${item.name}`, input: parseLoosely(`${item.arguments}`) };
        const last = messages.at(-1);
        if (last?.role === "assistant") last.toolCalls.push(call);
        else messages.push(message("assistant", { toolCalls: [call] }));
      } else if (item.type === "function_call_output") {
        const result = { id: `${item.call_id}`, content: textOf(item.output) || asString(item.output) };
        const last = messages.at(-1);
        if (last?.role === "user" && last.toolResults.length > 0) last.toolResults.push(result);
        else messages.push(message("user", { toolResults: [result] }));
      }
    }
    const tools = ((body.tools as Json[] | undefined) ?? []).map((tool) => asString(tool.name));
    return { model: asString(body.model), system, tools, messages };
  },

  frames({ index, model, chunks, reasoning, toolCalls, usage, finishReason }: ResolvedReply) {
    const response = { id: `resp_${index}`, created_at: 1_700_000_000, model };
    const frames: Frame[] = [{ data: event("response.created", { response }) }];
    let output_index = 0;
    const added = (item: Json) => ({ data: event("response.output_item.added", { output_index, item }) });
    const done = (item: Json) => ({ data: event("response.output_item.done", { output_index: output_index++, item }) });
    if (reasoning !== undefined) {
      const item_id = `rs_${index}`;
      const item = { type: "reasoning", id: item_id, summary: [] as Json[] };
      frames.push(added({ ...item, encrypted_content: "" }));
      frames.push({ data: event("response.reasoning_summary_part.added", { item_id, summary_index: 0 }) });
      const delta = { item_id, summary_index: 0, delta: reasoning };
      frames.push({ data: event("response.reasoning_summary_text.delta", delta) });
      frames.push({ data: event("response.reasoning_summary_part.done", { item_id, summary_index: 0 }) });
      const summary = [{ type: "summary_text", text: reasoning }];
      frames.push(done({ ...item, summary, encrypted_content: `encrypted-${index}` }));
    }
    if (chunks.length > 0) {
      const item = { type: "message", id: `item_${index}` };
      frames.push(added(item));
      for (const delta of chunks) {
        frames.push({
          data: event("response.output_text.delta", { item_id: item.id, output_index, delta }),
          text: true,
        });
      }
      frames.push(done(item));
    }
    for (const call of toolCalls) {
      const item = { type: "function_call", id: `fc_${call.id}`, call_id: call.id, name: call.name };
      frames.push(added({ ...item, arguments: "" }));
      const delta = { item_id: item.id, output_index, delta: call.arguments };
      frames.push({ data: event("response.function_call_arguments.delta", delta) });
      frames.push(done({ ...item, arguments: call.arguments, status: "completed" }));
    }
    const end = {
      ...response,
      incomplete_details: finishReason === undefined ? null : { reason: finishReason },
      usage: usage && {
        input_tokens: usage.input,
        input_tokens_details: { cached_tokens: usage.cached },
        output_tokens: usage.output,
        output_tokens_details: { reasoning_tokens: 0 },
      },
    };
    const type = finishReason === undefined ? "response.completed" : "response.incomplete";
    frames.push({ data: event(type, { response: end }) });
    return frames;
  },

  errorFrame: ({ type, message: text }) =>
    event("error", { sequence_number: 9, error: { type, code: type, message: text, param: null } }),
  errorBody,
};

export const chat: Wire = {
  parse(body) {
    const messages: ServedMessage[] = [];
    let system = "";
    for (const item of body.messages as Json[]) {
      if (item.role === "system") system += textOf(item.content);
      else if (item.role === "user") messages.push(message("user", { text: textOf(item.content) }));
      else if (item.role === "assistant") {
        const toolCalls = ((item.tool_calls as Json[] | undefined) ?? []).map((call) => {
          const { name, arguments: input } = call.function as Json;
          return { id: `${call.id}`, name: `${name}`, input: parseLoosely(`${input}`) };
        });
        messages.push(message("assistant", { text: textOf(item.content), toolCalls }));
      } else if (item.role === "tool") {
        const result = { id: `${item.tool_call_id}`, content: textOf(item.content) };
        const last = messages.at(-1);
        if (last?.role === "user" && last.toolResults.length > 0) last.toolResults.push(result);
        else messages.push(message("user", { toolResults: [result] }));
      }
    }
    const tools = ((body.tools as Json[] | undefined) ?? []).map((tool) => asString((tool.function as Json).name));
    return { model: asString(body.model), system, tools, messages };
  },

  frames({ index, model, chunks, reasoning, toolCalls, usage, finishReason }: ResolvedReply) {
    const base = { id: `chatcmpl-${index}`, object: "chat.completion.chunk", created: 1_700_000_000, model };
    const choice = (delta: Json, finish_reason: string | null = null): string =>
      sse({ ...base, choices: [{ index: 0, delta, finish_reason }] });
    const frames: Frame[] = [{ data: choice({ role: "assistant", content: "" }) }];
    if (reasoning !== undefined) frames.push({ data: choice({ reasoning_content: reasoning }) });
    for (const content of chunks) frames.push({ data: choice({ content }), text: true });
    toolCalls.forEach((call, n) => {
      const start = { index: n, id: call.id, type: "function", function: { name: call.name, arguments: "" } };
      frames.push({ data: choice({ tool_calls: [start] }) });
      frames.push({ data: choice({ tool_calls: [{ index: n, function: { arguments: call.arguments } }] }) });
    });
    frames.push({ data: choice({}, finishReason ?? (toolCalls.length > 0 ? "tool_calls" : "stop")) });
    if (usage) {
      const counts = {
        prompt_tokens: usage.input,
        completion_tokens: usage.output,
        total_tokens: usage.input + usage.output,
        prompt_tokens_details: { cached_tokens: usage.cached },
      };
      frames.push({ data: sse({ ...base, choices: [], usage: counts }) });
    }
    frames.push({ data: sse("[DONE]") });
    return frames;
  },

  errorFrame: ({ type, message: text, code }) =>
    sse({ error: { message: text, type, param: null, code: code ?? type } }),
  errorBody,
};
