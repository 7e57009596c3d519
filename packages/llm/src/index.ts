export { type ModelConfig, modelConfig, type PriceTable, priceTable, type TokenPrice } from "./config.ts";
export { createDemoModel } from "./demo.ts";
export { demoModelId } from "./known.ts";
export * from "./model.ts";
export { type CustomProvider, createModels, ModelConfigError, type Models, type ModelsOptions } from "./models.ts";
