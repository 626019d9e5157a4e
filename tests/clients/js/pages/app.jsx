// One page that serves both generations of `useStream`; `HOOK` is chosen when it is bundled.

import { useStream } from "HOOK";
import { useEffect, useRef, useState } from "react";
import { createRoot } from "react-dom/client";

const query = new URLSearchParams(location.search);
const GENERATION = process.env.GENERATION;

function textOf(message) {
  const { content } = message;
  if (typeof content === "string") return content;
  return content.map((part) => part.text ?? "").join("");
}

const typeOf = (message) => message.type ?? message.getType?.() ?? message._getType();

function Page() {
  const [threadId, setThreadId] = useState(query.get("thread"));
  const stream = useStream({
    apiUrl: query.get("api"),
    assistantId: query.get("assistant"),
    threadId,
    onThreadId: setThreadId,
    ...(GENERATION === "1" ? { reconnectOnMount: true, fetchStateHistory: true } : {}),
  });
  const input = useRef(null);
  const seen = useRef([]);
  const answer = stream.messages.filter((one) => typeOf(one) === "ai").map(textOf).at(-1);
  // What the answer looked like on its way, to tell streaming from waiting.
  useEffect(() => {
    if (answer && seen.current.at(-1) !== answer) seen.current.push(answer);
    window.seen = seen.current;
  }, [answer]);
  window.stream = stream;

  const send = () => {
    const text = input.current.value;
    const values = text.startsWith("{") ? JSON.parse(text) : { messages: [{ type: "human", content: text }] };
    const options = GENERATION === "1" ? { streamMode: ["values", "messages-tuple"], streamResumable: true, onDisconnect: query.get("leave") ?? "continue" } : {};
    void stream.submit(values, options);
  };
  const approve = () => {
    const answer = { decisions: [{ type: "approve" }] };
    if (GENERATION === "1") void stream.submit(undefined, { command: { resume: answer } });
    else void stream.respond(answer);
  };
  return (
    <main>
      <p id="thread">{threadId ?? stream.threadId ?? ""}</p>
      <p id="loading">{String(stream.isLoading)}</p>
      <p id="error">{stream.error ? String(stream.error.message ?? stream.error) : ""}</p>
      <ul>
        {stream.messages.map((one, at) => (
          <li key={one.id ?? at} className={typeOf(one)} data-id={one.id}>
            {textOf(one)}
          </li>
        ))}
      </ul>
      <pre id="values">{JSON.stringify(stream.values)}</pre>
      <pre id="interrupt">{stream.interrupt ? JSON.stringify(stream.interrupt.value) : ""}</pre>
      <input id="text" ref={input} />
      <button id="send" onClick={send}>Send</button>
      <button id="approve" onClick={approve}>Approve</button>
      <button id="stop" onClick={() => void stream.stop()}>Stop</button>
    </main>
  );
}

createRoot(document.getElementById("root")).render(<Page />);
