/** No log line shows a secret: whatever looks like one is replaced, in doubt too. */
import { scrub } from "@drover/telemetry";
import { expect, test } from "vitest";

const letters = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";

test.each([
  ["a provider's key", "sk-ant-api03-abcdefghij0123456789"],
  ["one without a digit", `sk-${letters.slice(0, 16)}`],
  ["a short one of Google's", `AIza${letters.slice(0, 20)}`],
  ["a longer one of Google's", `AIza${letters}`],
  ["GitHub's", `ghp_${letters.slice(0, 36)}`],
  ["a webhook's secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw=="],
  ["a webhook's private key", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw=="],
  ["one of ours", `drv_${letters.slice(0, 16)}`],
  ["a JWT", `eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.${letters}`],
])("%s", (_what, secret) => {
  for (const line of [secret, `key=${secret}`, `"${secret}"`, `refused: ${secret}, try again`]) {
    const shown = scrub(line);
    expect(shown).toContain("[secret]");
    expect(shown).not.toContain(secret.slice(-8));
  }
});

test.each([
  ["Bearer abcdefghijkl", "abcdefghijkl"],
  ["authorization: bearer\tonlyletterstoken", "onlyletterstoken"],
  ["postgres://drover:hunter2@db/x", "hunter2"],
  ["postgres://drover:p?ss#w<o>rd[1]@db/x", "p?ss#w<o>rd[1]"],
  [`redis://:${"long".repeat(200)}@cache:6379`, "longlong"],
  ["GET /approvals/link/abcdefghijklmnopqrst", "abcdefghijklmnopqrst"],
])("%s", (line, secret) => {
  expect(scrub(line)).toContain("[secret]");
  expect(scrub(line)).not.toContain(secret);
});

test("what is no secret stays", () => {
  for (const line of ["a task-list, an sk-etch", "http://127.0.0.1:8080/docs", "the bearer of news"])
    expect(scrub(line)).toBe(line);
});
