export { parseCidrs } from "./addresses.ts";
export { type EgressConfig, egressConfig } from "./config.ts";
export type { Lookup } from "./connector.ts";
export { createEgress, type Egress, type EgressOptions, type EgressRequest, type EgressResponse } from "./egress.ts";
export { EgressFailed, EgressRefused, EgressTimeout } from "./errors.ts";
export { validateUrl } from "./url.ts";
