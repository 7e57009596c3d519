import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { calculate, calculateTool } from "../../packages/tools/src/calculate.ts";
import { callTool } from "./call.ts";

describe("calculate refuses", () => {
  it.each([
    ["1/0", "Division by zero"],
    ["5 % (2 - 2)", "Division by zero"],
    ["0^-1", "Division by zero"],
    ["tan(pi/2)", "Division by zero"],
    ["sqrt(-1)", "not a real number"],
    ["ln(-1)", "not a real number"],
    ["(-8)^(1/3)", "not a real number"],
    ["acos(2)", "not a real number"],
    ["9^9^9^9", "too large"],
    ["10^1000000000", "too large"],
    ["1e999999999999999999999", "too large"],
    ["exp(exp(10))", "too large"],
    ["factorial(100000)", "from 0 to 250"],
    ["factorial(0.5)", "from 0 to 250"],
    ["round(1, 0.5)", "0 to 100"],
    ["", "The expression is empty"],
    ["nonsense", 'No constant "nonsense"'],
    ["how much is 2+2", "More than one expression"],
    ["1 +", "Not an expression"],
    ["(1", "Not an expression"],
    ["()", "Not an expression"],
    ["5!", "Not an expression"],
    ["2pi", "Not an expression"],
    ["2(3)", "More than one expression"],
    ["(1)(2)", "More than one expression"],
    ["15% of 200", "More than one expression"],
    ["1,234.5", "thousands separators"],
    ["(1,000)", "thousands separators"],
    ["max(1,000, 5)", "thousands separators"],
    ["1 000", "space between"],
    ["max(1 000, 5)", "space between"],
    ["max(1 2)", "space between"],
    ["1; 2", "More than one expression"],
    ["log(100)", "log10(x)"],
    ["sqrt()", "sqrt takes 1 arguments, not 0"],
    ["sqrt(1, 2)", "sqrt takes 1 arguments, not 2"],
    ["max()", "max takes 1 or more"],
    ["0x10", "Not an expression"],
    ["1 == 1", "Not an expression"],
    ["1 ? 2 : 3", "Only numbers"],
  ])("%s", (expression, message) => {
    expect(() => calculate(expression)).toThrow(message);
  });

  it.each([
    'constructor.constructor("return process")()',
    "constructor",
    "__proto__",
    "this",
    "this.constructor",
    "toString()",
    "hasOwnProperty(1)",
    "valueOf()",
    "sqrt.constructor(1)",
    "(1).constructor",
    'sqrt["constructor"]',
    '"a" + "b"',
    "[1, 2]",
    "`1`",
    "process.exit(1)",
    'import("node:fs")',
    "x = 1",
    "f(x) = x",
    "() => 1",
    "new Date()",
    "sqrt`1`",
  ])("what is no arithmetic: %s", (expression) => {
    expect(() => calculate(expression)).toThrow();
  });

  it("an expression that is too long", async () => {
    await expect(callTool(calculateTool, { expression: `${"1+".repeat(500)}1` })).rejects.toThrow("1000");
  });
});

