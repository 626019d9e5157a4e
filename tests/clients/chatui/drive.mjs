// Drives a built Agent Chat UI in a real Chromium against a server.
//
//   node drive.mjs DIST BASE_URL
//
// DIST is the built UI; the server has the graphs of `clearway.toml` beside this file. Prints one JSON
// object, what was tried to what was seen; the exit code is 1 when something failed.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { chromium } from "playwright-core";

const LIMIT = 20_000;
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };

const [dist, api] = process.argv.slice(2);
if (!api) {
  console.error("usage: node drive.mjs DIST BASE_URL");
  process.exit(2);
}
const program = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
if (!program) {
  console.error("no Chromium here; on Debian: apt-get install chromium");
  process.exit(2);
}

const pages = createServer(async (request, response) => {
  const { pathname } = new URL(request.url, "http://localhost");
  const file = join(dist, normalize(pathname));
  const name = extname(file) && existsSync(file) ? file : join(dist, "index.html");
  response.setHeader("content-type", TYPES[extname(name)] ?? "application/octet-stream");
  response.end(await readFile(name));
});
await new Promise((done) => pages.listen(0, "127.0.0.1", done));
const origin = `http://127.0.0.1:${pages.address().port}`;

const profile = await mkdtemp(join(tmpdir(), "chatui-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: program,
  headless: true,
  viewport: { width: 1400, height: 1000 },
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"],
});

async function open(assistantId) {
  const page = await browser.newPage();
  page.setDefaultTimeout(LIMIT);
  page.on("pageerror", (error) => console.error(`${assistantId}: ${error}`));
  await page.goto(`${origin}/?${new URLSearchParams({ apiUrl: api, assistantId })}`);
  await page.waitForSelector("textarea");
  return page;
}

async function send(page, text) {
  await page.getByPlaceholder("Type your message...").fill(text);
  await page.getByRole("button", { name: "Send", exact: true }).click();
}

const shown = (page, text) => page.getByText(text).last().waitFor();
const settled = (page) => page.getByRole("button", { name: "Send", exact: true }).waitFor();

const checks = {
  async aChatStreams() {
    const page = await open("chat");
    await send(page, "one two three four five six seven eight");
    await shown(page, /^You said: one two/);
    await shown(page, "You said: one two three four five six seven eight");
    await settled(page);
    await send(page, "and again");
    await shown(page, "You said: and again");
    await settled(page);
    // The thread is in the list of threads, and can be opened again.
    const thread = new URL(page.url()).searchParams.get("threadId");
    assert.ok(thread, "the thread's id is in the address");
    await page.reload();
    await shown(page, "You said: and again");
    await page.close();
    return "streamed, remembered, opened again";
  },

  async aPersonAccepts() {
    const page = await open("review");
    await send(page, "write to ann");
    await shown(page, /send.?mail/i);
    await page.screenshot({ path: join(profile, "panel.png") });
    await page.getByRole("button", { name: "Accept", exact: true }).click();
    await shown(page, /The answer is accept/);
    await page.close();
    return "the panel was drawn, and accepting it went on";
  },

  async aPersonEdits() {
    const page = await open("review");
    await send(page, "write to ann");
    await shown(page, /send.?mail/i);
    const field = page.locator("textarea").filter({ hasText: "hello" }).first();
    await field.fill("good morning");
    await page.getByRole("button", { name: "Submit", exact: true }).click();
    await shown(page, /The answer is edit.*good morning/);
    await page.close();
    return "what was edited came back";
  },

  async aPersonRefuses() {
    const page = await open("review");
    await send(page, "write to ann");
    await shown(page, /send.?mail/i);
    await page.getByRole("button", { name: "Ignore", exact: true }).click();
    await shown(page, /The answer is ignore/);
    await page.close();
    return "refusing it went on";
  },
};

const seen = {};
let failed = false;
for (const [name, check] of Object.entries(checks)) {
  try {
    seen[name] = await check();
  } catch (error) {
    failed = true;
    seen[name] = { failed: String(error) };
    const open = browser.pages().at(-1);
    console.error(name, error, await open?.innerText("body").catch(() => ""));
  }
}
console.log(JSON.stringify(seen, null, 1));
await browser.close();
pages.close();
await rm(profile, { recursive: true, force: true });
process.exit(failed ? 1 : 0);
