/**
 * Who a process is, so that another one can tell for certain that it is gone: what only holds on the same machine since the same start, in the
 * same namespace of process ids. Where the system does not say (no Linux), nothing is certain. Sources: Linux manual, proc_pid_stat(5),
 * pid_namespaces(7), random(4).
 */
import { readFileSync, readlinkSync } from "node:fs";

/** `<boot id>/<pid namespace>/<pid>/<start time>` of a process of this machine; null where that cannot be known. */
export function identify(pid: number): string | null {
  try {
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    const { startedAt } = statOf(pid);
    return [boot, readlinkSync("/proc/self/ns/pid"), pid, startedAt].join("/");
  } catch {
    return null;
  }
}

/**
 * Whether the process `other` is certainly gone, seen from the process `own`: both as `identify` gave them. A pid that somebody else has now does
 * not hide it; false whenever there is a doubt.
 */
export function isGone(own: string | null, other: string | null): boolean {
  const [here, there] = [own?.split("/"), other?.split("/")];
  if (here?.length !== 4 || there?.length !== 4 || here[0] !== there[0] || here[1] !== there[1]) return false;
  const pid = Number(there[2]);
  if (!Number.isSafeInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
  } catch (error) {
    // EPERM: it lives, and is somebody else's.
    return (error as NodeJS.ErrnoException).code === "ESRCH";
  }
  try {
    const { state, startedAt } = statOf(pid);
    // Ended, and its parent has not asked yet.
    return startedAt !== there[3] || state === "Z" || state === "X";
  } catch {
    return false;
  }
}

/** `startedAt`: in clock ticks since the machine's start, as the system writes it. */
function statOf(pid: number): { state: string; startedAt: string } {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  // The name before it may hold spaces and parentheses.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0]!, startedAt: fields[19]! };
}
