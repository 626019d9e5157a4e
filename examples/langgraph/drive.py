"""Talks to the five graphs with LangGraph's Python SDK.

    pip install langgraph-sdk
    clearway dev &
    python drive.py [http://127.0.0.1:8123]
"""

import asyncio
import sys

from langgraph_sdk import get_client


async def main(url):
    client = get_client(url=url)

    thread = await client.threads.create()
    said = {"messages": [{"role": "user", "content": "hello from Python"}]}
    async for part in client.runs.stream(thread["thread_id"], "chat", input=said, stream_mode="messages-tuple"):
        if part.event == "messages":
            print(part.data[0]["content"], end="", flush=True)
    print()

    thread = await client.threads.create()
    async for part in client.runs.stream(
        thread["thread_id"], "steps", input={"topic": "tea"}, stream_mode=["updates", "custom"]
    ):
        print(part.event, part.data)
    for state in await client.threads.get_history(thread["thread_id"]):
        print("history:", state["metadata"]["step"], state["next"], state["values"].get("steps"))

    thread = await client.threads.create()
    stopped = await client.runs.wait(thread["thread_id"], "approval", input={"request": {"amount": 12}})
    print("asked:", stopped["__interrupt__"][0]["value"])
    done = await client.runs.wait(thread["thread_id"], "approval", command={"resume": {"approved": True}})
    print("answered:", done["answer"], done["steps"])

    thread = await client.threads.create()
    run = await client.runs.create(thread["thread_id"], "slow", input={"seconds": 60})
    await client.runs.cancel(thread["thread_id"], run["run_id"], wait=True)
    print("cancelled:", (await client.runs.get(thread["thread_id"], run["run_id"]))["status"])

    failed = await client.runs.wait(None, "failing", input={}, raise_error=False)
    print("failed:", failed["__error__"])


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8123"))
