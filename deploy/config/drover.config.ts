/** Agents, tools and models of the composition in docker-compose.yml: change it, and restart `api` and `worker`. */
import { defineConfig } from "@drover/harness";

export default defineConfig({
  agents: {},
});
