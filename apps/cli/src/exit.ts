/** How a command ends: the exit codes scripts rely on, and the one error that carries them. */
import type { FieldError } from "@drover/protocol";

export const exitCodes = {
  done: 0,
  failed: 1,
  usage: 2,
  unreachable: 3,
  refused: 4,
  notFound: 5,
  rejected: 6,
  partial: 7,
  notFinal: 8,
  interrupted: 130,
} as const;
export type ExitCode = (typeof exitCodes)[keyof typeof exitCodes];

/** What each code means; `--help` and `docs/cli.md` show it, and a test holds them together. */
export const exitMeanings: Record<keyof typeof exitCodes, string> = {
  done: "done; the run completed",
  failed: "the run failed or was cancelled, or the command could not do its work",
  usage: "wrong usage or configuration; nothing was done",
  unreachable: "the service cannot be reached, or is not available now",
  refused: "the API key is missing, unknown or revoked, or its role does not allow this",
  notFound: "there is no such run, approval or key",
  rejected: "the service did not accept the request: invalid, in conflict, too large, too many",
  partial: "the run ended early with a partial result",
  notFinal: "the run has not ended yet",
  interrupted: "stopped by Ctrl-C; the run goes on",
};

/** Ends the command: `message` and the `more` lines go to standard error. Never carries a secret. */
export class CliError extends Error {
  readonly exitCode: ExitCode;
  readonly more: string[];
  constructor(exitCode: ExitCode, message: string, more: string[] = []) {
    super(message);
    this.name = "CliError";
    this.exitCode = exitCode;
    this.more = more;
  }
}

/** One line for each wrong field of a validation. */
export const fieldLines = (errors: readonly FieldError[] = []): string[] =>
  errors.map(({ path, message }) => (path ? `${path}: ${message}` : message));
