/** Which numbers are well formed: payment cards, IBANs and US social security numbers. */

/**
 * Payment cards: 13 to 19 digits (ISO/IEC 7812-1) with a correct check digit (its annex B, Luhn), beginning as the networks' numbers
 * do: 2 to 6, RuPay's 81 and 82, Troy's 9792. So no time in milliseconds or microseconds is a card.
 */
export function isCard(digits: string): boolean {
  if (digits.length < 13 || digits.length > 19) return false;
  let sum = 0;
  for (let at = 0; at < digits.length; at++) {
    const digit = digits.charCodeAt(digits.length - 1 - at) - 48;
    const weighed = at % 2 === 0 ? digit : digit * 2;
    sum += weighed > 9 ? weighed - 9 : weighed;
  }
  return sum % 10 === 0 && /^(?:[2-6]|8[12]|9792)/.test(digits);
}

/** Characters of an IBAN, by the IBAN registry (ISO 13616, kept by SWIFT). */
const countriesByLength: Record<number, string> = {
  15: "NO",
  16: "BE",
  18: "DK FI FK FO GL NL SD",
  19: "MK SI",
  20: "AT BA EE KZ LT LU MN XK",
  21: "CH HR LI LV",
  22: "BG BH CR DE GB GE IE ME RS VA",
  23: "AE GI IL IQ OM SO TL",
  24: "AD CZ ES MD PK RO SA SE SK TN VG",
  25: "LY PT ST",
  26: "IS TR",
  27: "BI DJ FR GR IT MC MR SM",
  28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
  29: "BR EG PS QA UA",
  30: "JO KW MU YE",
  31: "MT SC",
  32: "LC",
  33: "RU",
};
/** For each country that has IBANs. */
export const ibanLength = new Map(
  Object.entries(countriesByLength).flatMap(([length, countries]) =>
    countries.split(" ").map((country) => [country, Number(length)]),
  ),
);

/** ISO 7064 MOD 97-10: the first four characters moved to the end, letters as 10 to 35, leave 1. Upper case, no spaces. */
export function isIban(iban: string): boolean {
  if (ibanLength.get(iban.slice(0, 2)) !== iban.length) return false;
  let rest = 0;
  const moved = iban.slice(4) + iban.slice(0, 4);
  for (let at = 0; at < moved.length; at++) {
    const code = moved.charCodeAt(at);
    rest = (code > 57 ? rest * 100 + code - 55 : rest * 10 + code - 48) % 97;
  }
  return rest === 1;
}

/** Never assigned: area 000, 666 and 900 to 999, group 00, serial 0000 (ssa.gov/employer/randomizationfaqs.html). */
export function isSsn(digits: string): boolean {
  return /^(?!000|666|9)[0-9]{3}(?!00)[0-9]{2}(?!0000)[0-9]{4}$/.test(digits);
}
