/** Which process a worker is: another one on the same machine can tell for certain that it is gone. */
import { inOrder } from "../in-order.ts";

export const workerProcess = inOrder("ALTER TABLE workers ADD COLUMN process text");
