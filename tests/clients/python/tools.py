"""Uses a server's agents and workflows as tools, with the Python MCP client.

    tools.py BASE_URL
"""

import asyncio
import json
import sys

import httpx2
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from normal import normal


async def use(url):
    seen = {}
    async with streamable_http_client(f"{url}/mcp") as streams:
        async with ClientSession(streams[0], streams[1]) as session:
            hello = await session.initialize()
            seen["server"] = hello.server_info.name if hasattr(hello, "server_info") else hello.serverInfo.name
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            seen["tools"] = sorted(tools)
            schema = tools["steps"].model_dump(by_alias=True)["inputSchema"]
            assert schema["type"] == "object" and "thread_id" in schema["properties"]

            def content(result):
                dumped = result.model_dump(by_alias=True)
                return dumped["isError"], dumped["content"][0]["text"], dumped["structuredContent"]

            error, text, more = content(await session.call_tool("chat", {"message": "hello tool"}))
            assert not error and text == "You said: hello tool", text
            error, text, _ = content(
                await session.call_tool("chat", {"message": "once more", "thread_id": more["thread_id"]})
            )
            assert not error and text == "You said: once more", text
            error, _, more = content(await session.call_tool("steps", {"topic": "tea"}))
            assert not error and more["values"]["steps"] == ["begin", "work", "finish"], more
            error, text, more = content(await session.call_tool("approval", {"request": {"amount": 12}}))
            assert not error and more["question"]["question"] == "Publish?", more
            seen["asked"] = normal(text)
            answer = {"thread_id": more["thread_id"], "resume": {"type": "approve"}}
            error, _, more = content(await session.call_tool("approval", answer))
            assert not error and more["values"]["answer"] == {"type": "approve"}, more
            error, text, _ = content(await session.call_tool("failing", {}))
            assert error and "always fails" in text, text
            seen["failed"] = normal(text)
            try:
                error, _, _ = content(await session.call_tool("no-such-tool", {}))
                seen["unknown"] = error
            except Exception as refused:
                seen["unknown"] = "no tool" in str(refused)
            assert seen["unknown"]
    # Pages of other sites, and names that could be bound to this machine, are refused.
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    ask = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    async with httpx2.AsyncClient() as http:
        for bad in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
            answer = await http.post(f"{url}/mcp", json=ask, headers=headers | bad)
            assert answer.status_code == 403, (bad, answer.status_code)
        good = await http.post(f"{url}/mcp", json=ask, headers=headers | {"origin": "http://localhost:3000"})
        assert good.status_code == 200, good.text
    print(json.dumps(seen, indent=1, sort_keys=True))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(asyncio.wait_for(use(sys.argv[1].rstrip("/")), 60))
