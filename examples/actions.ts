/**
 * The one door without a model: read -> write -> admin -> blocked -> irreversible, approved by a person. For agents whose loop is your own.
 *
 *     npx node examples/actions.ts
 */
import {
  AgentHarness,
  BudgetExhausted,
  contentRules,
  HumanApprovalRequired,
  memoryAudit,
  PolicyBlocked,
} from "@drover/harness";
import { bankTools, ledger } from "./bank-tools.ts";

const audit = memoryAudit();
const harness = new AgentHarness({
  agents: { default: { actionBudget: 10 } },
  tools: bankTools,
  policies: contentRules([
    { name: "no-casinos", pattern: "casino", flags: "i", action: "block", stages: ["arguments"] },
  ]),
  audit,
});
const actions = harness.actions();

console.log("read:", await actions.execute("read_balance", {}));
console.log("write:", await actions.execute("set_limit", { limit: 80 }));
console.log("admin:", await actions.execute("freeze_account", { reason: "a test" }));

try {
  await actions.execute("send_payment", { to: "The Grand Casino", amount: 20 });
} catch (error) {
  if (!(error instanceof PolicyBlocked)) throw error;
  console.log("blocked:", error.message);
}

const payment = { to: "Ann", amount: 20 };
try {
  await actions.execute("send_payment", payment);
} catch (error) {
  if (!(error instanceof HumanApprovalRequired)) throw error;
  console.log("asks:", error.actionName, error.actionArgs, `(${actions.pointsLeft} points left, none taken)`);
}
console.log("approved:", await actions.approveAndExecute("send_payment", payment, { by: "bob" }));

try {
  await actions.execute("set_limit", { limit: 100 });
  await actions.execute("set_limit", { limit: 120 });
} catch (error) {
  if (!(error instanceof BudgetExhausted)) throw error;
  console.log("budget:", error.message);
}

console.log("ledger:", ledger);
console.log(
  "audit:",
  audit.entries().map(({ seq, actor, action, data }) => `${seq} ${actor} ${action} ${data.tool ?? ""}`),
);
