/**
 * Opens files and folders of a run's workspace and nothing else. The model names paths, and what lies in the workspace may have
 * been written by anyone: so links are followed first, and what was opened is asked again where it lies.
 */
import { constants } from "node:fs";
import { type FileHandle, lstat, open, readlink, realpath } from "node:fs/promises";
import { isAbsolute, resolve, sep } from "node:path";

/** Its message is for the model: it names paths as the model wrote them, never where the workspace lies. */
export class PathError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "PathError";
  }
}

export interface Opened {
  handle: FileHandle;
  /** What to read it by: the descriptor's own path where the system has one, so that no later swap of names matters. */
  path: string;
}

export type EntryKind = "file" | "folder";

/** Whether the workspace was made yet. */
export async function exists(workspace: string): Promise<boolean> {
  return await lstat(workspace).then(
    () => true,
    (error) => {
      if (codeOf(error) === "ENOENT") return false;
      throw toPathError(error, ".");
    },
  );
}

/**
 * Opens a regular file or a folder for reading; the caller closes the handle.
 * @param path relative to the workspace, as the model wrote it
 * @throws PathError also for what lies outside, FIFOs, sockets and devices; a FIFO does not block
 */
export async function openInside(workspace: string, path: string, kind: EntryKind): Promise<Opened> {
  const place = await locate(workspace, path);
  return await openLocated(place, path, kind);
}

export interface Place {
  /** The workspace and the wanted entry, both without links. */
  root: string;
  real: string;
}

/** Follows every link of the path and finds that it ends inside. What is true of names now may be untrue at the next line. */
export async function locate(workspace: string, path: string): Promise<Place> {
  if (path.includes("\0")) throw new PathError("A path cannot hold a NUL character.");
  if (isAbsolute(path)) throw new PathError("Paths are relative to the workspace: leave the leading slash out.");
  const wanted = resolve(workspace, path);
  if (!isWithin(resolve(workspace), wanted)) throw new PathError(`"${path}" leads out of the workspace.`);
  try {
    const root = await realpath(workspace);
    const real = await realpath(wanted);
    if (!isWithin(root, real)) throw notThere(path);
    return { root, real };
  } catch (error) {
    throw toPathError(error, path);
  }
}

/**
 * Opens what `locate` found, and closes it again when it is of the wrong kind or no longer inside.
 * @param descriptors where the system shows what a descriptor is open on; tests take it away, as other systems do
 */
export async function openLocated(
  { root, real }: Place,
  path: string,
  kind: EntryKind,
  descriptors = "/proc/self/fd",
): Promise<Opened> {
  let handle: FileHandle | undefined;
  try {
    // Before opening: to open a device can have effects.
    requireKind(await lstat(real), path, kind);
    const flags = constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0);
    handle = await open(real, flags);
    const opened = await handle.stat();
    requireKind(opened, path, kind);
    const own = `${descriptors}/${handle.fd}`;
    const at = await readlink(own).catch(() => null);
    if (at !== null) {
      if (!isWithin(root, at)) throw notThere(path);
      return { handle, path: own };
    }
    // Elsewhere: the name must still lead to the same entry, without a link.
    const again = await realpath(real);
    const now = await lstat(again);
    if (again !== real || now.dev !== opened.dev || now.ino !== opened.ino) throw notThere(path);
    return { handle, path: real };
  } catch (error) {
    await handle?.close();
    throw toPathError(error, path);
  }
}

function requireKind(stats: { isFile(): boolean; isDirectory(): boolean }, path: string, kind: EntryKind): void {
  if (kind === "file" && stats.isDirectory()) throw new PathError(`"${path}" is a folder: list it with file_list.`);
  if (kind === "file" && !stats.isFile()) throw new PathError(`"${path}" is not a regular file and cannot be read.`);
  if (kind === "folder" && stats.isFile()) throw new PathError(`"${path}" is a file: read it with file_read.`);
  if (kind === "folder" && !stats.isDirectory()) throw new PathError(`"${path}" is not a folder.`);
}

function isWithin(root: string, path: string): boolean {
  return path === root || path.startsWith(root.endsWith(sep) ? root : root + sep);
}

/** One answer for "missing" and "outside", so that links tell nothing about the machine's other files. */
function notThere(path: string): PathError {
  return new PathError(`There is no "${path}" in the workspace. file_list shows what there is.`);
}

/** A file system's error without the host's paths. */
export function toPathError(error: unknown, path: string): PathError {
  if (error instanceof PathError) return error;
  const code = codeOf(error);
  if (code === "ENOENT" || code === "ENOTDIR" || code === "ELOOP" || code === "ENAMETOOLONG") return notThere(path);
  if (code === "EACCES" || code === "EPERM") return new PathError(`"${path}" may not be read.`);
  return new PathError(`"${path}" could not be read (${code ?? "unknown error"}).`);
}

function codeOf(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code;
}
