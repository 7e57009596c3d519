#!/usr/bin/env node
// Plain JavaScript, so that an old Node gets the guard's one line instead of a syntax error.
import "../../../scripts/guard.mjs";

await import("../src/main.ts");
