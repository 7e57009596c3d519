/** Four tools of a small bank, one for each permission, over a ledger in memory. The other examples use them. */
import { defineTool } from "@drover/harness";
import { z } from "zod";

export const ledger = { balance: 100, limit: 50, frozen: false, paid: [] as string[] };

const readBalance = defineTool({
  name: "read_balance",
  description: "The account's balance and payment limit.",
  input: z.object({}),
  permission: "read",
  effect: "pure",
  private: true,
  execute: () => ({ balance: ledger.balance, limit: ledger.limit, frozen: ledger.frozen }),
});

const setLimit = defineTool({
  name: "set_limit",
  description: "Sets the payment limit and returns the one before.",
  input: z.object({ limit: z.number().min(0).max(10_000) }),
  output: z.object({ before: z.number(), now: z.number() }),
  permission: "write",
  effect: "idempotent",
  budgetCost: 1,
  execute({ limit }) {
    const before = ledger.limit;
    ledger.limit = limit;
    return { before, now: limit };
  },
  // How a rollback undoes it: with what it was asked, and what it answered.
  compensate({ output }) {
    ledger.limit = output.before;
  },
});

const freezeAccount = defineTool({
  name: "freeze_account",
  description: "Freezes the account.",
  input: z.object({ reason: z.string().min(1) }),
  permission: "admin",
  effect: "idempotent",
  budgetCost: 5,
  execute() {
    ledger.frozen = true;
    return "frozen";
  },
  compensate() {
    ledger.frozen = false;
  },
});

const sendPayment = defineTool({
  name: "send_payment",
  description: "Sends money to somebody. It cannot be taken back.",
  input: z.object({ to: z.string().min(1), amount: z.number().positive() }),
  permission: "irreversible",
  effect: "unsafe",
  budgetCost: 3,
  execute({ to, amount }, { idempotencyKey }) {
    ledger.balance -= amount;
    ledger.paid.push(idempotencyKey);
    return { sent: amount, to };
  },
  // Asked after a crash: did the payment with this key go out?
  verify: ({ idempotencyKey }) => (ledger.paid.includes(idempotencyKey) ? "done" : "not_done"),
});

export const bankTools = [readBalance, setLimit, freezeAccount, sendPayment];
