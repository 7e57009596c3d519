/** The same tool in a module that imports nothing. */
export const nothing = {
  name: "nothing",
  execute: ({ text }: { text: string }) => ({ pid: process.pid, length: text.length, text }),
};
