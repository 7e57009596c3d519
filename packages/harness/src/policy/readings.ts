/**
 * What a model may read in a text that a plain search does not see: letters of other scripts that look alike, invisible characters
 * between letters or as carriers of text of their own, letters spaced out, base64 and hexadecimal.
 */

export interface Reading {
  /** Lower-case, every run of white space one space or one or two newlines, written-out `\n` a newline. */
  text: string;
  /** Words may stand without anything between them. */
  glued: boolean;
  /** It came out of base64 or hexadecimal. */
  decoded: boolean;
}

/** Encodings inside encodings: what is decoded is looked at for more, so many times in all. */
const deepest = 2;

/** Every way to read `text`. Its time is linear: what is decoded is at most twice as long as what it came from, and that two times. */
export function readings(text: string, depth = 0): Reading[] {
  const cased = unmask(text);
  const plain = tidy(cased.toLowerCase());
  const decoded = depth > 0;
  const found: Reading[] = [{ text: plain, glued: false, decoded }];
  const glued = [...spelledOut(plain), ...(invisible.test(text) ? [plain] : [])];
  if (glued.length > 0) found.push({ text: glued.join(divider), glued: true, decoded });
  if (text.includes("\u202e")) found.push({ text: tidy([...plain].reverse().join("")), glued: false, decoded });
  const inside = depth < deepest ? decode(cased) : "";
  if (inside !== "") found.push(...readings(inside, depth + 1));
  return found;
}

/** Put between texts that are searched as one: no phrase reaches over it. */
export const divider = "\n.\n";

const nonAscii = /[\u0080-\uffff]/;
/** Format characters, Hangul fillers, the empty braille pattern. */
const invisible = /[\p{Cf}\u115f\u1160\u2800\u3164\uffa0]/u;
/**
 * Taken out before decomposing. Combining marks, because ICU sorts a run of them in quadratic time; ligatures that decompose to many
 * words (U+FDFA to 18 characters), and squared words, because they would make the text longer. One at a time, without `+`: on a long
 * run V8 would run out of stack.
 */
const dropped = /[\p{M}\p{Cf}\u115f\u1160\u2800\u3164\uffa0\ufdf0-\ufdfd\u3300-\u33ff]/gu;
/** Unicode tag characters spell ASCII invisibly; regional indicators, circled and squared letters are letters too. */
const letterlike = /[\u{e0020}-\u{e007e}\u{1f1e6}-\u{1f1ff}\u{1f150}-\u{1f169}\u{1f170}-\u{1f189}]/gu;

/** Compatibility forms (NFKD), marks, invisibles and look-alikes reduced to the letters they stand for. */
function unmask(text: string): string {
  if (!nonAscii.test(text)) return text;
  // Both kinds of letters begin with one of two surrogates, which few texts have.
  const spelled = /[\ud83c\udb40]/.test(text) ? spellOut(text) : text;
  return readAlike(spelled.replace(dropped, "").normalize("NFKD").replace(/\p{M}/gu, ""));
}

function spellOut(text: string): string {
  return text.replace(/(?<![\u{e0020}-\u{e007e}])[\u{e0020}-\u{e007e}]/gu, " $&").replace(letterlike, spell);
}

function spell(letter: string): string {
  const code = letter.codePointAt(0)!;
  if (code >= 0xe0000) return String.fromCharCode(code - 0xe0000);
  const base = code >= 0x1f1e6 ? 0x1f1e6 : code >= 0x1f170 ? 0x1f170 : 0x1f150;
  return String.fromCharCode(97 + code - base);
}

/** From Unicode's confusables (UTS #39): a Latin letter, and what is drawn like it. */
const drawnAlike = [
  "AΑАᎪ BΒВᏴ CСϹᏟ DᎠ EΕЕᎬ FϜ GԌᏀ HΗНᎻ IΙІӀ JЈᎫ KΚКᏦ LᏞ MΜМᎷ",
  "NΝ OΟОՕØ PΡРᏢ QԚ RᎡ SЅՏᏚ TΤТᎢ UՍ VѴᏙ WԜᎳ XΧХ YΥУҮ ZΖᏃ",
  "aαаɑᴀ bЬвʙƄ cсϲᴄ dԁᴅđ eεеєᴇ fꜰẝ gɡɢցԍ hһнհʜħ iιіıɪɩ",
  "jјϳյᴊ kκкᴋ lӏʟɭłլ mмᴍ nηոɴп oοоσօᴏø pρрᴘ qԛզ rгʀɾ",
  "sѕꜱ tτтᴛŧ uυսᴜʋц vνѵᴠ wωԝᴡա xχхⅹ yγуүʏ zᴢʐ",
  "'‘’ʼ \"“”",
];
/** For each UTF-16 unit the one that is read. */
const asRead = Uint16Array.from({ length: 65_536 }, (_, unit) => unit);
for (const [latin, ...others] of drawnAlike.flatMap((letters) => letters.split(" ")))
  for (const other of others) asRead[other.charCodeAt(0)] = latin!.charCodeAt(0);

/** Unit by unit, in pieces that fit on the stack: a callback for each letter takes ten times as long. */
function readAlike(text: string): string {
  const units = new Uint16Array(text.length);
  for (let at = 0; at < units.length; at++) units[at] = asRead[text.charCodeAt(at)]!;
  let read = "";
  for (let from = 0; from < units.length; from += 8192)
    read += String.fromCharCode(...units.subarray(from, from + 8192));
  return read;
}

function tidy(text: string): string {
  return text.replace(/\\r?\\n|\\[nrt]/g, "\n").replace(/\s{2,}|[^\S \n]/g, (space) => {
    const lines = space.indexOf("\n");
    if (lines < 0) return space.includes("\r") ? "\n" : " ";
    return space.includes("\n", lines + 1) ? "\n\n" : "\n";
  });
}

/** Eight or more single letters with the same kind of thing between them, as words without their gaps. */
function spelledOut(plain: string): string[] {
  const runs = plain.match(/(?<![a-z0-9])(?:[a-z][ ._*|~,-]{1,3}){7,2000}[a-z](?![a-z0-9])/g) ?? [];
  return runs.map((run) => run.replace(/[^a-z]+/g, ""));
}

/**
 * 16 characters of base64 (RFC 4648, both alphabets), lines of it as MIME wraps them, 12 bytes of hexadecimal: at least. Read in pieces
 * of 100,000, because V8 runs out of stack for millions; those hold whole groups.
 */
const base64 = /[A-Za-z0-9+/_-]{16,100000}/g;
const wrapped = /(?<![A-Za-z0-9+/])(?:[A-Za-z0-9+/]{60,76}\r?\n){1,5000}[A-Za-z0-9+/]{2,76}/g;
const hexadecimal = /(?:0x)?[0-9A-Fa-f]{24,100000}/g;

function decode(text: string): string {
  const texts = [
    ...(text.match(base64) ?? []).map((found) => Buffer.from(found, "base64")),
    ...(text.match(wrapped) ?? []).map((found) => Buffer.from(found, "base64")),
    ...(text.match(hexadecimal) ?? []).map((found) => Buffer.from(found.replace(/^0x/, ""), "hex")),
  ].map((bytes) => bytes.toString("utf8"));
  return texts.filter(isText).join(divider);
}

/** Random bytes are half beyond ASCII and seldom valid UTF-8. */
function isText(decoded: string): boolean {
  return decoded.split("\ufffd").length - 1 <= decoded.length / 8;
}
