"""A tool server over streamable HTTP, made with the MCP package: what Clearway is a client of."""

import sys

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("warehouse")


@server.tool()
async def stock(article: str, ctx: Context) -> dict:
    """How many of an article there are."""
    # Events before the answer: the client has to find it among them.
    await ctx.report_progress(1, 2, "counting")
    return {"article": article, "count": len(article)}


@server.tool()
def broken() -> str:
    """Always fails."""
    raise ValueError("the shelf fell over")


if __name__ == "__main__":
    host, port = sys.argv[1].split(":")
    server.run("streamable-http", host=host, port=int(port))
