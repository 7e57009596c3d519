/** Holds every answer a test gets against the OpenAPI document: its status is documented, its body is valid, its headers are there. */
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import formats from "ajv-formats";

export interface OpenApi {
  openapi: string;
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, Record<string, unknown>>; securitySchemes: Record<string, unknown> };
}
export interface Operation {
  operationId: string;
  summary?: string;
  tags?: string[];
  security?: unknown[];
  "x-scope"?: string;
  parameters?: { name: string; in: string }[];
  requestBody?: { required?: boolean; content: Record<string, unknown> };
  responses: Record<
    string,
    { description: string; content?: Record<string, unknown>; headers?: Record<string, unknown> }
  >;
}

interface Answer {
  status: number;
  headers: Headers;
  text: string;
}

export type Check = (method: string, path: string, answer: Answer) => void;

const pointerPart = (part: string): string => part.replaceAll("~", "~0").replaceAll("/", "~1");

export function contractOf(document: OpenApi): Check {
  const ajv = new Ajv2020({ strict: false, allErrors: true });
  formats.default(ajv);
  ajv.addSchema(document, "openapi", false);
  const routes = Object.keys(document.paths)
    .map((template) => ({ template, pattern: new RegExp(`^${template.replaceAll(/\{[^}]+\}/g, "[^/]+")}$`) }))
    // `/webhooks/secret` goes before `/webhooks/{id}`, as in the router.
    .sort((a, b) => Number(a.template.includes("{")) - Number(b.template.includes("{")));
  const validators = new Map<string, ValidateFunction>();

  return (method, path, answer) => {
    const pathname = new URL(path, "http://api").pathname;
    const verb = method.toLowerCase();
    const template = routes.find(
      ({ template, pattern }) => pattern.test(pathname) && document.paths[template]![verb],
    )?.template;
    if (!answer.headers.get("x-request-id")) throw new Error(`${method} ${path}: no x-request-id`);
    if (template === undefined) {
      if (answer.status === 404) return;
      throw new Error(`${method} ${path} answers ${answer.status} and is not in the document`);
    }
    const where = `${method} ${template} -> ${answer.status}`;
    const response = document.paths[template]![verb]!.responses[answer.status];
    if (!response) throw new Error(`${where} is not in the document: ${answer.text}`);
    if (!response.content) {
      if (answer.text !== "") throw new Error(`${where} has a body that is not in the document`);
      return;
    }
    const type = (answer.headers.get("content-type") ?? "").split(";")[0]!.trim();
    if (!response.content[type]) throw new Error(`${where} answers ${type || "no type"}, which is not in the document`);
    if (!type.endsWith("json")) return;
    const pointer = ["paths", template, verb, "responses", String(answer.status), "content", type, "schema"]
      .map(pointerPart)
      .join("/");
    let validate = validators.get(pointer);
    if (!validate) {
      validate = ajv.compile({ $ref: `openapi#/${pointer}` });
      validators.set(pointer, validate);
    }
    if (!validate(JSON.parse(answer.text)))
      throw new Error(`${where} does not keep to the document: ${ajv.errorsText(validate.errors)}\n${answer.text}`);
  };
}
