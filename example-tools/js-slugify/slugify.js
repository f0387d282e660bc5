// Makes a slug of a title: `Crème brûlée, 2 ways!` is `creme-brulee-2-ways`.

import { get } from "wasi:config/store@0.2.0-rc.1";

// The engine has no Unicode tables: these are the small letters of Latin scripts and what each becomes.
const PLAIN = {
  a: "àáâãäåāăąǎ", ae: "æ", c: "çćĉċč", d: "ďđð", e: "èéêëēĕėęě", g: "ĝğġģ", h: "ĥħ", i: "ìíîïĩīĭįıǐ", j: "ĵ", k: "ķ",
  l: "ĺļľŀł", n: "ñńņňŉ", o: "òóôõöøōŏőǒ", oe: "œ", r: "ŕŗř", s: "śŝşšș", ss: "ß", t: "ţťŧț", th: "þ", u: "ùúûüũūŭůűųǔ",
  w: "ŵ", y: "ýÿŷ", z: "źżž",
};
const LETTERS = new Map(Object.entries(PLAIN).flatMap(([to, from]) => [...from].map((letter) => [letter, to])));
const LENGTH_MAX = 200;

const INPUT = {
  type: "object",
  properties: {
    text: { type: "string", description: "What to make a slug of, for example a title." },
    length: { type: "integer", minimum: 1, maximum: LENGTH_MAX, description: "The longest slug; 200 if left out." },
  },
  required: ["text"],
  additionalProperties: false,
};

const OUTPUT = {
  type: "object",
  properties: { slug: { type: "string" } },
  required: ["slug"],
};

export function slugify(text, separator, length = LENGTH_MAX) {
  const plain = Array.from(text.toLowerCase(), (letter) => LETTERS.get(letter) ?? letter).join("");
  const words = plain.split(/[^a-z0-9]+/).filter((word) => word !== "");
  let slug = "";
  for (const word of words) {
    const longer = slug === "" ? word : slug + separator + word;
    if (longer.length > length) break;
    slug = longer;
  }
  return slug === "" && words.length > 0 ? words[0].slice(0, length) : slug;
}

const failure = (words) => ({ content: [{ tag: "text", val: words }], structured: undefined, isError: true });

export const toolbox = {
  describe() {
    return {
      functions: [
        {
          name: "slugify",
          description: "Makes a slug for an address of a text: small letters, digits and a separator, whole words.",
          inputSchema: JSON.stringify(INPUT),
          outputSchema: JSON.stringify(OUTPUT),
        },
      ],
      requires: JSON.stringify({ config: { separator: "stands between the words; `-` if left out" } }),
    };
  },

  call(name, args) {
    if (name !== "slugify") return failure(`this tool has no function \`${name}\``);
    const { text, length } = JSON.parse(args);
    const slug = slugify(text, get("separator") ?? "-", length);
    if (slug === "") return failure("the text has no letter or digit that a slug could have; give other words");
    const structured = JSON.stringify({ slug });
    return { content: [{ tag: "text", val: structured }], structured, isError: false };
  },
};
