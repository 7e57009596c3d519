/** Which addresses may be reached: public unicast ones, and those the operator allows. Anything not understood may not. */
import ipaddr from "ipaddr.js";

export type Cidr = [ipaddr.IPv4 | ipaddr.IPv6, number];

/** Public by their number, but the cloud host's own agent answers there (Azure's wire server). */
const hostAgents: Cidr[] = [ipaddr.parseCIDR("168.63.129.16/32")];
/** The only IPv6 space given out for global unicast; outside lie `::127.0.0.1`, NAT64 and more. */
const globalUnicast = ipaddr.parseCIDR("2000::/3");

/**
 * Whether an IP address (as a resolver or a socket gives it) may be reached. IPv4-mapped IPv6 counts as the IPv4 address in
 * it; other transitions (NAT64, 6to4, Teredo) are refused unless `allow` covers their IPv6 form.
 */
export function permitted(address: string, allow: readonly Cidr[]): boolean {
  let ip: ipaddr.IPv4 | ipaddr.IPv6;
  try {
    ip = ipaddr.process(address);
  } catch {
    return false;
  }
  if (within(ip, allow)) return true;
  if (ip.range() !== "unicast" || within(ip, hostAgents)) return false;
  return ip.kind() === "ipv4" || ip.match(globalUnicast);
}

function within(ip: ipaddr.IPv4 | ipaddr.IPv6, cidrs: readonly Cidr[]): boolean {
  return cidrs.some(([network, bits]) => network.kind() === ip.kind() && ip.match(network, bits));
}

/**
 * Comma-separated CIDRs (`10.1.0.0/16, fd00::/8`), empty for none. Returns them one by one, trimmed.
 * @throws Error naming the first entry that is not one.
 */
export function parseCidrs(text: string): string[] {
  const entries = text
    .split(",")
    .map((entry) => entry.trim())
    .filter((entry) => entry !== "");
  for (const entry of entries) toCidr(entry);
  return entries;
}

/** IPv4 only in its four-part decimal form: `010.0.0.0/8` would be read as 8.0.0.0/8. */
export function toCidr(text: string): Cidr {
  if (ipaddr.IPv4.isValidCIDRFourPartDecimal(text)) return ipaddr.IPv4.parseCIDR(text);
  if (text.includes(":") && ipaddr.IPv6.isValidCIDR(text)) {
    const [network, bits] = ipaddr.IPv6.parseCIDR(text);
    if (!network.isIPv4MappedAddress()) return [network, bits];
    throw new Error(`"${text}" is IPv4 written as IPv6: write the IPv4 CIDR instead`);
  }
  throw new Error(`"${text}" is not a CIDR such as 10.1.0.0/16, 10.1.2.3/32 or fd00::/8`);
}
