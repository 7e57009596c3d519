/** `drover demo` as a newcomer runs it: no configuration, no account, nothing left behind. */
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { drover, processesWith, startDrover, temporaryFolder } from "./drover.ts";

const folder = await temporaryFolder();
const dataDir = join(folder.path, "data");
// The port it prefers is taken, by us or by somebody else.
const busy = createServer();

beforeAll(async () => {
  busy.listen(8080, "127.0.0.1");
  await Promise.race([once(busy, "listening"), once(busy, "error")]).catch(() => undefined);
});

afterAll(async () => {
  busy.close();
  await folder.remove();
});

it("shows a run from its submission to its verified webhook, and leaves nothing running", async () => {
  const ended = await drover(["demo", "--data-dir", dataDir]);
  expect(ended, ended.stderr).toMatchObject({ code: 0, stderr: "" });
  const told = [
    /ready after .*: http:\/\/127\.0\.0\.1:\d+/,
    /accepted +run_[0-9a-f]{32}/,
    /→ calculate \{"expression":"17 \* 23"\}/,
    /← calculate .*391/,
    /← wait .*\(1\.\d\d s\)/,
    /← http_get .*200/,
    /end +completed/,
    /received +query\.completed, .* webhook-id/,
    /verified .*standardwebhooks/,
    /refused .*changed body/,
    /Weather at the demo/,
    /success, \$0\.00 .* tokens/,
    /^ +model 1 +█/m,
    /^ +wait +█+ +1\.\d\d s/m,
    /listened on http:\/\/127\.0\.0\.1:\d+ and is stopped again/,
    /npm start/,
  ];
  let rest = ended.stdout;
  for (const line of told) {
    expect(rest).toMatch(line);
    rest = rest.slice(rest.search(line));
  }
  expect(ended.stdout).not.toContain("\u001b");
  expect(await processesWith(folder.path)).toEqual([]);
});

it("says why, with what the service wrote last, when it cannot", async () => {
  const ended = await drover(["demo", "--data-dir", dataDir], { env: { DROVER_CONFIG: join(folder.path, "none.ts") } });
  expect(ended.code).toBe(1);
  expect(ended.stderr).toContain("there is no such file");
  expect(ended.stderr).toContain("drover: the ");
  expect(await processesWith(folder.path)).toEqual([]);
});

it("ends at once at Ctrl-C, with all it started", async () => {
  const demo = startDrover(["demo", "--data-dir", dataDir]);
  await demo.waitForLine("→ wait");
  expect(await demo.kill("SIGINT")).toMatchObject({ code: 130 });
  expect(demo.output()).toContain("interrupted");
  expect(demo.output()).not.toContain("What the service wrote last");
  expect(await processesWith(folder.path)).toEqual([]);
});
