// Observations made comparable: ids, times and checkpoints become words.

const UUID = /[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}/g;
const TIME = /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)/g;

export function normal(value) {
  if (Array.isArray(value)) return value.map(normal);
  if (value && typeof value === "object") {
    const entries = Object.entries(value).map(([key, one]) => [normal(key), normal(one)]);
    return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
  }
  if (typeof value === "string") {
    return value
      .replace(UUID, "<uuid>")
      .replace(TIME, "<time>")
      .replace(/lc_run--<uuid>|run-+<uuid>/g, "<uuid>")
      .replace(/[0-9a-f]{32}/g, "<hash>")
      .replace(/\d{13}-\d+/g, "<event id>");
  }
  return value;
}
