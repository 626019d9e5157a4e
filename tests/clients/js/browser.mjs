// Drives `useStream` in a real Chromium, on a page of another origin than the server.
//
//   node browser.mjs BASE_URL [HOOK...]      HOOK: react, sdk-1.8, sdk-1.11 or sdk-2.0
//
// Prints one JSON object, hook to what was seen; the exit code is 1 when something failed.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { normal } from "./normal.mjs";

const HOOKS = {
  react: { module: "@langchain/react", generation: "2" },
  "sdk-1.8": { module: "sdk-1.8/react", generation: "1" },
  "sdk-1.11": { module: "sdk-1.11/react", generation: "1" },
  "sdk-2.0": { module: "sdk-2.0/react", generation: "1" },
};
const LIMIT = 20_000;

const [api, ...wanted] = process.argv.slice(2);
if (!api) {
  console.error("usage: node browser.mjs BASE_URL [HOOK...]");
  process.exit(2);
}
const program = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
if (!program) {
  console.error("no Chromium here; on Debian: apt-get install chromium");
  process.exit(2);
}

const here = dirname(fileURLToPath(import.meta.url));

async function bundle({ module, generation }) {
  const made = await build({
    absWorkingDir: here,
    entryPoints: [join(here, "pages/app.jsx")],
    bundle: true,
    write: false,
    format: "iife",
    platform: "browser",
    jsx: "automatic",
    alias: { HOOK: module },
    define: { "process.env.NODE_ENV": '"development"', "process.env.GENERATION": JSON.stringify(generation) },
    logLevel: "error",
  });
  return made.outputFiles[0].text;
}

const scripts = new Map();
const pages = createServer((request, response) => {
  const { pathname } = new URL(request.url, "http://localhost");
  const [, hook, file] = pathname.split("/");
  if (file === "app.js" && scripts.has(hook)) {
    response.setHeader("content-type", "text/javascript");
    response.end(scripts.get(hook));
  } else {
    response.setHeader("content-type", "text/html");
    response.end('<!doctype html><div id="root"></div><script src="app.js"></script>');
  }
});
await new Promise((done) => pages.listen(0, "127.0.0.1", done));
const origin = `http://127.0.0.1:${pages.address().port}`;

const profile = await mkdtemp(join(tmpdir(), "clients-"));
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: program,
  headless: true,
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

async function open(hook, assistant, more = {}) {
  const page = await browser.newPage();
  page.setDefaultTimeout(LIMIT);
  page.on("pageerror", (error) => console.error(`${hook}: ${error}`));
  page.on("console", (line) => line.type() === "error" && console.error(`${hook}: ${line.text()}`));
  const query = new URLSearchParams({ api, assistant, ...more });
  await page.goto(`${origin}/${hook}/?${query}`);
  await page.waitForSelector("#send");
  return page;
}

async function send(page, text) {
  await page.fill("#text", text);
  await page.click("#send");
}

const text = (page, selector) => page.textContent(selector);
const settled = (page) => page.waitForFunction(() => document.querySelector("#loading").textContent === "false");
const until = (page, selector, wanted) =>
  page.waitForFunction(
    ([selector, wanted]) => document.querySelector(selector)?.textContent.includes(wanted),
    [selector, wanted],
  );

const checks = {
  async aChatStreams(hook) {
    const page = await open(hook, "chat");
    await send(page, "one two three four five six seven eight");
    await until(page, "li.ai", "seven eight");
    await settled(page);
    const seen = await page.evaluate(() => window.seen);
    assert.ok(seen.length > 2, `it came in ${seen.length} pieces`);
    seen.reduce((before, after) => (assert.ok(after.startsWith(before), `${after} after ${before}`), after));
    await send(page, "again");
    await page.waitForFunction(() => document.querySelectorAll("li.ai").length === 2);
    await settled(page);
    const thread = await text(page, "#thread");
    const messages = () => page.$$eval("li", (all) => all.map((one) => [one.className, one.textContent]));
    const live = await messages();
    await page.close();
    // Another tab on the same thread sees the same.
    const other = await open(hook, "chat", { thread });
    await other.waitForFunction(() => document.querySelectorAll("li.ai").length === 2);
    const stored = await other.$$eval("li", (all) => all.map((one) => [one.className, one.textContent]));
    assert.deepEqual(stored, live);
    await other.close();
    return live;
  },

  async aPersonIsAsked(hook) {
    const page = await open(hook, "approval");
    await send(page, '{"request": {"amount": 12}}');
    await until(page, "#interrupt", "Publish?");
    const asked = JSON.parse(await text(page, "#interrupt"));
    await settled(page);
    await page.click("#approve");
    await until(page, "#values", "publish");
    await settled(page);
    const values = JSON.parse(await text(page, "#values"));
    await page.close();
    return { asked, answer: values.answer, steps: values.steps };
  },

  async aFailureIsTold(hook) {
    const page = await open(hook, "failing");
    await send(page, "{}");
    await until(page, "#error", "always fails");
    await page.close();
    return true;
  },

  async aReloadGoesOn(hook) {
    const page = await open(hook, "slow");
    await send(page, '{"seconds": 3}');
    await until(page, "#values", "begin");
    const thread = await text(page, "#thread");
    const stored = await page.evaluate(() => Object.entries(sessionStorage));
    await page.close();
    const other = await browser.newPage();
    other.setDefaultTimeout(LIMIT);
    await other.addInitScript((stored) => stored.forEach(([key, value]) => sessionStorage.setItem(key, value)), stored);
    await other.goto(`${origin}/${hook}/?${new URLSearchParams({ api, assistant: "slow", thread })}`);
    await until(other, "#values", "finish");
    const values = JSON.parse(await text(other, "#values"));
    await other.close();
    return values.steps;
  },
};

const chosen = wanted.length > 0 ? wanted : Object.keys(HOOKS);
const seen = {};
let failed = false;
await Promise.all(
  chosen.map(async (hook) => {
    const began = performance.now();
    seen[hook] = {};
    scripts.set(hook, await bundle(HOOKS[hook]));
    for (const [name, check] of Object.entries(checks)) {
      try {
        seen[hook][name] = normal(await check(hook));
      } catch (error) {
        failed = true;
        seen[hook][name] = { failed: String(error) };
        console.error(hook, name, error);
      }
    }
    console.error(`${((performance.now() - began) / 1000).toFixed(2).padStart(6)} s ${hook}`);
  }),
);
await browser.close();
pages.close();
await rm(profile, { recursive: true, force: true });
console.log(JSON.stringify(seen, null, 1));
process.exit(failed ? 1 : 0);
