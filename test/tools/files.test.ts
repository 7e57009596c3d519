import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { link, mkdir, open, rename, symlink, unlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { fileListTool, fileReadTool } from "../../packages/tools/src/files.ts";
import { locate, openLocated, PathError } from "../../packages/tools/src/workspace.ts";
import { spawnNode } from "../support/process.ts";
import { callTool, messageOf, temporaryFolder } from "./call.ts";

/** `base/outside` holds a secret, `base/workspace` is the run's. */
let base: string;
let workspace: string;
let outside: string;
beforeEach(async () => {
  base = await temporaryFolder();
  workspace = join(base, "workspace");
  outside = join(base, "outside");
  await mkdir(workspace);
  await mkdir(outside);
  await writeFile(join(outside, "secret.txt"), "the secret");
});

/** Node cannot make one. */
function makeFifo(name: string): void {
  const command = "mkfifo";
  execFileSync(command, [join(workspace, name)]);
}

const read = (input: object) => callTool(fileReadTool, input, { workspace });
const list = (input: object = {}) => callTool(fileListTool, input, { workspace });
/** Neither message may say where the workspace lies. */
const readError = (path: string) => messageOf(read({ path }), [base]);
const listError = (path: string) => messageOf(list({ path }), [base]);

describe("the way out of the workspace is closed", () => {
  it("to .. in every form", async () => {
    await mkdir(join(workspace, "sub"));
    for (const path of ["../outside/secret.txt", "sub/../../outside/secret.txt", "./../outside/secret.txt"]) {
      expect(await readError(path)).toBe(`"${path}" leads out of the workspace.`);
    }
    for (const path of ["..", "../outside", "sub/../.."]) {
      expect(await listError(path)).toBe(`"${path}" leads out of the workspace.`);
    }
    // A sibling that only begins with the same letters.
    await mkdir(join(base, "workspace-2"));
    expect(await listError("../workspace-2")).toContain("leads out");
  });

  it("to absolute paths, the workspace's own among them", async () => {
    for (const path of ["/etc/passwd", "/", join(workspace, "a.txt"), join(outside, "secret.txt")]) {
      expect(await readError(path)).toContain("relative to the workspace");
      expect(await listError(path)).toContain("relative to the workspace");
    }
  });

  it("to links: of a file, of a folder, of a folder above, relative, in a chain", async () => {
    await symlink(join(outside, "secret.txt"), join(workspace, "file"));
    await symlink(outside, join(workspace, "folder"));
    await symlink("../outside", join(workspace, "relative"));
    await symlink("relative", join(workspace, "chain"));
    await mkdir(join(workspace, "deep"));
    await symlink("../..", join(workspace, "deep", "up"));
    for (const path of [
      "file",
      "folder/secret.txt",
      "relative/secret.txt",
      "chain/secret.txt",
      "deep/up/outside/secret.txt",
    ]) {
      expect(await readError(path)).toBe(`There is no "${path}" in the workspace. file_list shows what there is.`);
    }
    for (const path of ["folder", "relative", "chain", "deep/up", "deep/up/outside"]) {
      expect(await listError(path)).toContain("There is no");
    }
  });

  it("and a link tells nothing of what is there", async () => {
    await symlink(join(outside, "secret.txt"), join(workspace, "there"));
    await symlink(join(outside, "missing.txt"), join(workspace, "not-there"));
    expect((await readError("there")).replace("there", "not-there")).toBe(await readError("not-there"));
  });

  it.each(["/proc/self/fd", "/nonexistent"])("to a link that appears after the check (%s)", async (descriptors) => {
    const opened = async (path: string, kind: "file" | "folder", swap: () => Promise<void>) => {
      const place = await locate(workspace, path);
      await swap();
      const { handle } = await openLocated(place, path, kind, descriptors);
      await handle.close();
    };
    const inner = join(workspace, "sub", "inner");
    await mkdir(inner, { recursive: true });
    await mkdir(join(outside, "inner"));
    for (const folder of [inner, join(outside, "inner")]) await writeFile(join(folder, "a.txt"), "text");
    await opened("sub/inner/a.txt", "file", async () => {});
    await opened("sub/inner", "folder", async () => {});

    const swapFile = async () => {
      await rename(join(inner, "a.txt"), join(workspace, "aside.txt"));
      await symlink(join(outside, "inner", "a.txt"), join(inner, "a.txt"));
    };
    expect(await messageOf(opened("sub/inner/a.txt", "file", swapFile), [base])).toContain("sub/inner/a.txt");
    await rename(join(workspace, "aside.txt"), join(inner, "a.txt"));

    const above = join(workspace, "sub");
    const swapAbove = async () => {
      await rename(above, join(workspace, "aside"));
      await symlink(outside, above);
    };
    expect(await messageOf(opened("sub/inner/a.txt", "file", swapAbove), [base])).toContain("There is no");
    await unlink(above);
    await rename(join(workspace, "aside"), above);
    expect(await messageOf(opened("sub/inner", "folder", swapAbove), [base])).toContain("There is no");
  });

  it("while another process swaps a folder for a link as fast as it can", async () => {
    await mkdir(join(workspace, "sub"));
    await writeFile(join(workspace, "sub", "secret.txt"), "harmless");
    await writeFile(join(outside, "only-outside"), "");
    await symlink(outside, join(workspace, "link"));
    await whileSwapping("sub", "link", async () => {
      const { entries } = await list({ path: "sub" }).catch(() => ({ entries: [] }));
      expect(entries.map(({ name }: { name: string }) => name)).not.toContain("only-outside");
      return await read({ path: "sub/secret.txt" });
    });
  });

  it("while another process swaps a file for a FIFO as fast as it can", async () => {
    await writeFile(join(workspace, "file"), "harmless");
    makeFifo("pipe");
    await whileSwapping("file", "pipe", () => read({ path: "file" }));
  });
});

/** Reads at least 1,500 times, and until both outcomes were seen: the harmless text, or a refusal, and never anything else. */
async function whileSwapping(name: string, other: string, readOnce: () => Promise<{ text: string }>): Promise<void> {
  const args = [join(workspace, name), join(workspace, other)];
  const swapper = spawnNode(new URL("swap-process.ts", import.meta.url), { args });
  await swapper.waitForLine("swapping");
  const seen = { harmless: 0, refused: 0 };
  try {
    for (let i = 0; i < 1500 || !seen.harmless || !seen.refused; i++) {
      const text = await readOnce().then(
        (result) => result.text,
        (error) => (error instanceof PathError ? "refused" : String(error)),
      );
      expect(["harmless", "refused"]).toContain(text);
      seen[text as keyof typeof seen]++;
    }
  } finally {
    await swapper.kill("SIGKILL");
  }
}

describe("file_read refuses", () => {
  it("a FIFO, without waiting for a writer", { timeout: 5_000 }, async () => {
    makeFifo("pipe");
    expect(await readError("pipe")).toBe('"pipe" is not a regular file and cannot be read.');
  });

  it("a socket and a device", async () => {
    const server = createServer().listen(join(workspace, "socket"));
    await once(server, "listening");
    expect(await readError("socket")).toContain("not a regular file");
    server.close();
    await symlink("/dev/zero", join(workspace, "zero"));
    expect(await readError("zero")).toContain("There is no");
  });

  it("what is missing, a folder, a loop, and names no file can have", async () => {
    await mkdir(join(workspace, "folder"));
    await writeFile(join(workspace, "file"), "x");
    await symlink("loop", join(workspace, "loop"));
    expect(await readError("missing.txt")).toBe(
      'There is no "missing.txt" in the workspace. file_list shows what there is.',
    );
    expect(await readError("folder")).toBe('"folder" is a folder: list it with file_list.');
    expect(await readError(".")).toContain("is a folder");
    expect(await readError("file/below")).toContain("There is no");
    expect(await readError("loop")).toContain("There is no");
    expect(await readError("x".repeat(300))).toContain("There is no");
    expect(await readError("nul\0byte")).toContain("NUL");
  });

  it("binary files", async () => {
    await writeFile(join(workspace, "nul"), "text\0text");
    await writeFile(join(workspace, "latin1"), Buffer.from("na\u00efve", "latin1"));
    expect(await readError("nul")).toContain("is not UTF-8 text");
    expect(await readError("latin1")).toContain("is not UTF-8 text");
  });

  it("a workspace that was not made yet", async () => {
    workspace = join(base, "not-yet");
    expect(await readError("a.txt")).toContain("There is no");
  });

  it("wrong limits", async () => {
    await writeFile(join(workspace, "a"), "x");
    for (const wrong of [{ offset: -1 }, { max_bytes: 0 }, { max_bytes: 300_000 }, { offset: 0.5 }]) {
      await expect(read({ path: "a", ...wrong })).rejects.toThrow();
    }
  });
});

describe("file_read gives", () => {
  it("a whole file, an empty one, one behind a link inside, one in a folder", async () => {
    await mkdir(join(workspace, "notes"));
    await writeFile(join(workspace, "notes", "a.txt"), "grüße 🐑\n");
    await writeFile(join(workspace, "empty"), "");
    await symlink("notes/a.txt", join(workspace, "inside"));
    const whole = { text: "grüße 🐑\n", size_bytes: 13, truncated: false };
    expect(await read({ path: "notes/a.txt" })).toEqual({ path: "notes/a.txt", ...whole });
    expect(await read({ path: "./notes/../inside" })).toEqual({ path: "./notes/../inside", ...whole });
    expect(await read({ path: "empty" })).toEqual({ path: "empty", text: "", size_bytes: 0, truncated: false });
    expect(await read({ path: "empty", offset: 10 })).toMatchObject({ text: "", truncated: false });
  });

  it("a huge file in parts: 1 TiB costs no more than the part", async () => {
    const handle = await open(join(workspace, "huge"), "w");
    await handle.writeFile("x".repeat(100_000));
    await handle.truncate(2 ** 40);
    await handle.close();
    const first = await read({ path: "huge", max_bytes: 50_000 });
    expect(first).toMatchObject({ size_bytes: 2 ** 40, truncated: true, next_offset: 50_000 });
    expect(first.text).toBe("x".repeat(50_000));
    expect((await read({ path: "huge" })).text.length).toBe(32_768);
  });

  it("characters whole, whatever the size of the parts", async () => {
    const text = "aé€🐑".repeat(50);
    await writeFile(join(workspace, "t"), text);
    for (let size = 4; size < 12; size++) {
      let together = "";
      for (let offset: number | undefined = 0; offset !== undefined; ) {
        const part = await read({ path: "t", offset, max_bytes: size });
        together += part.text;
        offset = part.next_offset;
      }
      expect(together).toBe(text);
    }
    expect(await messageOf(read({ path: "t", offset: 2 }))).toContain("inside a character");
  });
});

describe("file_list", () => {
  it("gives an empty list where nothing was made yet, but not for a folder in it", async () => {
    workspace = join(base, "not-yet");
    for (const path of [".", "./", "a/.."])
      expect(await list({ path })).toEqual({ path, entries: [], truncated: false });
    expect(await listError("sub")).toContain("There is no");
    expect(await listError("../outside")).toContain("leads out");
  });

  it("gives names, types and sizes in order, and never where a link leads", async () => {
    await mkdir(join(workspace, "b-folder"));
    await writeFile(join(workspace, "c.txt"), "12345");
    await link(join(workspace, "c.txt"), join(workspace, "d.txt"));
    await symlink(outside, join(workspace, "a-link"));
    makeFifo("e-pipe");
    expect(await list()).toEqual({
      path: ".",
      truncated: false,
      entries: [
        { name: "a-link", type: "link" },
        { name: "b-folder", type: "folder" },
        { name: "c.txt", type: "file", size_bytes: 5 },
        { name: "d.txt", type: "file", size_bytes: 5 },
        { name: "e-pipe", type: "other" },
      ],
    });
    expect(await listError("c.txt")).toBe('"c.txt" is a file: read it with file_read.');
    expect(await listError("e-pipe")).toBe('"e-pipe" is not a folder.');
  });

  it("says when there is more than it shows", async () => {
    await Promise.all(Array.from({ length: 1001 }, (_, i) => writeFile(join(workspace, `f${i}`), "")));
    const result = await list();
    expect([result.entries.length, result.truncated]).toEqual([1000, true]);
  });
});
