/** The table of the personal-data policy, and the checksums behind it. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ibanLength, isCard, isIban, isSsn } from "../../../packages/harness/src/policy/checksums.ts";
import { pii } from "../../../packages/harness/src/policy/index.ts";
import { judge, redacted } from "./hostile.ts";

const policy = pii();

describe("leaves alone", () => {
  it.each([
    "",
    // Cards: wrong check digit, too short, too long, inside words, times and decimals.
    "4111 1111 1111 1112",
    "411111111111",
    "41111111111111111111",
    "x4111111111111111",
    "4111111111111111x",
    "1700000000000 1763700000000000",
    "0.4111111111111111",
    "4111  1111  1111  1111",
    "4 111 1111 1111 1111",
    // IBANs: wrong check digits, a country's wrong length, no such country, inside a word.
    "DE88370400440532013000",
    "DE8937040044053201300",
    "XX89370400440532013000",
    "NODE89370400440532013000",
    // Social security numbers that were never assigned, other groupings, bare digits.
    "000-12-3456 666-12-3456 900-12-3456 123-00-4567 123-45-0000",
    "123-456-789 12-345-6789 123-45-678 2024-123-45-6789 123-45-6789-1 123456789 123-45 6789",
    // IP addresses: not valid, versions, times, MAC addresses, names in programs.
    "999.1.1.1 1.2.3 1.2.3.4.5 256.0.0.1 01.02.03.04 version 1.2.3.4 v1.2.3.4",
    "12:34:56 00:1b:63:84:45:e6 std::vector a::b dead::beef ::",
    // Phones: dates, bare numbers, ids, versions, sums, intervals of time zones.
    "2024-10-12 12/10/2024 01.02.2024 01 02 2024 10-12-2024",
    "4155552671 10023456 2024 1130 0917 550e8400-e29b-41d4-a716-446655440000",
    "order 123-456-7890-12 ISBN 978-3-16-148410-0 port 8080 10:20:30+01:00 2+2=4 +100 1-2-3",
    "0.1.2 007-123 0815",
    // E-mail: not quite, files, packages, accounts of machines.
    "@ a@ @b.com a@b a@b. a@.com logo@2x.png react@18.2.0 @types/node git@github.com:org/repo.git",
    // Already redacted.
    "[email] [card] [iban] [ssn] [phone] [ip] [api_key] [phone] 1234567 [ssn] 123456789",
    "sk-fading-circle-animation-delay the bearer authentication/authorization scheme",
  ])("%j", (text) => {
    expect(judge(policy, text)).toEqual({ action: "allow" });
  });
});

describe("redacts", () => {
  it.each<[string, string]>([
    ["Write to john.doe+news@mail.example.co.uk.", "Write to [email]."],
    ["<a@b.com>,c@d.org", "<[email]>,[email]"],
    ["mailto:john@x.com?subject=1", "mailto:[email]?subject=1"],
    ["jürgen@müller.de josé@correo.es", "[email] [email]"],
    ["a@xn--mller-kva.de", "[email]"],
    ["john@x.com-", "[email]-"],
    ["4111111111111111", "[card]"],
    ["card 4111 1111 1111 1111 12/27 123", "card [card] 12/27 123"],
    ["4111-1111-1111-1111, 5500005555555559", "[card], [card]"],
    ["4111111111111111,5500005555555559", "[card],[card]"],
    ["3782 822463 10005 378282246310005", "[card] [card]"],
    ["3056 930902 5904", "[card]"],
    ["6304000000000000 4222222222222 2223003122003222", "[card] [card] [card]"],
    ["4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "[card]"],
    ["41\u00a011111111111111", "41\u00a011111111111111"],
    ["4111\u00a01111\u00a01111\u00a01111", "[card]"],
    ["ref 12 4111 1111 1111 1111", "ref 12 [card]"],
    ["DE89370400440532013000", "[iban]"],
    ["IBAN: DE89 3704 0044 0532 0130 00 please", "IBAN: [iban] please"],
    ["gb29 nwbk 6016 1331 9268 19", "[iban]"],
    ["NO9386011117947,MT84MALT011000012345MTLCAST001S", "[iban],[iban]"],
    ["SSN 123-45-6789.", "SSN [ssn]."],
    ["123 45 6789", "[ssn]"],
    ['"ssn": "123456789"', '"ssn": "[ssn]"'],
    ["social security number is 123456789", "social security number is [ssn]"],
    ["10.0.0.1, 255.255.255.255.", "[ip], [ip]."],
    ["http://192.168.0.1:8080/x 10.0.0.0/8", "http://[ip]:8080/x [ip]/8"],
    ["[2001:db8::1]:443 ::1 fe80::1%eth0", "[[ip]]:443 [ip] [ip]"],
    ["::ffff:192.0.2.1 2001:0db8:85a3:0000:0000:8a2e:0370:7334", "[ip] [ip]"],
    ["from 2001:db8::1: unreachable", "from [ip]: unreachable"],
    ["+14155552671 +1 (415) 555-2671 +1-415-555-2671", "[phone] [phone] [phone]"],
    ["(415) 555-2671 415-555-2671 415.555.2671 1-415-555-2671", "[phone] [phone] [phone] [phone]"],
    ["call +1 415 555 2671 2 times", "call [phone] 2 times"],
    ["+49 30 123456, +44 (0)20 7946 0958", "[phone], [phone]"],
    ["0049 30 123456", "[phone]"],
    ["06 12 34 56 78 or 06.12.34.56.78", "[phone] or [phone]"],
    ["030 12345678, 0171/1234567", "[phone], [phone]"],
    ["020 7946 0958; (02) 9876 5432; 03-1234-5678", "[phone]; [phone]; [phone]"],
    ["tel: 4155552671, phone number is 4155552671", "tel: [phone], phone number is [phone]"],
    ["AKIAIOSFODNN7EXAMPLE", "[api_key]"],
    ["https://me:hunter2@db.example.com/x", "https://me:[api_key]@db.example.com/x"],
  ])("%j", (text, expected) => {
    expect(redacted(policy, text)).toBe(expected);
  });

  it("only the kinds it is asked for", () => {
    const text = "a@b.com 10.0.0.1 123-45-6789";
    expect(redacted(pii({ kinds: ["ip"] }), text)).toBe("a@b.com [ip] 123-45-6789");
    expect(redacted(pii({ kinds: ["ssn", "email"] }), text)).toBe("[email] 10.0.0.1 [ssn]");
  });

  it("nothing when it is to flag, ask or block", () => {
    for (const action of ["flag", "ask", "block"] as const)
      expect(judge(pii({ action }), "a@b.com")).toEqual({ action, reason: "1 e-mail address" });
  });
});

describe("checksums", () => {
  it("of the examples of the networks and registries", () => {
    for (const card of [
      "4111111111111111",
      "5555555555554444",
      "6011111111111117",
      "3530111333300000",
      "6759649826438453",
    ])
      expect(isCard(card), card).toBe(true);
    for (const iban of [
      "GB29NWBK60161331926819",
      "FR1420041010050500013M02606",
      "BR1800360305000010009795493C1",
      "LC55HEMM000100010012001200023015",
    ])
      expect(isIban(iban), iban).toBe(true);
    expect(isSsn("001010001")).toBe(true);
    expect(ibanLength.size).toBe(89);
  });

  it("fail for every other digit in any place", () => {
    const digits = "4111111111111111";
    fc.assert(
      fc.property(fc.nat(15), fc.integer({ min: 1, max: 9 }), (at, more) => {
        const other = (Number(digits[at]) + more) % 10;
        expect(isCard(digits.slice(0, at) + other + digits.slice(at + 1))).toBe(false);
      }),
    );
    const iban = "GB29NWBK60161331926819";
    fc.assert(
      fc.property(fc.integer({ min: 8, max: 21 }), fc.integer({ min: 1, max: 9 }), (at, more) => {
        const other = (Number(iban[at]) + more) % 10;
        expect(isIban(iban.slice(0, at) + other + iban.slice(at + 1))).toBe(false);
      }),
    );
  });
});

it("looks again at what a mark has freed", () => {
  const once = redacted(policy, "4111111111111111DE89 3704 0044 0532 0130 00 030 12345678");
  expect(judge(policy, once)).toEqual({ action: "allow" });
});
