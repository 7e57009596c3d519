/** A client of server-sent events over a plain HTTP connection, as patient or as impatient as a test wants it. */
import { type ClientRequest, get, type IncomingMessage } from "node:http";

export interface SseEvent {
  event: string;
  id?: string;
  data: string;
}

export interface SseStream {
  status: number;
  headers: IncomingMessage["headers"];
  /** All events so far. */
  events: SseEvent[];
  comments: string[];
  /** Resolves with the first event, past ones too, that `matches`. Rejects when the stream ends without one. */
  next(matches: (event: SseEvent) => boolean): Promise<SseEvent>;
  /** Resolves when the server has ended the stream. */
  ended: Promise<void>;
  /** Stops and goes on reading. */
  pause(): void;
  resume(): void;
  /** Hangs up. */
  close(): void;
}

export async function openStream(url: string, headers: Record<string, string>): Promise<SseStream> {
  const [request, response] = await new Promise<[ClientRequest, IncomingMessage]>((resolve, reject) => {
    const request = get(url, { headers: { accept: "text/event-stream", ...headers }, agent: false }, (response) =>
      resolve([request, response]),
    );
    request.on("error", reject);
  });
  const events: SseEvent[] = [];
  const comments: string[] = [];
  const looks = new Set<() => void>();
  let isOver = false;
  let buffered = "";
  response.setEncoding("utf8");
  response.on("data", (text: string) => {
    buffered += text;
    const blocks = buffered.split("\n\n");
    buffered = blocks.pop()!;
    for (const block of blocks) {
      const fields: Record<string, string> = {};
      for (const line of block.split("\n")) {
        const colon = line.indexOf(":");
        if (colon === 0) comments.push(line.slice(1).trim());
        else fields[line.slice(0, colon)] = line.slice(colon + 1).replace(/^ /, "");
      }
      if (fields.data !== undefined)
        events.push({
          event: fields.event ?? "message",
          data: fields.data,
          ...(fields.id !== undefined && { id: fields.id }),
        });
    }
    for (const look of [...looks]) look();
  });
  const ended = new Promise<void>((resolve) => {
    const over = () => {
      isOver = true;
      for (const look of [...looks]) look();
      resolve();
    };
    response.once("end", over);
    response.once("close", over);
    response.on("error", over);
  });
  return {
    status: response.statusCode!,
    headers: response.headers,
    events,
    comments,
    ended,
    next: (matches) =>
      new Promise((resolve, reject) => {
        const look = () => {
          const found = events.find(matches);
          if (!found && !isOver) return;
          looks.delete(look);
          if (found) resolve(found);
          else reject(new Error(`the stream ended without it: ${JSON.stringify(events)}`));
        };
        looks.add(look);
        look();
      }),
    pause: () => response.pause(),
    resume: () => response.resume(),
    close: () => request.destroy(),
  };
}
