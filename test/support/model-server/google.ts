/** Google's Generative Language API (`POST /v1beta/models/<model>:streamGenerateContent?alt=sse`). */
import {
  asString,
  type Frame,
  type Json,
  message,
  parseLoosely,
  type ResolvedReply,
  sse,
  textOf,
  type Wire,
} from "./wire.ts";

const statusNames: Record<number, string> = {
  400: "INVALID_ARGUMENT",
  401: "UNAUTHENTICATED",
  403: "PERMISSION_DENIED",
  404: "NOT_FOUND",
  429: "RESOURCE_EXHAUSTED",
  503: "UNAVAILABLE",
};

export const google: Wire = {
  parse(body, path) {
    const tools = ((body.tools as Json[] | undefined) ?? []).flatMap((tool) =>
      ((tool.functionDeclarations as Json[] | undefined) ?? []).map((declared) => asString(declared.name)),
    );
    return {
      model: decodeURIComponent(/models\/([^:]+):/.exec(path)?.[1] ?? ""),
      system: textOf((body.systemInstruction as Json | undefined)?.parts),
      tools,
      messages: (body.contents as Json[]).flatMap(({ role, parts: raw }) => {
        const parts = raw as Json[];
        const text = textOf(parts.filter((part) => part.thought !== true));
        if (role === "model") {
          const toolCalls = parts.flatMap(({ functionCall }, n) => {
            if (functionCall === undefined) return [];
            const { id, name, args } = functionCall as Json;
            return [{ id: `${id ?? `${name}_${n}`}`, name: `${name}`, input: args }];
          });
          return [message("assistant", { text, toolCalls })];
        }
        const toolResults = parts.flatMap(({ functionResponse }) => {
          if (functionResponse === undefined) return [];
          const { id, name, response } = functionResponse as Json;
          const content = (response as Json)?.content ?? response;
          return [{ id: `${id ?? name}`, content: asString(content) }];
        });
        const results = toolResults.length > 0 ? [message("user", { toolResults })] : [];
        return text === "" ? results : [...results, message("user", { text })];
      }),
    };
  },

  frames({ chunks, reasoning, toolCalls, usage, finishReason, index, model }: ResolvedReply) {
    const usageMetadata = usage && {
      promptTokenCount: usage.input,
      candidatesTokenCount: usage.output,
      totalTokenCount: usage.input + usage.output,
      cachedContentTokenCount: usage.cached,
    };
    const chunk = (parts: Json[], more: Json = {}): string =>
      sse({
        candidates: [{ content: { parts, role: "model" }, index: 0, ...more }],
        ...(usageMetadata ? { usageMetadata } : {}),
        modelVersion: model,
        responseId: `g_${index}`,
      });
    const frames: Frame[] = [];
    if (reasoning !== undefined) frames.push({ data: chunk([{ text: reasoning, thought: true }]) });
    for (const text of chunks) frames.push({ data: chunk([{ text }]), text: true });
    toolCalls.forEach((call, n) => {
      const functionCall = { id: call.id, name: call.name, args: parseLoosely(call.arguments) };
      const signature = reasoning !== undefined && n === 0 ? { thoughtSignature: `signature-${index}` } : {};
      frames.push({ data: chunk([{ functionCall, ...signature }]) });
    });
    frames.push({ data: chunk([{ text: "" }], { finishReason: finishReason ?? "STOP" }) });
    return frames;
  },

  errorFrame: ({ type, message: text, code }) => sse({ error: { code: code ?? 503, message: text, status: type } }),
  errorBody: (status, text) =>
    JSON.stringify({ error: { code: status, message: text, status: statusNames[status] ?? "INTERNAL", details: [] } }),
};
