export { addSecret, createLogger, type Logger, scrub } from "./logger.ts";
export { collectProcessMetrics, metrics, metricsContentType, metricsText } from "./metrics.ts";
export { secretShapes } from "./secret-shapes.ts";
export { asThrown, messageOf } from "./thrown.ts";
