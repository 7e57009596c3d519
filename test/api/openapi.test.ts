import { errorCodes, errorTable, submitBody } from "@drover/protocol";
import { Validator } from "@seriousme/openapi-schema-validator";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Operation } from "./contract.ts";
import { startWorld, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world.close());

const operations = (): [string, Operation][] =>
  Object.entries(world.document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]): [string, Operation] => [
      `${method.toUpperCase()} ${path}`,
      operation,
    ]),
  );

test("the document is valid OpenAPI 3.1 and needs no key", async () => {
  const { headers, status } = await world.get("/openapi.json", { key: null });
  expect(status).toBe(200);
  expect(headers.get("content-type")).toMatch(/^application\/json/);
  expect(world.document.openapi).toBe("3.1.0");
  const result = await new Validator().validate(structuredClone(world.document) as never);
  expect(result).toMatchObject({ valid: true });
});

test("it is readable in a browser at /docs", async () => {
  const response = await fetch(`${world.url}/docs`);
  expect(response.status).toBe(200);
  expect(await response.text()).toContain("swagger-ui");
  expect((await fetch(`${world.url}/docs/json`)).status).toBe(200);
});

test("every route of the contract is in it", () => {
  expect(
    operations()
      .map(([name]) => name)
      .sort(),
  ).toEqual(
    [
      "DELETE /webhooks/{id}",
      "GET /approvals",
      "GET /approvals/link/{token}",
      "GET /approvals/{id}",
      "GET /audit",
      "GET /budget",
      "GET /events",
      "GET /execution/{id}",
      "GET /health",
      "GET /metrics",
      "GET /openapi.json",
      "GET /query",
      "GET /query/batch/{id}",
      "GET /query/result/{id}",
      "GET /query/status/{id}",
      "GET /query/{id}/approvals",
      "GET /query/{id}/artifacts/{artifact}",
      "GET /query/{id}/deliveries",
      "GET /query/{id}/events",
      "GET /ready",
      "GET /webhooks",
      "GET /webhooks/secret",
      "GET /webhooks/{id}",
      "GET /webhooks/{id}/public-key",
      "PATCH /webhooks/{id}",
      "POST /agent/query",
      "POST /approvals/link/{token}",
      "POST /approvals/{id}",
      "POST /approvals/{id}/link",
      "POST /deliveries/{id}/redeliver",
      "POST /query",
      "POST /query/async",
      "POST /query/batch",
      "POST /query/batch/{id}/cancel",
      "POST /query/with-callback",
      "POST /query/{id}/budget",
      "POST /query/{id}/cancel",
      "POST /query/{id}/retry",
      "POST /query/{id}/rollback",
      "POST /webhooks",
      "POST /webhooks/secret/rotate",
      "POST /webhooks/{id}/rotate-secret",
      "POST /webhooks/{id}/test",
      "PUT /budget",
    ].sort(),
  );
});

test("every operation says what it does, which errors it can answer, and who may ask", () => {
  const pages = ["GET /approvals/link/{token}", "POST /approvals/link/{token}"];
  const open = ["GET /health", "GET /ready", "GET /metrics", "GET /openapi.json", ...pages];
  const ids = new Set<string>();
  for (const [name, operation] of operations()) {
    expect(operation.summary, name).toBeTruthy();
    expect(operation.tags, name).toHaveLength(1);
    ids.add(operation.operationId);
    expect(operation.responses["500"], name).toBeDefined();
    for (const [status, response] of Object.entries(operation.responses))
      expect(response.description, `${name} ${status}`).not.toMatch(/^(Default Response)?$/);
    if (open.includes(name)) expect(operation.security, name).toEqual([]);
    else {
      expect(operation["x-scope"], name).toBeTruthy();
      for (const status of ["400", "401", "403", "503"])
        expect(operation.responses[status], `${name} ${status}`).toBeDefined();
      if (name.includes("{id}")) expect(operation.responses["404"], name).toBeDefined();
      if (operation.requestBody) expect(operation.responses["413"], name).toBeDefined();
    }
  }
  expect(ids.size).toBe(operations().length);
});

test("the codes each answer may carry stand in the table under that status, and all codes stand in the document", () => {
  const seen = new Set<string>();
  for (const [name, operation] of operations())
    for (const [status, response] of Object.entries(operation.responses))
      for (const code of JSON.stringify(response.content ?? {})
        .match(/"enum":\[[^\]]*\]/g)
        ?.flatMap((list) => JSON.parse(list.slice(7))) ?? []) {
        if (!errorCodes.includes(code) || Number(status) < 400) continue;
        expect(errorTable[code as keyof typeof errorTable].status, `${name} ${status} ${code}`).toBe(Number(status));
        seen.add(code);
      }
  // Codes of a run, of limits that are not built yet, and of answers that have a document of their own.
  const elsewhere = ["rate_limit_exceeded", "quota_exceeded", "loop_limit_exceeded", "tool_error"];
  expect(errorCodes.filter((code) => errorTable[code].status !== null && !seen.has(code)).sort()).toEqual(
    elsewhere.sort(),
  );
  expect(world.document.components.schemas.ErrorCode).toMatchObject({ enum: errorCodes });
  expect(world.document.components.schemas.RunProblem).toBeDefined();
});

test("what is documented of a submission is what is validated", () => {
  const documented = world.document.components.schemas.Submit as {
    properties: object;
    additionalProperties: boolean;
  };
  expect(Object.keys(documented.properties)).toEqual(Object.keys(submitBody.shape));
  expect(documented.additionalProperties).toBe(false);
  expect(documented).toHaveProperty("examples");
});
