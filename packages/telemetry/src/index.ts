export { addSecret, createLogger, everyLine, type Logger, scrub } from "./logger.ts";
export { collectProcessMetrics, metrics, metricsContentType, metricsText } from "./metrics.ts";
export { logLevels, logRecord, oneLine, printable, readableLine, tonedLine } from "./readable.ts";
export { secretShapes } from "./secret-shapes.ts";
export { asThrown, messageOf } from "./thrown.ts";
