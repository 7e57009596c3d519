/** What is no id, an unknown id and another tenant's id answer alike. */
import { DroverError, fromWireId, type IdKind } from "@drover/protocol";

const names: Partial<Record<IdKind, string>> = {
  run: "query",
  batch: "batch",
  endpoint: "webhook endpoint",
  delivery: "delivery",
  approval: "approval",
};

/** @throws DroverError `not_found`, always */
export function missing(kind: IdKind): never {
  throw new DroverError("not_found", `There is no such ${names[kind]}.`);
}

/** The uuid of a wire id. @throws DroverError `not_found` when it is not one of that kind */
export const requireId = (kind: IdKind, id: string): string => fromWireId(kind, id) ?? missing(kind);
export const runId = (id: string): string => requireId("run", id);
