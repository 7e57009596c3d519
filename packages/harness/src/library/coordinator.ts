/** Transactions over a state object in memory: all of a change, or nothing of it; and the last one can be taken back. */
import { AsyncLocalStorage } from "node:async_hooks";

interface Committed {
  name: string;
  state: object;
  before: Snapshot;
}

const mostRemembered = 100;

/**
 * For agents whose state is an object of the process, such as a graph's. The state must be what `structuredClone` copies. Transactions on one
 * state come one after the other, in the order they were asked for. Nothing survives the process; effects outside it are the business of
 * `compensate` and of rollback runs.
 */
export class RollbackCoordinator {
  readonly #committed: Committed[] = [];
  /** Of each state, when its last transaction so far is over. */
  readonly #last = new WeakMap<object, Promise<void>>();
  readonly #underWay = new Map<object, string>();
  readonly #inside = new AsyncLocalStorage<readonly object[]>();

  /** Names of what is committed and can be taken back, the last one last. */
  get history(): string[] {
    return this.#committed.map(({ name }) => name);
  }

  /**
   * Runs `change` on the state and returns what it returns. When it throws, the state and every object in it are what they were before (the same
   * objects, their old contents) and the error goes on to the caller. @throws DOMException `DataCloneError` when the state cannot be copied;
   * Error when it is called inside of a transaction on the same state: it would wait for itself. Nothing has run then
   */
  async transaction<S extends object, T>(state: S, name: string, change: (state: S) => T | Promise<T>): Promise<T> {
    const outer = this.#inside.getStore() ?? [];
    if (outer.includes(state))
      throw new Error(`"${name}" is inside of the transaction "${this.#underWay.get(state)}" on the same state`);
    const before = this.#last.get(state);
    const over = Promise.withResolvers<void>();
    this.#last.set(state, over.promise);
    try {
      await before;
      this.#underWay.set(state, name);
      return await this.#inside.run([...outer, state], () => this.#change(state, name, change));
    } finally {
      this.#underWay.delete(state);
      over.resolve();
    }
  }

  async #change<S extends object, T>(state: S, name: string, change: (state: S) => T | Promise<T>): Promise<T> {
    const before = snapshotOf(state);
    try {
      const result = await change(state);
      this.#committed.push({ name, state, before });
      if (this.#committed.length > mostRemembered) this.#committed.shift();
      return result;
    } catch (error) {
      restore(before);
      throw error;
    }
  }

  /**
   * Takes back the last committed transaction that is not taken back yet, and returns its name; null when there is none. @throws Error while
   * another transaction is under way on its state
   */
  rollbackLast(): string | null {
    const last = this.#committed.at(-1);
    if (!last) return null;
    const underWay = this.#underWay.get(last.state);
    if (underWay !== undefined)
      throw new Error(`"${last.name}" cannot be taken back while "${underWay}" is under way on the same state`);
    this.#committed.pop();
    restore(last.before);
    return last.name;
  }
}

/** Every object of a state, each with what puts its own contents back. */
type Snapshot = (() => void)[];

/** @throws DOMException `DataCloneError` */
function snapshotOf(state: object): Snapshot {
  // It knows what can be copied; what is in it is remembered object by object, so that each can be given back its own.
  structuredClone(state);
  const snapshot: Snapshot = [];
  const seen = new Set<object>([state]);
  const add = (value: unknown) => {
    if (typeof value === "object" && value !== null) seen.add(value);
  };
  // What is added on the way is visited too.
  for (const object of seen) snapshot.push(remember(object, add));
  return snapshot;
}

/** What gives `object` its present contents back; `add` is told of the objects in it. */
function remember(object: object, add: (value: unknown) => void): () => void {
  if (object instanceof Date) {
    const time = object.getTime();
    return () => object.setTime(time);
  }
  if (object instanceof ArrayBuffer || ArrayBuffer.isView(object)) {
    const bytes = bytesOf(object);
    const copy = bytes.slice();
    return () => bytes.set(copy);
  }
  if (object instanceof Map) {
    const entries = [...object];
    for (const entry of entries) entry.forEach(add);
    return () => {
      object.clear();
      for (const [key, value] of entries) object.set(key, value);
    };
  }
  if (object instanceof Set) {
    const members = [...object];
    members.forEach(add);
    return () => {
      object.clear();
      for (const member of members) object.add(member);
    };
  }
  const properties = Object.getOwnPropertyDescriptors(object);
  for (const property of Object.values(properties)) add(property.value);
  return () => {
    for (const key of Object.keys(object)) if (!Object.hasOwn(properties, key)) Reflect.deleteProperty(object, key);
    Object.defineProperties(object, properties);
  };
}

const bytesOf = (data: ArrayBuffer | ArrayBufferView): Uint8Array =>
  data instanceof ArrayBuffer ? new Uint8Array(data) : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

function restore(before: Snapshot): void {
  for (const putBack of before) putBack();
}
