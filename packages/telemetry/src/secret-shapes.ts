/**
 * What secrets look like, for the logger and for policies: shapes that can be told from other text by how they begin or what stands before them.
 * Prefixes and lengths as published by their makers and collected by gitleaks (github.com/gitleaks/gitleaks, config/gitleaks.toml). Each is a
 * fixed beginning and a run of characters, so matching one never goes back; runs are bounded, because V8 runs out of stack for millions.
 */

export interface SecretShapes {
  /** Keys and tokens by their beginning: alternatives of one expression. */
  tokens: string;
  /** RFC 6750; its first group is what stands before the token. */
  bearer: RegExp;
  /** RFC 3986 userinfo; its first group is what stands before the password. */
  urlPassword: RegExp;
}

/** `certain` is for texts of people, where a word must stay a word; `doubtful` for logs, where a secret must not stand whatever else is lost. */
export function secretShapes(need: "certain" | "doubtful"): SecretShapes {
  const isCertain = need === "certain";
  const tokens = [
    "(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}", // AWS access key id
    "gh[pousr]_[A-Za-z0-9]{36,255}", // GitHub
    "github_pat_[A-Za-z0-9_]{22,255}",
    "gl(?:pat|ptt|dt|rt|cbt)-[A-Za-z0-9_.-]{20,65536}", // GitLab
    "xox[abeoprs]-[A-Za-z0-9-]{10,65536}", // Slack
    "xapp-[0-9]-[A-Za-z0-9-]{10,65536}",
    "(?:sk|rk)_(?:test|live|prod)_[A-Za-z0-9]{10,65536}", // Stripe
    isCertain ? "AIza[A-Za-z0-9_-]{35}" : "AIza[A-Za-z0-9_-]{20,65536}", // Google
    "ya29\\.[A-Za-z0-9_-]{20,65536}",
    "GOCSPX-[A-Za-z0-9_-]{28}",
    // OpenAI, Anthropic and their like. Without a digit it may be a word: `sk-fading-circle-animation`.
    isCertain ? "sk-(?=[A-Za-z_-]{0,60}[0-9])[A-Za-z0-9_-]{20,65536}" : "sk-[A-Za-z0-9_-]{16,65536}",
    "drv_[A-Za-z0-9_-]{16,65536}", // Drover
    // Standard Webhooks, shared and private.
    isCertain ? "wh(?:sec|sk)_[A-Za-z0-9+/]{16,65536}={0,2}" : "wh(?:sec|sk)_[A-Za-z0-9+/=]{16,65536}",
    "npm_[A-Za-z0-9]{36}",
    "hf_[A-Za-z]{34}", // Hugging Face
    "SG\\.[A-Za-z0-9_-]{16,65536}\\.[A-Za-z0-9_-]{16,65536}", // SendGrid
    "dop_v1_[a-f0-9]{64}", // DigitalOcean
    "pypi-[A-Za-z0-9_-]{50,65536}",
    "shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}", // Shopify
    "eyJ[A-Za-z0-9_-]{8,65536}\\.[A-Za-z0-9_-]{4,65536}\\.[A-Za-z0-9_-]{0,65536}(?:\\.[A-Za-z0-9_-]{1,65536}){0,2}", // JWT (RFC 7519), signed or encrypted
  ];
  return {
    tokens: tokens.join("|"),
    // Without a digit it may be prose: "the bearer authentication/authorization scheme".
    bearer: isCertain
      ? /(bearer[ \t]{1,4})[A-Za-z0-9._~+/-]{16,65536}={0,2}/gi
      : /(bearer\s{1,16})[A-Za-z0-9._~+/=-]{12,65536}/gi,
    // Brackets cannot stand in it, so a mark is not found again; in a log anything may that ends at an `@`.
    urlPassword: isCertain
      ? /(:\/\/[^\s/?#:@"'<>[\]]{0,256}:)[^\s/?#@"'<>[\]]{1,256}(?=@)/g
      : /(:\/\/[^\s:/@"]{0,1024}:)[^\s@/"]{1,4096}(?=@)/g,
  };
}
