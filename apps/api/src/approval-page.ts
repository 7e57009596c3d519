/**
 * The page on which somebody without a key decides, as HTML without scripts. Everything that a model, a tool or a user wrote is escaped, and what
 * would be invisible or would turn text around is shown as its code: what is read is what runs.
 */
import { createHash } from "node:crypto";
import { longestNote } from "@drover/protocol";
import type { LinkedApproval } from "@drover/runs";

export interface Page extends LinkedApproval {
  /** The run is over. */
  ended: boolean;
}

/** Text that is HTML already. */
class Html {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

/** A template whose values are escaped, unless they are HTML. */
function html(parts: TemplateStringsArray, ...values: (string | Html | Html[])[]): Html {
  const texts = values.map((value) =>
    typeof value === "string"
      ? escaped(visible(value))
      : [value]
          .flat()
          .map(({ text }) => text)
          .join(""),
  );
  return new Html(String.raw({ raw: parts }, ...texts));
}

const escapes: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text: string): string => text.replace(/[&<>"']/g, (character) => escapes[character]!);

/** Control, format and unassigned characters as `\u{…}`: they hide text, or show it in another order than it has. */
const visible = (text: string): string =>
  text.replace(
    /(?![\n\t])[\p{C}\p{Zl}\p{Zp}\u115f\u1160\u3164\uffa0]/gu,
    (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`,
  );

const questions: Record<Page["approval"]["subject"], { ask(tool: string): string; what: string }> = {
  call: { ask: (tool) => `May ${tool} be called?`, what: "Arguments" },
  uncertain: { ask: (tool) => `Did ${tool} take effect?`, what: "Arguments" },
  input: { ask: () => "May this input pass?", what: "Input" },
  result: { ask: (tool) => `May the agent see this result of ${tool}?`, what: "Result" },
  output: { ask: () => "May this answer go out?", what: "Answer" },
};

const outcomes = {
  approve: "Approved",
  retry: "It runs again",
  done: "It took effect",
  reject: "Rejected",
  fail: "The run ends",
  expire: "Expired",
} as const;

/** The question with its form; once it is decided, how and by whom. */
export function questionPage({ approval, now, ended }: Page): string {
  const { ask, what } = questions[approval.subject];
  const title = ask(approval.toolName ?? "the tool");
  const isOpen = approval.status === "pending";
  const { decision } = approval;
  const edited = decision?.edited_input;
  return document(
    isOpen ? title : outcomes[decision?.decision ?? "expire"],
    html`${isOpen ? html`<h1>${title}</h1>` : outcomeOf(approval, ended)}
${isOpen ? html`<p class="reason">${approval.reason}</p>` : html`<h2>What was asked: ${title}</h2>`}
<dl>
${fact("Agent", approval.agent)}${approval.toolName === null ? html`` : fact("Tool", approval.toolName)}${fact("Asked", timeOf(approval.requestedAt))}${
  isOpen
    ? fact("Expires", html`${timeOf(approval.expiresAt)}, in ${spanOf(approval.expiresAt.getTime() - now.getTime())}`)
    : html``
}
</dl>
${contentOf("asked", what, approval.input)}
${edited === undefined ? html`` : contentOf("edited", "Approved with these arguments instead", edited)}
${isOpen ? formOf(approval) : html``}`,
  );
}

function outcomeOf({ decision, decidedBy, decidedAt }: Page["approval"], ended: boolean): Html {
  const kind = decision?.decision ?? "expire";
  const good = kind === "approve" || kind === "retry" || kind === "done";
  const by =
    decidedBy === "link" ? "somebody with this link" : decidedBy === "system" ? "the service" : (decidedBy ?? "nobody");
  return html`<div class="outcome ${good ? "good" : "bad"}" role="status">
<h1>${outcomes[kind]}</h1>
<p>Decided by ${by}${decidedAt ? html`, ${timeOf(decidedAt)}` : html``}. ${ended ? "The run has ended." : "Nothing is left to do here."}</p>
${decision?.note ? html`<p class="note">${decision.note}</p>` : html``}
</div>`;
}

function formOf({ subject, input }: Page["approval"]): Html {
  const uncertain = subject === "uncertain";
  // Nobody says yes here to what the page does not show.
  const whole = textOf(input).length <= longestContent;
  return html`<form method="post">
<label for="note">Note <span>(optional${uncertain ? "" : "; the agent reads it when you reject"})</span></label>
<textarea id="note" name="note" rows="3" maxlength="${String(longestNote)}"></textarea>
<div class="buttons">
${
  uncertain
    ? html`<button name="decision" value="done">It took effect</button>
<button name="decision" value="retry">Run it again</button>
<button class="bad" name="decision" value="fail">End the run</button>`
    : html`${whole ? html`<button class="good" name="decision" value="approve">Approve</button>` : html``}
<button class="bad" name="decision" value="reject">Reject</button>`
}
</div>
</form>
${uncertain || whole ? html`` : html`<p class="cut">It is too long to be approved here: somebody with a key can read the whole, and decide.</p>`}
<p class="small">This can be decided once. Whoever has this link may decide: keep it to yourself.</p>`;
}

const titles: Record<number, [string, string]> = {
  400: ["This cannot be decided so", "Go back, check what you entered, and try again."],
  404: ["There is nothing here", "The link is wrong, or its time is up."],
  413: ["The note is too long", "Go back and shorten it."],
  503: [
    "Not now",
    "The service cannot answer at this moment. Open the link again in a minute: it shows whether anything was decided.",
  ],
};

/** A page that tells nothing of any question. */
export function messagePage(status: number, requestId: string): string {
  const [title, text] = titles[status] ?? [
    "Something went wrong",
    `Try again in a minute. If it stays so, tell whoever runs this service: ${requestId}.`,
  ];
  return document(title, html`<h1>${title}</h1><p class="reason">${text}</p>`);
}

const fact = (name: string, value: string | Html): Html => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;

/** More than anybody reads; the log has the whole. */
const longestContent = 200_000;
const textOf = (content: unknown): string =>
  typeof content === "string" ? content : (JSON.stringify(content, null, 2) ?? "");

function contentOf(id: string, name: string, content: unknown): Html {
  const text = textOf(content);
  const cut = text.length > longestContent;
  return html`<h2 id="${id}">${name}</h2>
<pre tabindex="0" role="region" aria-labelledby="${id}">${cut ? text.slice(0, longestContent) : text}</pre>${
    cut
      ? html`<p class="cut">Cut: this is the beginning of ${String(text.length)} characters. The log has the whole.</p>`
      : html``
  }`;
}

function timeOf(at: Date): Html {
  const iso = at.toISOString();
  return html`<time datetime="${iso}">${iso.slice(0, 16).replace("T", " ")} UTC</time>`;
}

function spanOf(ms: number): string {
  const minutes = Math.max(1, Math.round(ms / 60_000));
  if (minutes < 120) return minutes === 1 ? "a minute" : `${minutes} minutes`;
  const hours = Math.round(minutes / 60);
  return hours < 48 ? `${hours} hours` : `${Math.round(hours / 24)} days`;
}

const style = `
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d3d9e0; --page: #f4f6f8; --card: #fff; --code: #f4f6f8; --good: #14713c; --bad: #b3261e; --focus: #0b57d0; --on: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf0; --soft: #a3adb8; --line: #3a434d; --page: #101418; --card: #1a2026; --code: #11161b; --good: #6fd69b; --bad: #ff9d94; --focus: #9ec1ff; --on: #0d1115; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 44rem; margin: 3rem auto; padding: 2rem; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.brand { margin: 0 0 1.25rem; color: var(--soft); font-size: .875rem; letter-spacing: .02em; }
h1 { margin: 0; font-size: 1.5rem; line-height: 1.25; }
h2 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
.reason { margin: .5rem 0 0; overflow-wrap: anywhere; }
dl { display: grid; gap: .375rem; margin: 1.5rem 0 0; }
dl div { display: grid; grid-template-columns: 6rem 1fr; gap: 1rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0; max-height: 24rem; overflow: auto; padding: 1rem; background: var(--code); border: 1px solid var(--line); border-radius: 8px; font: 14px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
label { display: block; margin: 1.5rem 0 .5rem; font-weight: 600; }
label span, .small { color: var(--soft); font-weight: 400; font-size: .875rem; }
textarea { width: 100%; padding: .75rem; border: 1px solid var(--soft); border-radius: 8px; background: var(--card); color: inherit; font: inherit; resize: vertical; }
.buttons { display: flex; flex-wrap: wrap; gap: .75rem; margin-top: 1rem; }
button { flex: 1 1 9rem; min-height: 3rem; padding: .5rem 1.25rem; border: 2px solid var(--soft); border-radius: 8px; background: none; color: inherit; font: inherit; font-weight: 600; cursor: pointer; }
button.good { border-color: var(--good); background: var(--good); color: var(--on); }
button.bad { border-color: var(--bad); color: var(--bad); }
button:hover { filter: brightness(1.08); }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
.outcome { padding: 1rem 1.25rem; border-left: 4px solid var(--good); background: var(--code); border-radius: 0 8px 8px 0; }
.outcome.bad { border-color: var(--bad); }
.outcome.good h1 { color: var(--good); }
.outcome.bad h1 { color: var(--bad); }
.outcome p { margin: .375rem 0 0; }
.note { white-space: pre-wrap; overflow-wrap: anywhere; }
.cut { color: var(--bad); }
@media (max-width: 48rem) { main { margin: 0; min-height: 100vh; padding: 1.25rem; border: 0; border-radius: 0; } }
`;

/** What the policy of the page lets through beside nothing. */
export const styleHash = `sha256-${createHash("sha256").update(style).digest("base64")}`;

const document = (title: string, content: Html): string =>
  html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex, nofollow">
<title>${title} · Drover</title>
<style>${new Html(style)}</style>
</head>
<body>
<main>
<p class="brand">Drover</p>
${content}
</main>
</body>
</html>
`.text;
