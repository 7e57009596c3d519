import { ConfigurationError, describeConfig, loadConfig } from "@drover/protocol";
import { expect, test } from "vitest";
import { z } from "zod";

const first = z
  .object({
    FIRST_URL: z.url().optional().describe("where the first is"),
    FIRST_COUNT: z.coerce.number().int().min(1).default(3).describe("how many"),
    FIRST_LIST: z
      .string()
      .default("")
      .transform((text) => text.split(","))
      .describe("which"),
  })
  .refine((config) => config.FIRST_COUNT !== 13, { path: ["FIRST_COUNT"], error: "must not be 13" });
const second = z.object({
  SECOND_KEY: z.string().describe("what opens it"),
  SECOND_FLAG: z.enum(["on", "off"]).default("off"),
});
const schema = first.and(second);

test("composed schemas load as one, defaults and transforms included, and other variables are left alone", () => {
  expect(loadConfig(schema, { SECOND_KEY: "k", FIRST_LIST: "a,b", PATH: "/bin", FIRST_URL: undefined })).toEqual({
    FIRST_COUNT: 3,
    FIRST_LIST: ["a", "b"],
    SECOND_KEY: "k",
    SECOND_FLAG: "off",
  });
});

test("an empty variable is one that is not set", () => {
  expect(loadConfig(schema, { SECOND_KEY: "k", FIRST_COUNT: "", FIRST_URL: "" })).toMatchObject({ FIRST_COUNT: 3 });
  expect(() => loadConfig(schema, { SECOND_KEY: "" })).toThrow("SECOND_KEY must be set (what opens it)");
});

test("everything that is wrong is named at once, of all schemas, and no value is shown", () => {
  const problems = (env: Record<string, string>) => {
    try {
      loadConfig(schema, env);
    } catch (error) {
      return error as ConfigurationError;
    }
    throw new Error("was accepted");
  };
  const error = problems({ FIRST_URL: "hunter2", FIRST_COUNT: "many", SECOND_FLAG: "hunter3" });
  expect(error).toBeInstanceOf(ConfigurationError);
  expect(error.problems.map(({ variable, message, hint }) => ({ variable, message, hint }))).toEqual([
    { variable: "FIRST_URL", message: "Invalid URL", hint: "where the first is" },
    { variable: "FIRST_COUNT", message: "must be a number", hint: "how many" },
    { variable: "SECOND_KEY", message: "must be set", hint: "what opens it" },
    { variable: "SECOND_FLAG", message: expect.stringContaining('"on"'), hint: "" },
  ]);
  expect(error.message).toMatch(/^The configuration is not valid:\n( {2}\w+ .+\n?){4}$/);
  expect(error.message).not.toContain("hunter");
  expect(problems({ FIRST_COUNT: "13", SECOND_KEY: "k" }).message).toContain("FIRST_COUNT must not be 13 (how many)");
});

test("variables are described in the order of their declaration, also those an app requires", () => {
  expect(describeConfig(first.and(second.required()))).toEqual([
    { name: "FIRST_URL", meaning: "where the first is", default: null },
    { name: "FIRST_COUNT", meaning: "how many", default: "3" },
    { name: "FIRST_LIST", meaning: "which", default: null },
    { name: "SECOND_KEY", meaning: "what opens it", default: null },
    { name: "SECOND_FLAG", meaning: "", default: "off" },
  ]);
  expect(() => describeConfig(z.string())).toThrow(TypeError);
});
