/**
 * Arithmetic on decimal numbers. jsep parses; what is evaluated is only what stands here: numbers, the operators, the named
 * functions and constants. Everything else a parse may hold (members, strings, calls of calls) is refused by name.
 */
import { defineTool } from "@drover/harness";
import { Decimal } from "decimal.js";
import jsep from "jsep";
import { z } from "zod";

/**
 * 50 digits inside, of which the last are noise. Past 1e500 a number is "too large" and under 1e-500 it is zero: this bounds
 * the work of one operation, as the length of the expression bounds their number.
 */
const D = Decimal.clone({ precision: 50, maxE: 500, minE: -500, toExpPos: 46, toExpNeg: -21 });
/** Digits shown of a number that is not an integer; an integer is shown as far as it is known. */
const shownDigits = 20;
const integerDigits = 45;

jsep.removeAllBinaryOps();
jsep.removeAllUnaryOps();
jsep.removeAllLiterals();
for (const operator of ["+", "-"]) jsep.addUnaryOp(operator);
for (const operator of ["+", "-"]) jsep.addBinaryOp(operator, 1);
for (const operator of ["*", "/", "%"]) jsep.addBinaryOp(operator, 2);
for (const operator of ["^", "**"]) jsep.addBinaryOp(operator, 3, true);
// jsep forgets parentheses, but `(-2)^2` and `-2^2` differ.
jsep.hooks.add("gobble-token", function (env) {
  if (this.char !== "(") return;
  const inner = this.gobbleGroup() as jsep.Expression | false;
  if (!inner) this.throwError("Nothing between parentheses");
  env.node = { type: "Group", inner };
});

const constants: Record<string, Decimal> = {
  pi: D.acos(-1),
  tau: D.acos(-1).times(2),
  e: D.exp(1),
};

interface MathFunction {
  /** Least and most arguments. */
  arity: [number, number];
  apply(...args: Decimal[]): Decimal;
}
const unary = (apply: (x: Decimal) => Decimal): MathFunction => ({ arity: [1, 1], apply });
const many = (apply: (...args: Decimal[]) => Decimal): MathFunction => ({ arity: [1, Infinity], apply });
/** In doubles: decimal.js takes seconds to minutes for some angles. Rounded, so that sin(pi) is 0 and sin(pi/6) is 0.5. */
const wave = (x: Decimal, apply: (x: number) => number) => new D(apply(x.toNumber())).toDecimalPlaces(15);
const angle = (apply: (x: number) => number) => unary((x) => new D(apply(x.toNumber())).toSignificantDigits(15));

const functions: Record<string, MathFunction> = {
  abs: unary((x) => x.abs()),
  sqrt: unary((x) => x.sqrt()),
  cbrt: unary((x) => x.cbrt()),
  exp: unary((x) => x.exp()),
  ln: unary((x) => x.ln()),
  log10: unary((x) => x.log(10)),
  log2: unary((x) => x.log(2)),
  log: { arity: [2, 2], apply: (x, base) => x.log(base) },
  sin: unary((x) => wave(x, Math.sin)),
  cos: unary((x) => wave(x, Math.cos)),
  tan: unary((x) => divide(wave(x, Math.sin), wave(x, Math.cos)).toDecimalPlaces(14)),
  asin: angle(Math.asin),
  acos: angle(Math.acos),
  atan: angle(Math.atan),
  floor: unary((x) => x.floor()),
  ceil: unary((x) => x.ceil()),
  trunc: unary((x) => x.trunc()),
  round: {
    arity: [1, 2],
    apply: (x, places = new D(0)) => {
      if (!places.isInteger() || places.lt(0) || places.gt(100))
        throw new Error("round(x, places): places is 0 to 100");
      return x.toDecimalPlaces(places.toNumber(), D.ROUND_HALF_UP);
    },
  },
  factorial: unary(factorial),
  min: many((...args) => D.min(...args)),
  max: many((...args) => D.max(...args)),
  sum: many((...args) => D.sum(...args)),
  mean: many((...args) => D.sum(...args).div(args.length)),
};

function factorial(n: Decimal): Decimal {
  if (!n.isInteger() || n.lt(0) || n.gt(250)) throw new Error("factorial(n): n is an integer from 0 to 250");
  let product = new D(1);
  for (let factor = 2; n.gte(factor); factor++) product = product.times(factor);
  return product;
}

function divide(left: Decimal, right: Decimal): Decimal {
  if (right.isZero()) throw new Error("Division by zero");
  return left.div(right);
}

