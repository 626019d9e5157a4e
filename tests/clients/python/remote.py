"""Clearway as the client of a tool server over HTTP that somebody else's package makes.

    remote.py BINARY

Starts the tool server of `mcp_server.py` and a Clearway that uses it, and looks at what comes of a read, of an error,
of an agent that calls, and of a tool server that was gone for a while.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

CONFIG = """
[mcp.warehouse]
url      = "http://127.0.0.1:{port}/mcp"
deadline = "5s"

[providers.demo]
kind   = "sim"
script = [
  {{ match = "how many", tool = "warehouse_stock", arguments = '{{"article": "lamp"}}' }},
  {{ match = "", reply = "{{{{ messages[-1].content }}}}" }},
]

[models.demo]
provider = "demo"
model    = "demo"

[agents.clerk]
model = "demo"
tools = ["mcp:warehouse"]

[workflows.count]
input = {{ tool = "string = 'stock'" }}

[workflows.count.steps.which]
do   = "branch"
when = [{{ if = "input.tool == 'broken'", go = "broken" }}, {{ else = true, go = "stock" }}]

[workflows.count.steps.stock]
do     = "tool"
tool   = "warehouse/stock"
effect = "read"
args   = {{ article = "lamp" }}

[workflows.count.steps.broken]
do     = "tool"
tool   = "warehouse/broken"
effect = "read"
"""

ENDS = ("success", "error", "timeout", "cancelled")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(method, url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def until(what, look, limit=20):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        try:
            found = look()
        except (urllib.error.URLError, ConnectionError):
            found = None
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(what)


def tool_server(port):
    script = pathlib.Path(__file__).with_name("mcp_server.py")
    process = subprocess.Popen(
        [sys.executable, script, f"127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until("the tool server listens", lambda: listens(port))
    return process


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    def __init__(self, binary, folder, tools):
        self.url = f"http://127.0.0.1:{free_port()}"
        (folder / "clearway.toml").write_text(CONFIG.format(port=tools))
        self.process = subprocess.Popen(
            [binary, "serve", "--config", "clearway.toml", "--listen", self.url.removeprefix("http://")],
            cwd=folder,
            stdout=open(folder / "log", "w"),
            stderr=subprocess.STDOUT,
        )
        until("the server answers", lambda: call("GET", self.url + "/health/ready"))

    def run(self, workflow, given):
        run = call("POST", f"{self.url}/workflows/{workflow}/runs", {"input": given})["run_id"]
        return self.ended(run)

    def ended(self, run):
        look = lambda: call("GET", f"{self.url}/runs/{run}")
        return until("the run ends", lambda: (seen := look())["status"] in ENDS and seen)

    def values(self, run):
        return call("GET", f"{self.url}/threads/{run['thread_id']}/state")["values"]


def main():
    binary, failed, seen = os.path.abspath(sys.argv[1]), [], {}

    def check(name, holds, what):
        seen[name] = what
        if not holds:
            failed.append(name)
            print(f"{name}: {json.dumps(what)[:600]}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        folder, port = pathlib.Path(folder), free_port()
        tools = tool_server(port)
        server = Server(binary, folder, port)
        try:
            run = server.run("count", {})
            values = server.values(run)
            check("a step reads", run["status"] == "success" and "count" in json.dumps(values["stock"]), values["stock"])
            check("its answer stands among events", '"count": 4' in json.dumps(values["stock"]).replace('\\"', '"'), values["stock"])

            run = server.run("count", {"tool": "broken"})
            said = (run["error"] or {}).get("message", "")
            check("a tool's error is the step's", run["status"] == "error" and "broken" in said, run["error"])

            thread = call("POST", server.url + "/threads", {})["thread_id"]
            asked = {"messages": [{"role": "user", "content": "how many lamps are there?"}]}
            body = {"assistant_id": "clerk", "input": asked}
            run = call("POST", f"{server.url}/threads/{thread}/runs", body)["run_id"]
            run = server.ended(run)
            told = server.values(run)["messages"][-1]["content"]
            check("an agent calls and hears", run["status"] == "success" and "4" in json.dumps(told), told)

            tools.kill()
            tools.wait()
            run = server.run("count", {})
            check("a server that is gone is an error", run["status"] == "error", run["error"])
            tools = tool_server(port)
            # It has new sessions and knows nothing of the old one.
            look = lambda: (seen := server.run("count", {}))["status"] == "success" and seen
            run = until("the server is used again", look)
            check("a server that is back is used", run["status"] == "success", run["status"])
        finally:
            server.process.terminate()
            server.process.wait(20)
            tools.kill()
            tools.wait()
            if failed:
                print((folder / "log").read_text()[-4000:], file=sys.stderr)
    print(json.dumps({"failed": failed, "seen": seen}, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
