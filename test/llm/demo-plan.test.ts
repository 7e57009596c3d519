/** The demo model reads what anybody sends: its rules take time in proportion to a text's length, whatever its shape. */
import { expect, test } from "vitest";
import { plan } from "../../packages/llm/src/demo-plan.ts";

const shapes: [name: string, of: (n: number) => string][] = [
  ["open parentheses", (n) => `${"(".repeat(n)}1+1`],
  ["closed parentheses", (n) => `1+1${")".repeat(n)}`],
  ["both", (n) => `${"(".repeat(n / 2)}1+1${")".repeat(n / 2)}`],
  ["a URL of closing marks", (n) => `http://a/${").".repeat(n / 2)}x`],
  ["many URLs", (n) => "http://a/b ".repeat(n / 11)],
  ["many waits", (n) => "wait 1 s ".repeat(n / 9)],
  ["blanks", (n) => " ".repeat(n)],
  ["read and blanks", (n) => `read${" ".repeat(n)}`],
  ["reads", (n) => "read a.txt and b.txt, ".repeat(n / 22)],
  ["a path of dots", (n) => `read a${".".repeat(n)}`],
  ["list and dots", (n) => `list files in a${"./".repeat(n / 2)}x`],
  ["lists", (n) => "list the files in ".repeat(n / 18)],
  ["digits", (n) => "1".repeat(n)],
  ["digits and commas", (n) => "111,".repeat(n / 4)],
  ["operators", (n) => "1+".repeat(n / 2)],
  ["x", (n) => "1 x".repeat(n / 3)],
  ["x and blanks", (n) => `x${" ".repeat(n)}`],
  ["thens", (n) => "then ".repeat(n / 5)],
  ["thens and sums", (n) => "then 1+1 ".repeat(n / 9)],
  ["letters", (n) => "a".repeat(n)],
  ["quotes", (n) => "\"'`".repeat(n / 3)],
];

/** The quickest of some: others use the processor, too. */
function msOf(text: string): number {
  let best = Number.POSITIVE_INFINITY;
  for (let time = 0; time < 3; time++) {
    const began = performance.now();
    plan(text);
    best = Math.min(best, performance.now() - began);
  }
  return best;
}

test.each(shapes)("%s: eight times the text takes about eight times as long", (_name, of) => {
  const [small, large] = [msOf(of(50_000)), msOf(of(400_000))];
  // Twice that is allowed for noise; what grows with the square would take 64 times.
  expect(large).toBeLessThan(Math.max(24 * small, 100));
});
