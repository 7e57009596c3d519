/** No Docker engine runs where these tests do: the files are parsed and held to what they promise. `docs/deploy.md` says what was not run. */
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { loadConfig } from "@drover/protocol";
import { queueConfig } from "@drover/queue";
import { storageConfig } from "@drover/storage";
import { DockerfileParser } from "dockerfile-ast";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";

const root = resolve(import.meta.dirname, "../..");
const read = (file: string) => readFileSync(join(root, file), "utf8");

interface Service {
  image?: string;
  build?: { context: string; dockerfile: string };
  command?: string[];
  environment?: Record<string, string>;
  healthcheck?: { test?: string[]; disable?: boolean };
  depends_on?: Record<string, { condition: string }>;
  deploy?: { replicas: number };
  stop_grace_period?: string;
  volumes?: string[];
  env_file?: { path: string; required: boolean }[];
}
const compose = parse(read("docker-compose.yml"), { merge: true }) as {
  services: Record<string, Service>;
  volumes: Record<string, unknown>;
};

/** `${NAME:-default}` and `${NAME:?message}` as compose would fill them in. */
const filled = (environment: Record<string, string>, given: Record<string, string> = {}) =>
  Object.fromEntries(
    Object.entries(environment).map(([name, value]) => [
      name,
      value.replace(
        /\$\{(\w+)(?::([-?])([^}]*))?\}/g,
        (_, variable: string, kind, rest) => given[variable] ?? (kind === "-" ? rest : ""),
      ),
    ]),
  );

describe("docker-compose.yml", () => {
  test("has Postgres, Redis with AOF and noeviction, a migration, the API and replicated workers", () => {
    const { postgres, redis, migrate, api, worker } = compose.services;
    expect(postgres!.image).toMatch(/^postgres:18/);
    expect(redis!.command!.join(" ")).toMatch(/--appendonly yes.*--maxmemory-policy noeviction/);
    expect(migrate!.command!.at(-1)).toBe("migrate");
    expect(api!.build!.dockerfile).toBe("Dockerfile.api");
    expect(worker!.build!.dockerfile).toBe("Dockerfile.worker");
    expect(worker!.deploy!.replicas).toBeGreaterThan(1);
  });

  test("starts nothing before what it needs is healthy, and the schema before API and worker", () => {
    for (const name of ["api", "worker"])
      expect(compose.services[name]!.depends_on).toEqual({
        migrate: { condition: "service_completed_successfully" },
        redis: { condition: "service_healthy" },
      });
    expect(compose.services.migrate!.depends_on).toEqual({ postgres: { condition: "service_healthy" } });
    for (const name of ["postgres", "redis"]) expect(compose.services[name]!.healthcheck!.test).toBeDefined();
  });

  test("names only volumes that it declares", () => {
    for (const service of Object.values(compose.services))
      for (const volume of service.volumes ?? []) {
        if (!volume.endsWith(":-./deploy/config}:/drover/config:ro"))
          expect(Object.keys(compose.volumes)).toContain(volume.split(":")[0]);
      }
    expect(existsSync(join(root, "deploy/config/drover.config.ts"))).toBe(true);
  });

  test("hands every entry of .env to the processes, a password of any characters among them, and none to the image", () => {
    for (const name of ["api", "worker", "migrate"]) {
      const { env_file, environment } = compose.services[name]!;
      expect(env_file).toEqual([{ path: ".env", required: false }]);
      expect(filled(environment!, { POSTGRES_PASSWORD: "p@ss/w:rd" })).toMatchObject({
        DATABASE_URL: "postgres://drover@postgres:5432/drover",
        PGPASSWORD: "p@ss/w:rd",
      });
    }
    expect(read(".dockerignore").split("\n")).toContain(".env");
  });

  test.each(["api", "worker", "migrate"])(
    "gives %s an environment its configuration accepts, also with an empty .env",
    (name) => {
      const environment = filled(compose.services[name]!.environment!);
      const config = loadConfig(storageConfig.and(queueConfig), environment);
      expect(config.DATABASE_URL).toMatch(/@postgres:5432/);
      expect(config.REDIS_URL).toBe("redis://redis:6379");
    },
  );

  test("lets a worker finish: the stop takes longer than its grace", () => {
    const { environment, stop_grace_period } = compose.services.worker!;
    expect(Number.parseInt(stop_grace_period!, 10)).toBeGreaterThan(Number(environment!.SHUTDOWN_GRACE_SECONDS));
  });

  test("keeps the models' keys away from the API", () => {
    const keys = Object.entries(compose.services.api!.environment!).filter(([name]) =>
      /^(ANTHROPIC|OPENAI|GOOGLE)_/.test(name),
    );
    expect(keys.map(([, value]) => value)).toEqual(["", "", ""]);
  });
});

describe.each(["Dockerfile.api", "Dockerfile.worker"])("%s", (file) => {
  const dockerfile = DockerfileParser.parse(read(file));
  const instructions = dockerfile.getInstructions();
  const last = (keyword: string) => instructions.findLast((instruction) => instruction.getKeyword() === keyword);

  test("has two stages on Node 24, and runs without npm, as the user node", () => {
    expect(dockerfile.getFROMs().map((from) => from.getImage())).toEqual([
      "node:24-bookworm-slim",
      "node:24-bookworm-slim",
    ]);
    expect(last("USER")!.getArgumentsContent()).toBe("node");
  });

  test("starts Node itself, so that SIGTERM reaches it, with an entry that exists", () => {
    const command = JSON.parse(last("CMD")!.getArgumentsContent()!) as string[];
    expect(command[0]).toBe("node");
    expect(existsSync(join(root, command[1]!))).toBe(true);
    expect(command[2]).toBe(file.split(".")[1]);
    expect(last("STOPSIGNAL")!.getArgumentsContent()).toBe("SIGTERM");
    expect(last("ENTRYPOINT")).toBeUndefined();
  });

  test("has a health check that asks the process's own port", () => {
    const check = last("HEALTHCHECK")!.getArgumentsContent()!;
    const script = (JSON.parse(check.slice(check.indexOf("["))) as string[])[2]!;
    expect(() => new Function(script)).not.toThrow();
    const variable = /process\.env\.(\w+)/.exec(script)![1]!;
    expect(
      instructions.some(
        (instruction) =>
          instruction.getKeyword() === "ENV" && instruction.getArgumentsContent()!.includes(`${variable}=`),
      ),
    ).toBe(true);
  });

  test("copies only what exists", () => {
    for (const instruction of instructions.filter((one) => one.getKeyword() === "COPY")) {
      const words = instruction
        .getArgumentsContent()!
        .split(/\s+/)
        .filter((word) => !word.startsWith("--"));
      if (instruction.toString().includes("--from=")) continue;
      for (const source of words.slice(0, -1)) expect(existsSync(join(root, source))).toBe(true);
    }
  });
});
