/** Errors on the wire: `application/problem+json` (RFC 9457) with a code of the error table. */
import { z } from "zod";
import { type ErrorCode, errorCodes, errorTable, type FieldError } from "./errors.ts";

export const problemType = (code: ErrorCode): string => `urn:drover:error:${code}`;

export const fieldError = z
  .object({
    path: z
      .string()
      .describe("the field, such as `queries[17].query` or `limits.soft_seconds`; empty for the body as a whole"),
    message: z.string(),
  })
  .meta({ id: "FieldError" });

export const errorCode = z
  .enum(errorCodes)
  .describe(
    "Stable; clients branch on it. Those without an HTTP status only appear as `error.code` or `stop_reason` of a run.",
  )
  .meta({ id: "ErrorCode" });

export const problem = z
  .object({
    type: z.string().describe("`urn:drover:error:` and the code"),
    title: z.string(),
    status: z.int(),
    detail: z.string().describe("what went wrong this time, for people"),
    code: errorCode,
    request_id: z.string(),
    errors: z
      .array(fieldError)
      .optional()
      .describe("every wrong field of an `invalid_input`, the first hundred of them"),
  })
  .meta({
    id: "Problem",
    examples: [
      {
        type: problemType("invalid_input"),
        title: errorTable.invalid_input.title,
        status: 400,
        detail: "limits.soft_seconds: must be less than limits.hard_seconds (600)",
        code: "invalid_input",
        request_id: "req_0mf3k2a7x1",
        errors: [{ path: "limits.soft_seconds", message: "must be less than limits.hard_seconds (600)" }],
      },
    ],
  });
export type Problem = z.infer<typeof problem>;

/** The problem document of a code. `code` must be one that has an HTTP status. */
export function toProblem(code: ErrorCode, detail: string, requestId: string, errors?: FieldError[]): Problem {
  const { status, title } = errorTable[code];
  return {
    type: problemType(code),
    title,
    status: status ?? 500,
    detail,
    code,
    request_id: requestId,
    ...(errors && { errors }),
  };
}
