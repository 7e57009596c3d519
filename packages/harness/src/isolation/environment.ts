/** What of this process's environment a tool's process gets: what programs need to run at all, and what the tool asks for by name. */

const harmless = [
  "PATH",
  "HOME",
  "USER",
  "SHELL",
  "TMPDIR",
  "TEMP",
  "TMP",
  "TZ",
  "LANG",
  "LANGUAGE",
  "LC_ALL",
  "LC_CTYPE",
  "SSL_CERT_FILE",
  "SSL_CERT_DIR",
  "NODE_ENV",
  "NODE_EXTRA_CA_CERTS",
  "NODE_COMPILE_CACHE",
  "NODE_ICU_DATA",
];

/** Marks a tool's process and all it starts: what left its group is still found. */
export const markerName = "DROVER_TOOL_PROCESS";

export function environmentOf(names: readonly string[], marker: string): NodeJS.ProcessEnv {
  const env: NodeJS.ProcessEnv = { [markerName]: marker };
  for (const name of [...harmless, ...names]) if (process.env[name] !== undefined) env[name] = process.env[name];
  return env;
}