const operators: Record<string, (left: Decimal, right: Decimal) => Decimal> = {
  "+": (left, right) => left.plus(right),
  "-": (left, right) => left.minus(right),
  "*": (left, right) => left.times(right),
  "/": divide,
  "%": (left, right) => {
    if (right.isZero()) throw new Error("Division by zero");
    return left.mod(right);
  },
  "^": power,
  "**": power,
};

function power(base: Decimal, exponent: Decimal): Decimal {
  if (base.isZero() && exponent.lt(0)) throw new Error("Division by zero");
  return base.pow(exponent);
}

type Node = jsep.CoreExpression | { type: "Group"; inner: Node };

function evaluate(node: Node): Decimal {
  const value = rawValue(node);
  if (value.isNaN()) throw new Error("The result is not a real number");
  if (!value.isFinite()) throw new Error("A number became too large (over 1e500)");
  return value;
}

function rawValue(node: Node): Decimal {
  switch (node.type) {
    case "Group":
      return evaluate(node.inner);
    case "Literal":
      return literal(node);
    case "Identifier":
      return named(constants, node.name, "constant");
    case "UnaryExpression": {
      const value = evaluate(node.argument as Node);
      return node.operator === "-" ? value.neg() : value;
    }
    case "BinaryExpression":
      return binary(node);
    case "CallExpression":
      return call(node);
    case "Compound":
    case "SequenceExpression":
      throw new Error("More than one expression; write numbers without thousands separators and every * explicitly");
    default:
      throw new Error("Only numbers, + - * / % ^, parentheses and the named functions and constants can be calculated");
  }
}

/** A sign binds less than a power on its right: -2^2 is -(2^2). jsep reads it the other way round. */
function binary({ operator, left, right }: jsep.BinaryExpression): Decimal {
  const isPower = operator === "^" || operator === "**";
  if (isPower && left.type === "UnaryExpression") {
    const signed = left as jsep.UnaryExpression;
    const value = evaluate({ type: "BinaryExpression", operator, left: signed.argument, right });
    return signed.operator === "-" ? value.neg() : value;
  }
  return named(operators, operator, "operator")(evaluate(left as Node), evaluate(right as Node));
}

function literal({ value, raw }: jsep.Literal): Decimal {
  if (typeof value !== "number") throw new Error("Text cannot be calculated with");
  if (/^0\d/.test(raw)) throw new Error(`${raw}: write numbers without leading zeros or thousands separators`);
  return new D(raw);
}

function call({ callee, arguments: args }: jsep.CallExpression): Decimal {
  if (callee.type !== "Identifier") throw new Error("Write every multiplication with *, and call functions by name");
  const name = (callee as jsep.Identifier).name;
  if (name === "log" && args.length === 1)
    throw new Error("log needs a base: ln(x), log10(x), log2(x) or log(x, base)");
  const { arity, apply } = named(functions, name, "function");
  if (args.length < arity[0] || args.length > arity[1]) {
    throw new Error(
      `${name} takes ${arity[0]}${arity[1] === arity[0] ? "" : " or more"} arguments, not ${args.length}`,
    );
  }
  return apply(...args.map((arg) => evaluate(arg as Node)));
}

function named<T>(table: Record<string, T>, name: string, kind: string): T {
  const found = Object.hasOwn(table, name) ? table[name] : undefined;
  if (found === undefined) throw new Error(`No ${kind} "${name}". There are: ${Object.keys(table).join(", ")}`);
  return found;
}

/** The value as digits: exact for integers of up to 45 digits, else rounded to 20 significant digits. @throws Error fit for the model */
export function calculate(expression: string): string {
  if (/\d\s+[\d.]/.test(expression)) throw new Error("Two numbers with only a space between them");
  let tree: Node;
  try {
    tree = jsep(expression) as Node;
  } catch (error) {
    throw new Error(`Not an expression: ${(error as Error).message}`);
  }
  if (tree.type === "Compound" && tree.body.length === 0) throw new Error("The expression is empty");
  const value = evaluate(tree);
  return value.toSignificantDigits(value.isInteger() ? integerDigits : shownDigits).toString();
}

export const calculateTool = defineTool({
  name: "calculate",
  description:
    "Calculates an arithmetic expression exactly in decimals (0.1 + 0.2 is 0.3) and returns the result as a string of digits. " +
    "Operators: + - * / % (remainder) ^ (power). " +
    `Functions: ${Object.keys(functions).join(", ")}; angles are in radians. Constants: ${Object.keys(constants).join(", ")}.`,
  input: z.object({
    expression: z
      .string()
      .min(1)
      .max(1000)
      .describe("for example `round(1200 * (1 + 0.05 / 12)^36, 2)`; no thousands separators, no variables"),
  }),
  permission: "read",
  effect: "pure",
  execute: ({ expression }) => ({ result: calculate(expression) }),
});
