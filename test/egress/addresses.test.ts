import { createEgress, EgressRefused, egressConfig, type Lookup, parseCidrs, validateUrl } from "@drover/egress";
import fc from "fast-check";
import { describe, expect, it } from "vitest";

const refused = [
  // this network, loopback, link-local, private, carrier-grade NAT
  "0.0.0.0",
  "0.1.2.3",
  "127.0.0.1",
  "127.255.255.254",
  "169.254.169.254",
  "10.0.0.1",
  "172.16.0.1",
  "172.31.255.255",
  "192.168.1.1",
  "100.64.0.1",
  "100.100.100.200",
  "100.127.255.255",
  // protocol assignments, documentation, benchmarks, multicast, reserved, broadcast, AS112, AMT, 6to4 relays
  "192.0.0.192",
  "192.0.2.1",
  "198.51.100.7",
  "203.0.113.9",
  "198.18.0.1",
  "198.19.255.255",
  "224.0.0.1",
  "239.255.255.255",
  "240.0.0.1",
  "255.255.255.255",
  "192.175.48.1",
  "192.52.193.1",
  "192.88.99.1",
  // a cloud's own agent on a public number
  "168.63.129.16",
  // IPv6
  "::",
  "::1",
  "::127.0.0.1",
  "::ffff:127.0.0.1",
  "::ffff:a00:1",
  "::ffff:0:127.0.0.1",
  "::ffff:168.63.129.16",
  "64:ff9b::7f00:1",
  "64:ff9b::808:808",
  "64:ff9b:1::a00:1",
  "100::1",
  "2001::1",
  "2001:2::1",
  "2001:10::1",
  "2001:20::1",
  "2001:db8::1",
  "2002:7f00:1::",
  "2002:808:808::1",
  "3fff::1",
  "5f00::1",
  "4000::1",
  "fc00::1",
  "fd00:ec2::254",
  "fe80::1",
  "fec0::1",
  "ff02::1",
];
const reachable = [
  "1.1.1.1",
  "8.8.8.8",
  "9.255.255.255",
  "11.0.0.1",
  "100.63.255.255",
  "100.128.0.1",
  "126.0.0.1",
  "128.0.0.1",
  "168.63.129.15",
  "168.63.129.17",
  "172.15.255.255",
  "172.32.0.1",
  "192.167.255.255",
  "192.169.0.1",
  "223.255.255.255",
  "::ffff:8.8.8.8",
  "2606:4700:4700::1111",
  "2a00:1450:4001::1",
];
const inUrl = (address: string) => `https://${address.includes(":") ? `[${address}]` : address}/hook`;

describe("addresses", () => {
  it.each(refused)("%s is refused, written in the URL and found by DNS", async (address) => {
    expect(validateUrl(inUrl(address))).toBe("must not point to a private or reserved address");
    const lookup: Lookup = (_host, _options, callback) =>
      callback(null, [{ address, family: address.includes(":") ? 6 : 4 }]);
    const egress = createEgress({ lookup });
    const limits = { timeoutMs: 10_000, maxBytes: 10 };
    await expect(egress.request(inUrl(address), limits)).rejects.toBeInstanceOf(EgressRefused);
    await expect(egress.request("http://name.test/", limits)).rejects.toBeInstanceOf(EgressRefused);
    await egress.close();
  });

  it.each(reachable)("%s is public", (address) => {
    expect(validateUrl(inUrl(address))).toBeNull();
  });

  it("sees through every spelling that URL accepts", () => {
    const octet = fc.integer({ min: 0, max: 255 });
    const privateAddress = fc.oneof(
      fc.tuple(fc.constantFrom(0, 10, 127), octet, octet, octet),
      fc.tuple(fc.constant(192), fc.constant(168), octet, octet),
      fc.tuple(fc.constant(169), fc.constant(254), octet, octet),
    );
    fc.assert(
      fc.property(privateAddress, ([a, b, c, d]) => {
        const number = ((a * 256 + b) * 256 + c) * 256 + d;
        const hex = (part: number) => part.toString(16);
        const spellings = [
          `${a}.${b}.${c}.${d}`,
          `${a}.${b}.${c}.${d}.`,
          `${number}`,
          `0x${hex(number)}`,
          `0${number.toString(8)}`,
          `0x${hex(a)}.0${b.toString(8)}.${c}.${d}`,
          `${a}.${b}.${c * 256 + d}`,
          `${a}.${(b * 256 + c) * 256 + d}`,
          `%3${String(a)[0]}${String(a).slice(1)}.${b}.${c}.${d}`,
          `[::ffff:${a}.${b}.${c}.${d}]`,
          `[0:0:0:0:0:ffff:${hex(a * 256 + b)}:${hex(c * 256 + d)}]`,
        ];
        for (const host of spellings) expect(validateUrl(`http://${host}/`), host).not.toBeNull();
      }),
    );
  });
});

