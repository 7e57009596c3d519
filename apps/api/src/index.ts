export { type Api, type ApiDeps, startApi } from "./api.ts";
export { type ApiProcessConfig, apiConfig, apiProcessConfig } from "./config.ts";
export { bootstrap, createKey, type KeyRecord, listKeys, type NewKey, type Role, revokeKey, roles } from "./keys.ts";
