export { type ContentRule, contentRules } from "./content-rules.ts";
export { type PiiOptions, pii } from "./pii.ts";
export * from "./policy.ts";
export { type PromptInjectionOptions, promptInjection } from "./prompt-injection.ts";
export { type RuleOfTwoOptions, ruleOfTwo } from "./rule-of-two.ts";
export { type SecretsOptions, secrets } from "./secrets.ts";
