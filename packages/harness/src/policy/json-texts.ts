/**
 * Goes through every text of a JSON value: strings, numbers as they are written, and the keys of objects. Without recursion, so
 * that no depth of nesting overflows the stack.
 */

/**
 * A copy of `value` with `change` applied to each text; `value` itself is left alone. The shape stays: as many items, as many keys.
 * A number whose text changes becomes that text. Keys that become the same are told apart by a number: `[email]`, `[email] 2`.
 */
export function mapTexts(value: unknown, change: (text: string) => string): unknown {
  const open: { from: object; to: unknown[] | Record<string, unknown> }[] = [];
  const copy = (child: unknown): unknown => {
    if (typeof child === "string") return change(child);
    if (typeof child === "number") {
      const text = String(child);
      const changed = change(text);
      return changed === text ? child : changed;
    }
    if (child === null || typeof child !== "object") return child;
    const to = Array.isArray(child) ? [] : {};
    open.push({ from: child, to });
    return to;
  };
  const answer = copy(value);
  for (let pair = open.pop(); pair !== undefined; pair = open.pop()) {
    const { from, to } = pair;
    if (Array.isArray(to)) for (const child of from as unknown[]) to.push(copy(child));
    else for (const [key, child] of changedKeys(from, change)) setOwn(to, key, copy(child));
  }
  return answer;
}

/** The entries of `from` under their new keys, each key once. */
function changedKeys(from: object, change: (text: string) => string): [string, unknown][] {
  const entries = Object.entries(from).map(([key, child]) => ({ key, changed: change(key), child }));
  const taken = new Set(entries.filter(({ key, changed }) => key === changed).map(({ key }) => key));
  const lastNumber = new Map<string, number>();
  return entries.map(({ key, changed, child }) => {
    if (key === changed) return [key, child];
    let number = lastNumber.get(changed) ?? 1;
    let free = number === 1 ? changed : `${changed} ${number}`;
    while (taken.has(free)) free = `${changed} ${++number}`;
    lastNumber.set(changed, number);
    taken.add(free);
    return [free, child];
  });
}

/** `__proto__` is a key like any other in JSON; assigning it would set the prototype instead. */
function setOwn(to: Record<string, unknown>, key: string, child: unknown): void {
  if (key !== "__proto__") to[key] = child;
  else Object.defineProperty(to, key, { value: child, writable: true, enumerable: true, configurable: true });
}
