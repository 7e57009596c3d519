/** The options of commands that show a list page by page. */
export interface PageOptions {
  json?: boolean;
  limit?: number;
  cursor?: string;
}

export function pageOf({ limit, cursor }: PageOptions): URLSearchParams {
  return new URLSearchParams({
    ...(limit !== undefined && { limit: String(limit) }),
    ...(cursor !== undefined && { cursor }),
  });
}
