/**
 * Writes the documentation that is data: `docs/errors.md` from the error table, the configuration table of the README from the schemas that
 * validate the environment, and `docs/schema.sql` from the migrations. `npm run docs`; tests hold them against the code.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { apiProcessConfig } from "@drover/api";
import {
  type ConfigVariable,
  describeConfig,
  type ErrorCode,
  errorCodes,
  errorTable,
  stopReasons,
} from "@drover/protocol";
import { workerProcessConfig } from "@drover/worker";
import { newSchemaPage, schemaPath } from "./schema.ts";

export const errorsPath = new URL("../docs/errors.md", import.meta.url);
export const readmePath = new URL("../README.md", import.meta.url);
const markers = { begin: "<!-- config:begin -->", end: "<!-- config:end -->" };

/** What the commands read beside the processes' own configuration. */
const commandVariables: ConfigVariable[] = [
  {
    name: "DROVER_APP_ROLE",
    meaning:
      "database role that `drover migrate` grants what the processes need, and no more than inserts into the audit trail",
    default: null,
  },
  {
    name: "DROVER_DATA_DIR",
    meaning: "folder of `dev`: embedded Postgres, first API key, workspaces",
    default: ".drover",
  },
  {
    name: "DROVER_URL",
    meaning: "service that the client commands talk to (the one `dev` runs here, if any)",
    default: null,
  },
  {
    name: "DROVER_API_KEY",
    meaning: "API key of the client commands (the one `dev` made here, if any)",
    default: null,
  },
];

/** `docs/errors.md` as it must be. */
export function errorsPage(): string {
  const rows = (codes: readonly ErrorCode[], withStatus: boolean) =>
    codes.map((code) => {
      const { status, title, retryable, meaning } = errorTable[code];
      return [`\`${code}\``, ...(withStatus ? [String(status)] : []), title, retryable ? "yes" : "no", meaning];
    });
  const ofRequests = errorCodes.filter((code) => errorTable[code].status !== null);
  return `# Errors

Written by \`npm run docs\` from \`packages/protocol/src/errors.ts\`; do not edit.

Every error of the HTTP API is a problem document (RFC 9457, \`application/problem+json\`): \`type\` (\`urn:drover:error:\` and the code), \`title\`, \`status\`, \`detail\`, \`code\`, \`request_id\`, and for
\`invalid_input\` the wrong fields as \`errors: [{ path, message }]\`. Branch on \`code\`: it is stable. \`request_id\` is also in the header \`x-request-id\`, and finds the request in our logs.

## Of a request

${table([["Code", "Status", "Title", "Retry", "Meaning"], ...rows(ofRequests, true)])}

A synchronous call (\`POST /agent/query\`) whose run ends with nothing to show answers like \`GET /query/result/{id}\`: \`409 conflict\`, with the run's own \`error\` and its \`result\` beside the fields above. Two causes have a code of
their own there: \`iteration_limit\` is \`400 loop_limit_exceeded\`, and \`tool_error\` is \`422 tool_error\`.

## Of a run

\`stop_reason\` says why a run ended early, \`error.code\` why it failed. A cancelled run has \`error.code\` \`cancelled\`. "Retry" says whether the same query may succeed later without a change.

${table([["Code", "Title", "Retry", "Meaning"], ...rows(stopReasons, false)])}
`;
}

/** The configuration table as it must stand in the README. */
export function configTable(): string {
  const processes = [apiProcessConfig, workerProcessConfig];
  const variables = new Map<string, ConfigVariable>();
  for (const variable of [...processes.flatMap((schema) => describeConfig(schema)), ...commandVariables])
    if (!variables.has(variable.name)) variables.set(variable.name, variable);
  return table([
    ["Variable", "Meaning", "Default"],
    ...[...variables.values()].map(({ name, meaning, default: value }) => [
      `\`${name}\``,
      meaning.replaceAll("|", "\\|"),
      value === null ? "" : `\`${value}\``,
    ]),
  ]);
}

/** A Markdown table as the formatter writes it: columns of one width. */
function table(rows: string[][]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const line = (cells: string[]) => `| ${cells.map((cell, column) => cell.padEnd(widths[column]!)).join(" | ")} |`;
  const [head, ...body] = rows;
  return [head!, widths.map((width) => "-".repeat(width)), ...body].map(line).join("\n");
}

/** The README with its table as it must be. @throws Error when the markers are missing */
export function withConfigTable(readme: string): string {
  const begin = readme.indexOf(markers.begin);
  const end = readme.indexOf(markers.end);
  if (begin < 0 || end < begin) throw new Error(`README.md needs the lines ${markers.begin} and ${markers.end}`);
  return `${readme.slice(0, begin + markers.begin.length)}\n${configTable()}\n${readme.slice(end)}`;
}

if (import.meta.main) {
  writeFileSync(errorsPath, errorsPage());
  writeFileSync(readmePath, withConfigTable(readFileSync(readmePath, "utf8")));
  writeFileSync(schemaPath, await newSchemaPage());
}
