// Drives a server with a version of LangGraph's JavaScript SDK and prints what it saw.
//
//   node observe.mjs VERSION BASE_URL [SCENARIO...]      VERSION: 1.8, 1.11 or 2.0
//
// The output is one JSON object, scenario to observation, with ids and times replaced by words.
// A scenario whose expectation fails is printed as {"failed": ...}, and the exit code is 1.

import { normal } from "./normal.mjs";
import { scenarios } from "./scenarios.mjs";

const LIMIT = 60_000;
const AT_ONCE = 6;

const [version, url, ...wanted] = process.argv.slice(2);
if (!url) {
  console.error("usage: node observe.mjs VERSION BASE_URL [SCENARIO...]");
  process.exit(2);
}
const { Client } = await import(`sdk-${version}`);
const client = new Client({ apiUrl: url.replace(/\/$/, ""), callerOptions: { maxRetries: 0 } });
const available = Object.entries(scenarios).filter(
  ([name, { since }]) => (wanted.length === 0 || wanted.includes(name)) && (!since || since(client)),
);

const seen = {};
async function one([name, { run }]) {
  const began = performance.now();
  let timer;
  const limit = new Promise((_, no) => {
    timer = setTimeout(() => no(new Error(`not done after ${LIMIT / 1000} s`)), LIMIT);
  });
  try {
    seen[name] = normal(await Promise.race([run(client), limit]));
  } catch (error) {
    seen[name] = { failed: String(error) };
    console.error(name, error);
  } finally {
    clearTimeout(timer);
  }
  console.error(`${((performance.now() - began) / 1000).toFixed(2).padStart(6)} s ${version} ${name}`);
}

const queue = [...available];
const worker = async () => {
  for (let next = queue.shift(); next; next = queue.shift()) await one(next);
};
await Promise.all(Array.from({ length: AT_ONCE }, worker));
const sorted = Object.fromEntries(Object.entries(seen).sort());
console.log(JSON.stringify(sorted, null, 1));
const failed = Object.entries(sorted).filter(([, one]) => one && one.failed);
if (failed.length > 0) console.error(`failed: ${failed.map(([name]) => name).join(", ")}`);
process.exit(failed.length > 0 ? 1 : 0);
