export { type MessageBody, messageBody } from "./body.ts";
export { hintOf } from "./cause.ts";
export { type DeliveryConfig, deliveryConfig } from "./config.ts";
export { createDelivery, type Delivery, type DeliveryMetrics, type DeliveryOptions } from "./delivery.ts";
export {
  createEndpoint,
  deleteEndpoint,
  type Endpoint,
  type EndpointPatch,
  listEndpoints,
  readDefaultSecret,
  readEndpoint,
  readPublicKeys,
  rotateDefaultSecret,
  rotateEndpointSecret,
  sendTest,
  updateEndpoint,
} from "./endpoints.ts";
export type { DeliveryStatus } from "./outcome.ts";
export { type AttemptRecord, type DeliveryRecord, listDeliveries, readDelivery, redeliver } from "./records.ts";
export { isWebhookSecret, newWebhookSecret } from "./signature.ts";