describe("calculate gives", () => {
  it.each([
    ["0.1 + 0.2", "0.3"],
    ["1 - 0.9", "0.1"],
    ["12345678901234567890 * 3", "37037036703703703670"],
    ["2^100", "1267650600228229401496703205376"],
    ["2 + 3 * 4", "14"],
    ["(2 + 3) * 4", "20"],
    ["10 - 4 - 3", "3"],
    ["100 / 10 / 2", "5"],
    ["2^3^2", "512"],
    ["2**3", "8"],
    ["-2^2", "-4"],
    ["(-2)^2", "4"],
    ["-(2)^2", "-4"],
    ["2^-2", "0.25"],
    ["2^-3^2", "0.001953125"],
    ["2 * -3^2", "-18"],
    ["--2^2", "4"],
    ["+5", "5"],
    ["-5 % 3", "-2"],
    ["1/3", "0.33333333333333333333"],
    ["1/3*3", "1"],
    ["sqrt(2)^2", "2"],
    ["round(1200 * (1 + 0.05 / 12)^36, 2)", "1393.77"],
    ["round(2.5) + round(-2.5)", "0"],
    ["sin(pi)", "0"],
    ["sin(pi/6) + cos(pi/3) + tan(pi/4)", "2"],
    ["log(8, 2) + ln(e) + log10(1000)", "7"],
    ["factorial(20)", "2432902008176640000"],
    ["min(3, 1, 2) + max(3, 1, 2) + sum(1, 2) + mean(1, 2, 6)", "10"],
    ["1.5e3 + .5 + 5.", "1505.5"],
    ["1e-25", "1e-25"],
    ["10^400", "1e+400"],
    [" ( 1\n+\t2 ) ", "3"],
  ])("%s", async (expression, result) => {
    expect(await callTool(calculateTool, { expression })).toEqual({ result });
  });

  it("what JavaScript gives, over any tree of sums and products of integers", () => {
    const leaf = fc.integer({ min: -99, max: 99 }).map((n) => ({ text: n < 0 ? `(${n})` : `${n}`, value: BigInt(n) }));
    const { tree } = fc.letrec<{ tree: { text: string; value: bigint } }>((tie) => ({
      tree: fc.oneof(
        { maxDepth: 5, withCrossShrink: true },
        leaf,
        fc.tuple(tie("tree"), fc.constantFrom("+", "-", "*"), tie("tree")).map(([a, operator, b]) => ({
          text: `(${a.text} ${operator} ${b.text})`,
          value: operator === "+" ? a.value + b.value : operator === "-" ? a.value - b.value : a.value * b.value,
        })),
      ),
    }));
    fc.assert(
      fc.property(tree, ({ text, value }) => {
        fc.pre(String(value).length <= 45);
        expect(calculate(text)).toBe(String(value));
      }),
    );
  });

  it("an answer or an error to any text at all, and nothing of JavaScript", () => {
    const piece = fc.constantFrom(
      ..."0123456789.eE+-*/%^(),;[]{}'\"`!?:=<>&|~$_ ",
      "sin(",
      "pi",
      "constructor",
      ".",
      "1e499",
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 40 }), (pieces) => {
        let result: string;
        try {
          result = calculate(pieces.join(""));
        } catch (error) {
          expect(error).toBeInstanceOf(Error);
          return;
        }
        expect(result).toMatch(/^-?\d+(\.\d+)?(e[+-]\d+)?$/);
      }),
      { numRuns: 2000 },
    );
  });
});

describe("calculate ends soon", () => {
  // The dearest that fit in 1,000 characters, each under 200 ms; the test's own limit would show one that never ends.
  const nested = (call: string, inner: string) => {
    const depth = Math.floor((1000 - inner.length) / (call.length + 1));
    return call.repeat(depth) + inner + ")".repeat(depth);
  };
  const repeated = (term: string) => `${`${term}+`.repeat(Math.floor(990 / (term.length + 1)))}0`;
  it.each([
    nested("0.9^(", "0.5"),
    nested("2^-(", "0.5"),
    nested("sqrt(", "1e499"),
    nested("(", "1"),
    `${"-".repeat(999)}1`,
    `${"2^".repeat(499)}2`,
    repeated("log(7,7)"),
    repeated("1e499^0.9999999"),
    repeated("1.0000001^1e15"),
    repeated("1e499%1e-499"),
    repeated("factorial(250)"),
    ...["sin", "cos", "tan", "asin", "acos", "atan", "exp", "ln", "log2"].flatMap((name) =>
      ["1e499", "1e-499", "0.99999999999999999999999999"].map((x) => repeated(`${name}(${x})`)),
    ),
  ])("%s", { timeout: 10_000 }, (expression) => {
    let outcome: string;
    try {
      outcome = calculate(expression);
    } catch (error) {
      outcome = (error as Error).message;
    }
    expect(outcome).toMatch(/^-?\d|too large|not a real number/);
  });
});
