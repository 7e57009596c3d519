/** Transactions over a state object in memory: all of a change, or nothing of it; and the last one can be taken back. */

interface Committed {
  name: string;
  state: object;
  before: object;
}

const mostRemembered = 100;

/**
 * For agents whose state is an object of the process, such as a graph's. The state must be what `structuredClone` copies. Nothing survives
 * the process; effects outside it are the business of `compensate` and of rollback runs.
 */
export class RollbackCoordinator {
  readonly #committed: Committed[] = [];

  /** Names of what is committed and can be taken back, the last one last. */
  get history(): string[] {
    return this.#committed.map(({ name }) => name);
  }

  /**
   * Runs `change` on the state and returns what it returns. When it throws, the state is what it was before (the same object, its old
   * contents) and the error goes on to the caller. @throws DOMException `DataCloneError` when the state cannot be copied; nothing has run then
   */
  async transaction<S extends object, T>(state: S, name: string, change: (state: S) => T | Promise<T>): Promise<T> {
    const before = structuredClone(state);
    try {
      const result = await change(state);
      this.#committed.push({ name, state, before });
      if (this.#committed.length > mostRemembered) this.#committed.shift();
      return result;
    } catch (error) {
      restore(state, before);
      throw error;
    }
  }

  /** Takes back the last committed transaction that is not taken back yet, and returns its name; null when there is none. */
  rollbackLast(): string | null {
    const last = this.#committed.pop();
    if (!last) return null;
    restore(last.state, last.before);
    return last.name;
  }
}

/** Gives an object its old contents; whoever holds it sees them. */
function restore(state: object, before: object): void {
  if (Array.isArray(state)) {
    state.length = 0;
    for (const member of before as unknown[]) state.push(member);
  } else if (state instanceof Map) refill(state, before as Map<unknown, unknown>);
  else if (state instanceof Set) {
    state.clear();
    for (const member of before as Set<unknown>) state.add(member);
  } else {
    for (const key of Object.keys(state)) delete (state as Record<string, unknown>)[key];
    Object.assign(state, before);
  }
}

function refill(map: Map<unknown, unknown>, entries: Map<unknown, unknown>): void {
  map.clear();
  for (const [key, value] of entries) map.set(key, value);
}
