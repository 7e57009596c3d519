/**
 * Stops with one line when this Node is too old to run Drover's TypeScript. npm puts the project's own Node 24 (the
 * devDependency `node`) first on the PATH; an older one here means that it was not installed, that its install script did not
 * run, or that npm was passed by. Plain JavaScript for any Node from 18 on.
 */
import { existsSync } from "node:fs";

const needed = 24;

if (Number(process.versions.node.split(".")[0]) < needed) {
  const there = (path) => existsSync(new URL(`../node_modules/node/${path}`, import.meta.url));
  let fix = "Run `npm install` in the project's folder: it brings its own Node.";
  if (there("bin/node")) fix = "The project has its own: start it with `npm start`, `npm run …` or `npx drover …`.";
  else if (there("package.json"))
    fix =
      "The project's own is not complete, as its install script did not run: `npm rebuild node --ignore-scripts=false` " +
      "(should npm refuse, `npm install-scripts approve node` first).";
  console.error(`Drover needs Node ${needed} or newer, this is ${process.version}. ${fix}`);
  process.exit(1);
}
