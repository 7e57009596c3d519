import type { EventType } from "@drover/harness";
import {
  errorCodes,
  errorTable,
  eventTypes,
  fromWireId,
  type IdKind,
  idPrefixes,
  type RunStatus,
  runStatuses,
  stopReasons,
  submitBatchBody,
  submitBody,
  toProblem,
  toWireId,
  uuidv7,
} from "@drover/protocol";
import { statuses } from "@drover/runs";
import fc from "fast-check";
import { expect, expectTypeOf, test } from "vitest";

test("statuses and event types on the wire are those inside", () => {
  expect(runStatuses).toEqual(statuses);
  expectTypeOf<(typeof eventTypes)[number]>().toEqualTypeOf<EventType>();
  expectTypeOf<RunStatus>().toEqualTypeOf<(typeof statuses)[number]>();
  expect(new Set(eventTypes).size).toBe(eventTypes.length);
});

test("every code makes a problem document with the table's status and title", () => {
  for (const code of errorCodes) {
    const problem = toProblem(code, "detail", "req_1");
    expect(problem).toEqual({
      type: `urn:drover:error:${code}`,
      title: errorTable[code].title,
      status: errorTable[code].status ?? 500,
      detail: "detail",
      code,
      request_id: "req_1",
    });
  }
  for (const reason of stopReasons) expect(errorCodes).toContain(reason);
});

test("ids go to the wire and back; nothing else is an id", () => {
  for (const kind of Object.keys(idPrefixes) as IdKind[]) {
    const uuid = uuidv7();
    expect(fromWireId(kind, toWireId(kind, uuid))).toBe(uuid);
    for (const other of Object.keys(idPrefixes) as IdKind[])
      if (other !== kind) expect(fromWireId(other, toWireId(kind, uuid))).toBeNull();
  }
  fc.assert(
    fc.property(fc.string(), (text) => {
      const id = fromWireId("run", text);
      return id === null || toWireId("run", id) === text;
    }),
  );
});

test("a submission that is valid is valid as a batch's item and as its defaults", () => {
  const text = fc
    .string({ minLength: 1, maxLength: 50 })
    .filter((value) => !value.includes("\0") && value.isWellFormed());
  // `__proto__` does not get this far: the JSON parser refuses it.
  const key = (keys: fc.Arbitrary<string>) => keys.filter((name) => name !== "__proto__");
  const body = fc.record(
    {
      query: text.filter((value) => value.trim() !== ""),
      user_id: text,
      system_prompt: text,
      temperature: fc.double({ min: 0, max: 2, noNaN: true }),
      max_iterations: fc.integer({ min: 1, max: 50 }),
      priority: fc.integer({ min: 0, max: 9 }),
      metadata: fc.dictionary(key(text), text, { maxKeys: 16 }),
      context: fc.dictionary(key(fc.string()), fc.jsonValue({ maxDepth: 3 })),
      retry: fc.record({ max_attempts: fc.integer({ min: 1, max: 10 }) }),
    },
    { requiredKeys: ["query"] },
  );
  fc.assert(
    fc.property(body, (submission) => {
      const { query, ...defaults } = submission;
      expect(submitBody.parse(submission)).toEqual(submission);
      const batch = { queries: [query, submission], ...defaults };
      expect(submitBatchBody.parse(batch)).toEqual(batch);
    }),
    { numRuns: 50 },
  );
});
