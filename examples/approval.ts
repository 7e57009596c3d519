/**
 * A durable run that a person must approve, over HTTP: submit, wait until it asks, decide, read the result. The run waits in the database
 * meanwhile and holds nothing; stop and start the service in between if you like.
 *
 *     DROVER_CONFIG=examples/approval.config.ts npm start        (with a model's key set)
 *     DROVER_API_KEY=… npx node examples/approval.ts "Pay Ann 20."
 */
const base = process.env.DROVER_URL ?? "http://127.0.0.1:8080";
const key = process.env.DROVER_API_KEY;
if (!key) {
  console.error("Set DROVER_API_KEY: `npm start` prints one at its first start.");
  process.exit(1);
}

interface Approval {
  id: string;
  tool_name: string;
  input: unknown;
  reason: string;
}

// biome-ignore lint/suspicious/noExplicitAny: answers of several routes.
async function call(method: string, path: string, body?: unknown): Promise<any> {
  const response = await fetch(base + path, {
    method,
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  const answer = (await response.json()) as { detail?: string };
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${answer.detail ?? ""}`);
  return answer;
}

const query = process.argv.slice(2).join(" ") || "Pay Ann 20.";
const { task_id } = await call("POST", "/query", { query, agent: "bank" });
console.log("submitted", task_id);

for (;;) {
  const { status, result } = await call("GET", `/query/status/${task_id}?wait=1`);
  if (status === "waiting") await decide();
  else if (result) {
    console.log(status, result.output);
    break;
  }
}

async function decide(): Promise<void> {
  const { data } = await call("GET", `/query/${task_id}/approvals`);
  for (const { id, tool_name, input, reason } of (data as (Approval & { status: string })[]).filter(
    ({ status }) => status === "pending",
  )) {
    console.log("asked:", tool_name, JSON.stringify(input), "-", reason);
    await call("POST", `/approvals/${id}`, { decision: "approve", note: "the example says yes" });
    console.log("approved", id);
  }
}
