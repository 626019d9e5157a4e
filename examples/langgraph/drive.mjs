// Talks to the five graphs with LangGraph's JavaScript SDK.
//
//   npm install @langchain/langgraph-sdk @langchain/core
//   clearway dev &
//   node drive.mjs [http://127.0.0.1:8123]

import { Client } from "@langchain/langgraph-sdk";

const client = new Client({ apiUrl: process.argv[2] ?? "http://127.0.0.1:8123" });

const chat = await client.threads.create();
const said = { messages: [{ role: "user", content: "hello from JavaScript" }] };
for await (const part of client.runs.stream(chat.thread_id, "chat", { input: said, streamMode: "messages-tuple" })) {
  if (part.event === "messages") process.stdout.write(part.data[0].content);
}
process.stdout.write("\n");

const steps = await client.threads.create();
const modes = ["updates", "custom"];
for await (const part of client.runs.stream(steps.thread_id, "steps", { input: { topic: "tea" }, streamMode: modes })) {
  console.log(part.event, part.data);
}

const approval = await client.threads.create();
await client.runs.wait(approval.thread_id, "approval", { input: { request: { amount: 12 } } });
const { tasks } = await client.threads.getState(approval.thread_id);
console.log("asked:", tasks[0].interrupts[0].value);
const done = await client.runs.wait(approval.thread_id, "approval", { command: { resume: { approved: true } } });
console.log("answered:", done.answer, done.steps);

const slow = await client.threads.create();
const run = await client.runs.create(slow.thread_id, "slow", { input: { seconds: 60 } });
await client.runs.cancel(slow.thread_id, run.run_id, true);
console.log("cancelled:", (await client.runs.get(slow.thread_id, run.run_id)).status);

const failed = await client.runs.wait(null, "failing", { input: {}, raiseError: false });
console.log("failed:", failed.__error__);
