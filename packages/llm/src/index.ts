export { type ModelConfig, modelConfig, type PriceTable, priceTable, type TokenPrice } from "./config.ts";
export { createDemoModel, demoModelId } from "./demo.ts";
export * from "./model.ts";
export { type CustomProvider, createModels, ModelConfigError, type Models, type ModelsOptions } from "./models.ts";