describe("validateUrl", () => {
  it.each([
    ["", "must be an absolute URL"],
    ["/hook", "must be an absolute URL"],
    ["http://", "must be an absolute URL"],
    ["http://exa mple.com/", "must not contain blanks or control characters"],
    ["http://1.2.3.4.5/", "must be an absolute URL"],
    ["ftp://example.com/", "must be an http or https URL"],
    ["file:///etc/passwd", "must be an http or https URL"],
    ["javascript:alert(1)", "must be an http or https URL"],
    ["https://user:pass@example.com/", "must not contain a user name or a password"],
    ["https://token@example.com/", "must not contain a user name or a password"],
    ["http://localhost:3000/", "must not point to a private or reserved address"],
    ["http://LOCALHOST./", "must not point to a private or reserved address"],
    ["http://api.localhost/", "must not point to a private or reserved address"],
  ])("%s: %s", (url, problem) => {
    expect(validateUrl(url)).toBe(problem);
  });

  it.each([
    "https://example.com",
    "http://example.com:8080/a?b#c",
    "https://xn--bcher-kva.example/",
    "http://localhost.example.com/",
  ])("%s is fine", (url) => {
    expect(validateUrl(url)).toBeNull();
  });

  it("lets through what is allowed, and only that", () => {
    expect(validateUrl("http://10.1.2.3/", ["10.1.0.0/16"])).toBeNull();
    expect(validateUrl("http://[::ffff:10.1.2.3]/", ["10.1.0.0/16"])).toBeNull();
    expect(validateUrl("http://10.2.0.1/", ["10.1.0.0/16"])).not.toBeNull();
    expect(validateUrl("http://[::1]/", ["0.0.0.0/0"])).not.toBeNull();
    expect(validateUrl("http://[64:ff9b::a00:1]/", ["64:ff9b::/96"])).toBeNull();
    expect(validateUrl("http://localhost/", ["127.0.0.0/8"])).toBeNull();
  });
});

describe("parseCidrs", () => {
  it.each([
    "10.0.0.1",
    "10.0.0.0/33",
    "10.0.0.0/",
    "010.0.0.0/8",
    "10.0/8",
    "fd00::/129",
    "fd00::",
    "example.com",
    "::ffff:10.0.0.0/104",
    "/8",
  ])("refuses %s by name", (bad) => {
    expect(() => parseCidrs(`127.0.0.0/8, ${bad},fd00::/8`)).toThrow(`"${bad}"`);
  });

  it("takes a comma-separated list", () => {
    expect(parseCidrs("")).toEqual([]);
    expect(parseCidrs(" 127.0.0.0/8,::1/128 , fd00::/8,")).toEqual(["127.0.0.0/8", "::1/128", "fd00::/8"]);
  });

  it("is what DROVER_EGRESS_ALLOW goes through", () => {
    expect(egressConfig.parse({})).toEqual({ DROVER_EGRESS_ALLOW: [] });
    expect(egressConfig.parse({ DROVER_EGRESS_ALLOW: "127.0.0.0/8" })).toEqual({
      DROVER_EGRESS_ALLOW: ["127.0.0.0/8"],
    });
    const wrong = egressConfig.safeParse({ DROVER_EGRESS_ALLOW: "127.0.0.0/8,nonsense" });
    expect(wrong.error?.issues).toMatchObject([
      { path: ["DROVER_EGRESS_ALLOW"], message: expect.stringContaining('"nonsense"') },
    ]);
    expect(() => createEgress({ allow: ["nonsense"] })).toThrow('"nonsense"');
  });
});
