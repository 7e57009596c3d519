/** Reads an answer's body: decoded, and no further than its limit, so that a small bomb cannot become a large buffer. */
import { pipeline, type Readable } from "node:stream";
import { type BrotliDecompress, createBrotliDecompress, createGunzip, createInflate, type Gunzip } from "node:zlib";

/** What a request says it understands. */
export const acceptEncoding = "gzip, br";

type Decoder = Gunzip | BrotliDecompress;
const decoders: Record<string, () => Decoder> = {
  gzip: createGunzip,
  "x-gzip": createGunzip,
  deflate: createInflate,
  br: createBrotliDecompress,
};

/**
 * At most `maxBytes` decoded bytes; `truncated` when there were more, and then the connection is closed.
 * Throws what the stream or the decoder throws, and an error with code `ENCODING` for a coding that is not known or several.
 */
export async function readBody(
  body: Readable,
  options: { encoding: string | undefined; maxBytes: number },
): Promise<{ body: Buffer; truncated: boolean }> {
  // Destroying a body early makes it emit an error that nobody needs.
  body.on("error", () => {});
  const chunks: Buffer[] = [];
  let size = 0;
  let truncated = false;
  let decoder: Decoder | undefined;
  try {
    decoder = decoderFor(options.encoding);
    // Whoever reads the decoder sees the errors of both; this callback has nothing to add.
    const stream: Readable = decoder ? pipeline(body, decoder, () => {}) : body;
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      const room = options.maxBytes - size;
      truncated = chunk.length > room;
      chunks.push(truncated ? chunk.subarray(0, room) : chunk);
      size += Math.min(chunk.length, room);
      if (truncated) break;
    }
  } catch (error) {
    // Answers without a body (to HEAD, 304, an empty 200) may name the coding that a body would have had.
    const isEmpty = decoder?.bytesWritten === 0 && (error as NodeJS.ErrnoException).code === "Z_BUF_ERROR";
    if (!isEmpty) throw error;
  } finally {
    body.destroy();
  }
  return { body: Buffer.concat(chunks, size), truncated };
}

function decoderFor(encoding: string | undefined): Decoder | undefined {
  const coding = encoding?.trim().toLowerCase() ?? "";
  if (coding === "" || coding === "identity") return undefined;
  if (!Object.hasOwn(decoders, coding))
    throw Object.assign(new Error("unknown content-encoding"), { code: "ENCODING" });
  return decoders[coding]?.();
}
