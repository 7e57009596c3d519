/**
 * A network that loses packets, between a process of ours and a port on 127.0.0.1: a network namespace of its own, with the kernel's TCP on both
 * sides. Where the machine does not let us make one, a proxy that holds bytes back for the same time stands in; `kind` says which.
 */
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { connect, createServer } from "node:net";
import { startProxy } from "./proxy.ts";

export interface LossyNetwork {
  kind: "network namespace" | "proxy";
  /** Where a process in it reaches the port. */
  host: string;
  port: number;
  /** What a process in it is started through: see `spawnNode`. */
  through: string[];
  /** While on, no packet gets in or out, and nobody is told. */
  lose(on: boolean): void;
  close(): Promise<void>;
}

export async function lossyNetwork(targetPort: number): Promise<LossyNetwork> {
  const name = `drover-${process.pid}-${targetPort}`;
  // Point-to-point addresses of the range for tests of networks (RFC 2544), one pair a namespace.
  const third = process.pid % 250;
  const fourth = (targetPort % 60) * 4;
  const [outside, inside] = [`198.18.${third}.${fourth + 1}`, `198.18.${third}.${fourth + 2}`];
  const link = `dr${process.pid % 100_000}x${targetPort % 1000}`;
  const run = (command: string) => execFileSync("sh", ["-ec", command], { stdio: ["ignore", "ignore", "pipe"] });
  const within = (command: string) => run(`ip netns exec ${name} ${command}`);
  try {
    run(`ip netns add ${name}
      ip link add ${link} type veth peer name in0 netns ${name}
      ip addr add ${outside}/30 dev ${link}
      ip link set ${link} up
      ip netns exec ${name} ip addr add ${inside}/30 dev in0
      ip netns exec ${name} ip link set in0 up
      ip netns exec ${name} iptables -w -L -n`);
  } catch {
    execFileSync("sh", ["-c", `ip netns del ${name} 2>/dev/null; ip link del ${link} 2>/dev/null; true`]);
    const proxy = await startProxy(targetPort);
    return {
      kind: "proxy",
      host: "127.0.0.1",
      port: proxy.port,
      through: [],
      lose: (on) => proxy.blackhole(on),
      close: () => proxy.close(),
    };
  }
  const server = createServer((client) => {
    const target = connect(targetPort, "127.0.0.1");
    for (const [from, to] of [
      [client, target],
      [target, client],
    ] as const) {
      from.pipe(to);
      from.on("error", () => to.destroy());
    }
  }).listen(0, outside);
  await once(server, "listening");
  return {
    kind: "network namespace",
    host: outside,
    port: (server.address() as { port: number }).port,
    through: ["ip", "netns", "exec", name],
    // Statements first: they come through late, when the kernel sends them again.
    lose(on) {
      for (const chain of ["OUTPUT", "INPUT"]) within(`iptables -w ${on ? "-A" : "-D"} ${chain} -j DROP`);
    },
    async close() {
      server.close();
      run(`ip netns del ${name}; ip link del ${link} 2>/dev/null || true`);
    },
  };
}
