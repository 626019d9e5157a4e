// What a browser or Node application does with its server. The graphs are those of
// `examples/langgraph`: `chat`, `steps`, `approval`, `slow` and `failing`.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

const ALL_STEPS = ["begin", "work", "finish"];
const MODES = ["values", "updates", "messages-tuple", "custom", "tasks", "checkpoints", "debug"];

const says = (text) => ({ messages: [{ role: "user", content: text }] });
const message = (one) => [one.type.replace(/MessageChunk$/, "").toLowerCase(), one.content];
const names = (value) => Object.keys(value).sort();

async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

async function statusOf(promise) {
  try {
    await promise;
    return 200;
  } catch (error) {
    const status = error.status ?? Number(/HTTP (\d+)/.exec(String(error))?.[1]);
    if (!status) throw error;
    return status;
  }
}

async function until(probe, what, limit = 20_000) {
  const end = Date.now() + limit;
  while (Date.now() < end) {
    const found = await probe();
    if (found) return found;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`still not: ${what}`);
}

const untilStep = (client, thread, step) =>
  until(async () => (await client.threads.getState(thread)).values?.steps?.includes(step), step);

const newThread = async (client) => (await client.threads.create()).thread_id;

const all = {
  async assistants(client) {
    const [one] = await client.assistants.search({ graphId: "chat", metadata: { created_by: "system" } });
    assert.equal(one.assistant_id, "eb6db400-e3c8-5d06-a834-015cb89efe69");
    const graph = await client.assistants.getGraph("steps");
    const made = await client.assistants.create({ graphId: "chat", name: "Made", metadata: { a: 1 } });
    const changed = await client.assistants.update(made.assistant_id, { graphId: "chat", metadata: { b: 2 } });
    const versions = await client.assistants.getVersions(made.assistant_id);
    const back = await client.assistants.setLatest(made.assistant_id, 1);
    await client.assistants.delete(made.assistant_id);
    return {
      one,
      nodes: graph.nodes.map((node) => node.id).sort(),
      changed: changed.metadata,
      versions: versions.map((one) => one.version),
      back: back.version,
      gone: await statusOf(client.assistants.get(made.assistant_id)),
    };
  },

  async threads(client) {
    const mark = randomUUID();
    const thread = await client.threads.create({ metadata: { mark } });
    const again = await client.threads.create({ threadId: thread.thread_id, ifExists: "do_nothing" });
    assert.deepEqual(again.metadata, { mark });
    await client.threads.update(thread.thread_id, { metadata: { more: true } });
    const found = await client.threads.search({ metadata: { mark } });
    const state = await client.threads.getState(thread.thread_id);
    const history = await client.threads.getHistory(thread.thread_id);
    const copy = await client.threads.copy(thread.thread_id);
    await client.threads.delete(thread.thread_id);
    return {
      found: found.map((one) => names(one.metadata)),
      state: [state.values, state.next, state.tasks],
      history: history.length,
      copied: copy.thread_id !== thread.thread_id,
      gone: await statusOf(client.threads.get(thread.thread_id)),
    };
  },

  async chatInEveryMode(client) {
    const thread = await newThread(client);
    let created;
    const parts = await collect(
      client.runs.stream(thread, "chat", {
        input: says("hello big world"),
        streamMode: MODES,
        onRunCreated: (run) => (created = run),
      }),
    );
    assert.equal(parts[0].event, "metadata");
    assert.equal(created.run_id, parts[0].data.run_id);
    const chunks = parts.filter((part) => part.event === "messages").map((part) => part.data);
    const text = chunks.map(([chunk]) => chunk.content).join("");
    assert.equal(text, "You said: hello big world");
    const state = await client.threads.getState(thread);
    assert.equal(state.values.messages.at(-1).id, chunks[0][0].id);
    return {
      events: [...new Set(parts.map((part) => part.event))].sort(),
      text,
      messages: state.values.messages.map(message),
      run: (await client.runs.get(thread, created.run_id)).status,
    };
  },

  async wholeMessages(client) {
    const parts = await collect(client.runs.stream(null, "chat", { input: says("one two"), streamMode: "messages" }));
    const partial = parts.filter((part) => part.event === "messages/partial");
    return {
      events: [...new Set(parts.map((part) => part.event))],
      last: partial.at(-1).data[0].content,
    };
  },

  async workflowInEveryMode(client) {
    const seen = {};
    for (const mode of ["values", "updates", "custom", "tasks", "checkpoints"]) {
      const thread = await newThread(client);
      const parts = await collect(client.runs.stream(thread, "steps", { input: { topic: "tea" }, streamMode: mode }));
      seen[mode] = parts.filter((part) => part.event === mode).map((part) => part.data);
    }
    assert.deepEqual(seen.values.at(-1).steps, ALL_STEPS);
    return {
      values: seen.values,
      updates: seen.updates,
      custom: seen.custom,
      tasks: seen.tasks.map((one) => [one.name, "result" in one]),
      checkpoints: seen.checkpoints.map((one) => [one.metadata.source, one.next]),
    };
  },

  async waitAndJoin(client) {
    const thread = await newThread(client);
    const values = await client.runs.wait(thread, "steps", { input: { topic: "tea" } });
    const run = await client.runs.create(thread, "steps", { input: { topic: "more" } });
    const joined = await client.runs.join(thread, run.run_id);
    const list = await client.runs.list(thread);
    return { values, joined, list: list.map((one) => one.status) };
  },

  async joinedStreams(client) {
    const thread = await newThread(client);
    const run = await client.runs.create(thread, "steps", {
      input: { topic: "tea" },
      streamMode: ["values", "updates"],
      streamResumable: true,
    });
    await client.runs.join(thread, run.run_id);
    const whole = await collect(client.runs.joinStream(thread, run.run_id, { lastEventId: "-1" }));
    const ids = whole.map((part) => part.id);
    assert.ok(ids.every(Boolean) && new Set(ids).size === ids.length);
    const rest = await collect(client.runs.joinStream(thread, run.run_id, { lastEventId: ids[1] }));
    assert.deepEqual(rest.map((part) => part.id), ids.slice(2));
    const some = await collect(
      client.runs.joinStream(thread, run.run_id, { lastEventId: "-1", streamMode: ["values", "updates"] }),
    );
    const one = await collect(client.runs.joinStream(thread, run.run_id, { lastEventId: "-1", streamMode: "updates" }));
    const events = (parts) => parts.map((part) => part.event);
    return { whole: events(whole), one: events(one), some: events(some) };
  },

  async aFailingGraph(client) {
    const thread = await newThread(client);
    const parts = await collect(client.runs.stream(thread, "failing", { input: {}, streamMode: "updates" }));
    const silent = await client.runs.wait(thread, "failing", { input: {}, raiseError: false });
    let raised = false;
    try {
      await client.runs.wait(thread, "failing", { input: {} });
    } catch (error) {
      raised = String(error).includes("always fails");
    }
    return {
      events: parts.map((part) => part.event),
      silent: names(silent.__error__),
      raised,
      thread: (await client.threads.get(thread)).status,
    };
  },

  async aPersonIsAsked(client) {
    const thread = await newThread(client);
    const parts = await collect(
      client.runs.stream(thread, "approval", { input: { request: { amount: 12 } }, streamMode: ["values", "updates"] }),
    );
    const state = await client.threads.getState(thread);
    const answer = { decisions: [{ type: "approve" }] };
    const resumed = await client.runs.wait(thread, "approval", { command: { resume: answer } });
    assert.deepEqual(resumed.answer, answer);
    return {
      events: parts.map((part) => part.event),
      asked: state.tasks[0].interrupts[0].value,
      next: state.next,
      resumed: resumed.steps,
    };
  },

  async stateAndForks(client) {
    const thread = await newThread(client);
    await client.runs.wait(thread, "steps", { input: { topic: "tea" } });
    const history = await client.threads.getHistory(thread);
    const work = history.find((one) => one.next[0] === "work");
    const { checkpoint_id, checkpoint_ns } = work.checkpoint;
    const forked = await client.runs.wait(thread, "steps", { input: null, checkpoint: { checkpoint_id, checkpoint_ns } });
    await client.threads.updateState(thread, { values: { steps: ["outside"] }, asNode: "work" });
    const state = await client.threads.getState(thread);
    const older = await client.threads.getHistory(thread, { limit: 3 });
    return {
      nexts: history.map((one) => one.next),
      forked: forked.steps,
      updated: [state.values.steps, state.next],
      limit: older.length,
    };
  },

  async strategies(client) {
    const seen = {};
    const two = async (strategy) => {
      const thread = await newThread(client);
      const first = await client.runs.create(thread, "slow", { input: { seconds: 1.5 } });
      await untilStep(client, thread, "begin");
      const second = client.runs.create(thread, "slow", { input: { seconds: 0 }, multitaskStrategy: strategy });
      const status = await statusOf(second);
      if (status === 200) {
        await client.runs.join(thread, (await second).run_id);
        seen[strategy] = (await client.threads.getState(thread)).values.steps;
      } else {
        await client.runs.join(thread, first.run_id);
        seen[strategy] = status;
      }
    };
    await Promise.all(["enqueue", "reject", "interrupt", "rollback"].map(two));
    return seen;
  },

  async cancelled(client) {
    const thread = await newThread(client);
    const run = await client.runs.create(thread, "slow", { input: { seconds: 60 } });
    await untilStep(client, thread, "begin");
    await client.runs.cancel(thread, run.run_id, true);
    const state = await client.threads.getState(thread);
    const next = await client.runs.wait(thread, "slow", { input: { seconds: 0 } });
    return {
      run: (await client.runs.get(thread, run.run_id)).status,
      next: state.next,
      steps: next.steps,
      again: await statusOf(client.runs.cancel(thread, run.run_id, true)),
    };
  },

  async aClientThatLeaves(client) {
    const thread = await newThread(client);
    const leave = new AbortController();
    let created;
    const stream = client.runs.stream(thread, "slow", {
      input: { seconds: 60 },
      streamMode: "updates",
      onDisconnect: "cancel",
      signal: leave.signal,
      onRunCreated: (run) => (created = run),
    });
    try {
      for await (const part of stream) if (part.event === "updates") leave.abort();
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
    await until(async () => (await client.runs.get(thread, created.run_id)).status === "interrupted", "interrupted");
    return "interrupted";
  },

  async stateless(client) {
    const values = await client.runs.wait(null, "steps", { input: { topic: "tea" } });
    const parts = await collect(client.runs.stream(null, "steps", { input: { topic: "tea" }, streamMode: "updates" }));
    const batch = await client.runs.createBatch([
      { assistantId: "steps", input: { topic: "a" } },
      { assistantId: "steps", input: { topic: "b" } },
    ]);
    return { values, events: parts.map((part) => part.event), batch: batch.length };
  },

  async storeAndCrons(client) {
    const mark = randomUUID();
    await client.store.putItem([mark, "notes"], "a", { title: "green tea", stars: 3 });
    await client.store.putItem([mark, "notes"], "b", { title: "coffee", stars: 5 });
    const item = await client.store.getItem([mark, "notes"], "a");
    const found = await client.store.searchItems([mark], { filter: { stars: { $gte: 4 } } });
    const spaces = await client.store.listNamespaces({ prefix: [mark] });
    await client.store.deleteItem([mark, "notes"], "a");
    const cron = await client.crons.create("steps", { schedule: "0 4 * * *", input: { topic: "tea" } });
    const mine = await client.crons.search({ limit: 1000 });
    await client.crons.delete(cron.cron_id);
    return {
      item: item.value,
      found: found.items.map((one) => one.key),
      spaces: spaces.namespaces,
      gone: (await client.store.getItem([mark, "notes"], "a")) ?? null,
      cron: mine.some((one) => one.cron_id === cron.cron_id),
    };
  },
};

export const scenarios = Object.fromEntries(Object.entries(all).map(([name, run]) => [name, { run }]));

const hasSessions = (client) => typeof client.threads.stream === "function";

// Thread sessions came with 1.9.
scenarios.aThreadSession = {
  since: hasSessions,
  async run(client) {
    const thread = client.threads.stream({ assistantId: "chat" });
    const texts = [];
    const following = (async () => {
      for await (const one of thread.messages) texts.push(await one.text);
    })();
    await thread.run.start({ input: says("hello session") });
    const output = await thread.output;
    await thread.close();
    await following;
    return { texts, output: output.messages.map((one) => one.content) };
  },
};

scenarios.aThreadSessionByWebSocket = {
  since: (client) => hasSessions(client) && typeof WebSocket !== "undefined",
  async run(client) {
    const thread = client.threads.stream({ assistantId: "steps", transport: "websocket" });
    await thread.run.start({ input: { topic: "tea" } });
    const output = await thread.output;
    await thread.close();
    return output;
  },
};
