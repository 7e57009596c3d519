/** What a tool's process writes to standard output and standard error, line by line, each with the call it belongs to, and bounded. */
import type { Readable } from "node:stream";
import { endOfCall } from "./messages.ts";

/** A line that a tool's process wrote. Without a run it belongs to no call: the module wrote it while it was imported, or something in the background. */
export interface ToolLine {
  pid: number;
  stream: "stdout" | "stderr";
  text: string;
  runId?: string;
  tool?: string;
}

export type LineSource = Pick<ToolLine, "runId" | "tool">;

const longestLine = 2000;
const mostLines = 100;

/**
 * Reads to the end and tells every line that is not empty; of each call the first hundred. `calls` grows by one with every call: which one a line
 * belongs to is known by the marks that end them, whenever it is read.
 */
export function readLines(
  stream: Readable,
  calls: readonly LineSource[],
  tell: (text: string, of: LineSource) => void,
): void {
  let rest = "";
  let ended = 0;
  let told = 0;
  const take = (line: string) => {
    if (line === endOfCall) {
      ended++;
      told = 0;
      return;
    }
    if (line.trim() === "" || told > mostLines) return;
    const text = told++ === mostLines ? "(more lines of this call are left out)" : line;
    tell(text.length > longestLine ? `${text.slice(0, longestLine)}…` : text, calls[ended] ?? {});
  };
  stream.setEncoding("utf8");
  stream.on("data", (piece: string) => {
    const lines = (rest + piece).split(/\r?\n/);
    // Of a line without an end no more is kept than is told.
    rest = lines.pop()!.slice(0, longestLine + 1);
    for (const line of lines) take(line);
  });
  stream.on("end", () => take(rest));
  stream.on("error", () => {});
}
