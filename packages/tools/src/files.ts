/** `file_read` and `file_list`: the text files of a run's workspace. */
import { lstat, opendir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { defineTool } from "@drover/harness";
import { z } from "zod";
import { exists, openInside, PathError, toPathError } from "./workspace.ts";

const mostBytes = 256 * 1024;
const defaultBytes = 32 * 1024;
const mostEntries = 1000;

export const fileReadTool = defineTool({
  name: "file_read",
  description:
    "Reads a text file (UTF-8) of the workspace, a part at a time. `truncated` says that there is more: read on with `offset` " +
    "set to `next_offset`. Binary files are refused.",
  input: z.object({
    path: z
      .string()
      .min(1)
      .max(4096)
      .describe("path of the file, relative to the workspace, for example `notes/a.txt`"),
    offset: z.number().int().min(0).default(0).describe("byte to start at (0)"),
    max_bytes: z
      .number()
      .int()
      .min(4)
      .max(mostBytes)
      .default(defaultBytes)
      .describe(`bytes to read at most (${defaultBytes}, up to ${mostBytes})`),
  }),
  permission: "read",
  effect: "pure",
  // A file may say anything, whoever has put it there.
  untrusted: true,
  // JSON writes a byte as six characters at worst.
  maxOutputBytes: 6 * mostBytes + 8192,
  async execute({ path, offset, max_bytes: maxBytes }, { workspace }) {
    const { handle } = await openInside(workspace, path, "file");
    try {
      const { size } = await handle.stat();
      const buffer = Buffer.alloc(Math.max(0, Math.min(maxBytes, size - offset)));
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, offset);
      const end = offset + bytesRead;
      const { text, cut } = decode(buffer.subarray(0, bytesRead), path, end < size);
      const truncated = end - cut < size;
      return { path, text, size_bytes: size, truncated, ...(truncated ? { next_offset: end - cut } : {}) };
    } catch (error) {
      throw toPathError(error, path);
    } finally {
      await handle.close();
    }
  },
});

/** The text, and how many bytes at its end were left out because more of their character follows. */
function decode(bytes: Buffer, path: string, moreFollows: boolean): { text: string; cut: number } {
  const cut = moreFollows ? incompleteTail(bytes) : 0;
  const whole = bytes.subarray(0, bytes.length - cut);
  try {
    if (whole.includes(0)) throw new TypeError("NUL");
    return { text: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(whole), cut };
  } catch {
    throw new PathError(`"${path}" is not UTF-8 text there (a binary file, or an offset inside a character).`);
  }
}

/** How many bytes at the end begin a character that goes on after them (0 to 3). */
function incompleteTail(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back]!;
    if (byte < 0x80) return 0;
    if (byte >= 0xc0) return (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2) > back ? back : 0;
  }
  return 0;
}

export const fileListTool = defineTool({
  name: "file_list",
  description:
    "Lists a folder of the workspace, not what lies deeper. `type` is file, folder, link or other. An empty workspace gives an empty list.",
  input: z.object({
    path: z.string().min(1).max(4096).default(".").describe("folder, relative to the workspace (the workspace itself)"),
  }),
  permission: "read",
  effect: "pure",
  maxOutputBytes: 1024 * 1024,
  async execute({ path }, { workspace }) {
    // The folder is made on first use, and nobody may have used it.
    const isWhole = resolve(workspace, path) === resolve(workspace);
    if (isWhole && !(await exists(workspace))) return { path, entries: [], truncated: false };
    const folder = await openInside(workspace, path, "folder");
    try {
      const names: string[] = [];
      // One too many shows that there are more.
      for await (const { name } of await opendir(folder.path)) if (names.push(name) > mostEntries) break;
      const truncated = names.length > mostEntries;
      const entries = await Promise.all(names.slice(0, mostEntries).map((name) => describe(folder.path, name)));
      return { path, entries: entries.sort((a, b) => (a.name < b.name ? -1 : 1)), truncated };
    } catch (error) {
      throw toPathError(error, path);
    } finally {
      await folder.handle.close();
    }
  },
});

interface Entry {
  name: string;
  type: "file" | "folder" | "link" | "other" | "gone";
  size_bytes?: number;
}

async function describe(folder: string, name: string): Promise<Entry> {
  // Removed since it was listed.
  const stats = await lstat(join(folder, name)).catch(() => null);
  if (!stats) return { name, type: "gone" };
  if (stats.isFile()) return { name, type: "file", size_bytes: stats.size };
  if (stats.isDirectory()) return { name, type: "folder" };
  return { name, type: stats.isSymbolicLink() ? "link" : "other" };
}
