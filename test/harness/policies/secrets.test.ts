/** The table of the secrets policy: known ones in every form, tokens by their shape, and the search for many texts at once. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { secrets } from "../../../packages/harness/src/policy/index.ts";
import { literalSearch } from "../../../packages/harness/src/policy/literals.ts";
import { judge, redacted } from "./hostile.ts";

const password = 'pä ss/w+rd"x';
const policy = secrets({ known: ["hunter2hunter2", password, "short", "97531864"] });
const base64 = (text: string) => Buffer.from(text).toString("base64");

describe("leaves alone", () => {
  it.each([
    "",
    "hunter2hunter",
    "short",
    base64("user:somebody"),
    "sk-fading-circle-animation-delay",
    "task-management-system-overview-1",
    "the bearer authentication/authorization scheme",
    "https://example.com:8080/@user https://user@example.com mailto:a@b.com",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n-----BEGIN PUBLIC KEY-----",
    "eyJ is how they begin; ghp_ too, and AKIA",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "550e8400-e29b-41d4-a716-446655440000",
    "[secret] Bearer [secret] https://u:[secret]@h",
  ])("%j", (text) => {
    expect(judge(policy, text)).toEqual({ action: "allow" });
  });
});

describe("redacts what it was told of", () => {
  it.each<[string, string, string]>([
    ["as it is", "pw=hunter2hunter2;", "pw=[secret];"],
    ["twice without a gap", "hunter2hunter2hunter2hunter2", "[secret]"],
    ["overlapping", "hunter2hunter2hunter2", "[secret]"],
    ["in base64", base64("hunter2hunter2"), "[secret]I="],
    [
      "in base64 behind one byte",
      base64("uhunter2hunter2!"),
      "dW[secret]yIQ==".replace("yIQ", "IQ").replace("IQ==", "IQ=="),
    ],
    ["percent-encoded", encodeURIComponent(password), "[secret]"],
    ["percent-encoded in lower case", encodeURIComponent(password).toLowerCase(), "[secret]"],
    ["as a form", new URLSearchParams({ p: password }).toString(), "p=[secret]"],
    ["escaped in JSON", JSON.stringify({ p: password }), '{"p":"[secret]"}'],
  ])("%s", (_, text, expected) => {
    expect(redacted(policy, text)).toBe(expected);
  });

  it("in base64 wherever it stands in a longer text, leaving at most two characters beside it", () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 9 }), fc.string({ maxLength: 9 }), fc.boolean(), (before, behind, url) => {
        const bytes = Buffer.from(`${before}hunter2hunter2${behind}`);
        const left = redacted(policy, bytes.toString(url ? "base64url" : "base64")) as string;
        expect(left).toContain("[secret]");
        expect(Buffer.from(left.replace("[secret]", ""), "base64").toString()).not.toContain("unter");
      }),
    );
  });

  it("as a number and as a key", () => {
    expect(redacted(policy, { hunter2hunter2: 97531864 })).toEqual({ "[secret]": "[secret]" });
  });

  it("by this process's environment, as the documentation has it", () => {
    process.env.SOME_API_KEY = "a-secret-of-this-process";
    const { action, value } = secrets({ env: process.env }).check(
      "it is a-secret-of-this-process",
      {} as never,
    ) as never as {
      action: string;
      value: unknown;
    };
    delete process.env.SOME_API_KEY;
    expect([action, value]).toEqual(["redact", "it is [secret]"]);
  });

  it("by the names of an environment, and the passwords of its URLs", () => {
    const env = {
      OPENAI_API_KEY: "not-by-shape-1",
      DB_PASSWORD: "correct horse",
      AWS_ACCESS_KEY_ID: "id-of-a-key",
      DATABASE_URL: "postgres://me:p%40ssw0rd-long@db/x",
      NODE_ENV: "production",
      KEYBOARD: "qwertz-layout",
      EMPTY_TOKEN: undefined,
    };
    const found = secrets({ env });
    expect(redacted(found, "not-by-shape-1|correct horse|id-of-a-key|p@ssw0rd-long|p%40ssw0rd-long")).toBe(
      "[secret]|[secret]|[secret]|[secret]|[secret]",
    );
    expect(judge(found, "production qwertz-layout postgres")).toEqual({ action: "allow" });
    const ownNames = secrets({ env, envNames: /^NODE_/g });
    expect(redacted(ownNames, "production not-by-shape-1")).toBe("[secret] not-by-shape-1");
  });

  it("whatever characters it is made of, a lone surrogate too", () => {
    expect(redacted(secrets({ known: ["\ud800longer than 8"] }), "x\ud800longer than 8y")).toBe("x[secret]y");
  });
});

const jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.SflKxwRJSMeKKF2QT4";
const body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\nMzE=\n";

describe("redacts what it knows by its shape", () => {
  it.each<[string, string, string]>([
    ["AWS", "id AKIAIOSFODNN7EXAMPLE.", "id [secret]."],
    [
      "AWS secret",
      `aws_secret_access_key = ${"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}`,
      "aws_secret_access_key = [secret]",
    ],
    ["GitHub", `ghp_${"a1".repeat(18)} github_pat_${"b2".repeat(15)}`, "[secret] [secret]"],
    ["GitLab", `glpat-${"c3".repeat(10)}`, "[secret]"],
    ["Slack", "xoxb-123456789012-abcdefGHIJ xapp-1-A012-345-abcdef", "[secret] [secret]"],
    ["Stripe", `sk_live_${"d4".repeat(12)}`, "[secret]"],
    ["Google", `AIza${"e5".repeat(17)}f ya29.${"g6".repeat(12)}`, "[secret] [secret]"],
    ["OpenAI and Anthropic", `sk-proj-${"h7".repeat(20)},sk-ant-api03-${"i8".repeat(20)}`, "[secret],[secret]"],
    ["a webhook's private key", `whsk_${"k0".repeat(16)}=`, "[secret]"],
    ["Drover", `drv_${"j9".repeat(20)} whsec_${"k0".repeat(16)}==`, "[secret] [secret]"],
    ["JWT", `token=${jwt};`, "token=[secret];"],
    ["Bearer", `Authorization: Bearer abc123def456ghi7==`, "Authorization: Bearer [secret]"],
    ["Basic", `"authorization": "Basic ${base64("me:pw")}"`, '"authorization": "Basic [secret]"'],
    ["URL", "postgres://me:p4ss:w@db.example:5432/x", "postgres://me:[secret]@db.example:5432/x"],
    ["URL without a user", "redis://:p4ss@db", "redis://:[secret]@db"],
    ["PEM", `a -----BEGIN RSA PRIVATE KEY-----\n${body}-----END RSA PRIVATE KEY----- b`, "a [secret] b"],
    ["PEM in JSON", JSON.stringify(`-----BEGIN PRIVATE KEY-----\n${body}-----END PRIVATE KEY-----\n`), '"[secret]\\n"'],
    ["PEM that was cut", `-----BEGIN PRIVATE KEY-----\n${body.slice(0, 60)}`, "[secret]"],
    [
      "PEM that was cut, prose behind",
      `-----BEGIN PRIVATE KEY-----\n${body.slice(0, 32)}\nand so on`,
      "[secret]\nand so on",
    ],
    ["PGP", `-----BEGIN PGP PRIVATE KEY BLOCK-----\nx: y\n\nabc\n-----END PGP PRIVATE KEY BLOCK-----`, "[secret]"],
  ])("%s", (_, text, expected) => {
    expect(redacted(policy, text)).toBe(expected);
  });

  it("counting kinds", () => {
    const text = `hunter2hunter2 ${jwt} drv_${"a1".repeat(20)} redis://:p4ss@db`;
    expect(judge(secrets({ known: ["hunter2hunter2"], action: "block" }), text)).toEqual({
      action: "block",
      reason: "1 known secret, 1 password in a URL, 2 API keys or tokens",
    });
  });
});

describe("the search for many texts", () => {
  it("finds what a search for each finds", () => {
    const letters = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 5 });
    const text = fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 40 });
    fc.assert(
      fc.property(fc.array(letters, { maxLength: 6 }), text, (literals, text) => {
        const covered = [...text].map((_, at) =>
          literals.some((literal) => {
            const first = text.indexOf(literal, Math.max(0, at - literal.length + 1));
            return first >= 0 && first <= at;
          }),
        );
        const found = covered.map(() => false);
        for (const [start, end] of literalSearch(literals)(text)) found.fill(true, start, end);
        expect(found).toEqual(covered);
      }),
      { numRuns: 2_000 },
    );
  });
});
