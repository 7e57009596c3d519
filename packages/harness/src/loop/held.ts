/** What a policy holds back until a person has let it pass is for those who may say so; everybody else learns that it is there, its hash and why. */
import type { ApprovalRequest, ApprovalSubject, LogEvent } from "./events.ts";

/** Questions whose `input` is content that nobody is shown yet. */
export const isHeldContent = (subject: ApprovalSubject): boolean => subject === "result" || subject === "output";

type Shown<T> = T & { withheld?: true };

/** The question without the content it is about. */
export function withoutContent<T extends Pick<ApprovalRequest, "subject" | "input">>(asked: T): Shown<T> {
  return isHeldContent(asked.subject) ? { ...asked, input: null, withheld: true } : asked;
}

/** The event for somebody who may not approve. What was let pass since stands in a later event, or in the result. */
export function withoutHeld(event: LogEvent): LogEvent {
  switch (event.type) {
    case "model.call": {
      if (!event.data.held) return event;
      const { messages: _, ...data } = event.data;
      return { ...event, data: { ...data, text: "", tool_calls: [], withheld: true } };
    }
    case "tool.held":
      return { ...event, data: { ...event.data, output: null } };
    case "approval.requested":
      return { ...event, data: withoutContent(event.data) };
    case "run.waiting": {
      const { approvals } = event.data;
      return approvals ? { ...event, data: { ...event.data, approvals: approvals.map(withoutContent) } } : event;
    }
    default:
      return event;
  }
}
