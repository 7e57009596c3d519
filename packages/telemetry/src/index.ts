export { addSecret, createLogger, type Logger, scrub } from "./logger.ts";
