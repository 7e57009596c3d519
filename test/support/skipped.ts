/** Says at the end what was not run: nothing, or the run fails. Whoever asks for single tests by name (`-t`) skips the others on purpose. */
import type { Reporter, TestModule, Vitest } from "vitest/node";

export default class Skipped implements Reporter {
  #byName = false;

  onInit(vitest: Vitest): void {
    this.#byName = vitest.config.testNamePattern !== undefined;
  }

  onTestRunEnd(modules: readonly TestModule[]): void {
    if (this.#byName) return;
    const skipped = modules.flatMap((file) =>
      [...file.children.allTests("skipped")].map((test) => `${file.relativeModuleId} > ${test.fullName}`),
    );
    console.log(`skipped: ${skipped.length === 0 ? "nothing" : `\n  ${skipped.join("\n  ")}`}`);
    if (skipped.length > 0) process.exitCode = 1;
  }
}
