export { type BatcherOptions, briefLocks, createBatcher, throughOutages } from "./batcher.ts";
export { type Blobs, postgresBlobs } from "./blobs.ts";
export { type StorageConfig, storageConfig } from "./config.ts";
export {
  bounded,
  type DatabaseOptions,
  type Fault,
  faultOf,
  openPool,
  type Pool,
  type Queryable,
  TooLongError,
  type Transaction,
  transaction,
} from "./database.ts";
export { type EmbeddedPostgres, type EmbeddedPostgresOptions, startEmbeddedPostgres } from "./embedded.ts";
export { grantAppRole } from "./grants.ts";
export { storableJson, storableText } from "./json.ts";
export { isMigrated, latestMigration, migrate } from "./migrate.ts";
export { dropMonth, ensurePartitions, type Month, partitionsAhead, readMonths } from "./partitions.ts";
export { plannedAnew } from "./prepared.ts";
