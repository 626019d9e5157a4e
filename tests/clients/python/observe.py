"""Drives a server with LangGraph's Python SDK and prints what it saw.

    observe.py BASE_URL [SCENARIO...]

The output is one JSON object, scenario to observation, the same for every server that behaves the
same: ids and times are replaced by words. A scenario whose expectation fails is printed as
`{"failed": ...}`, and the exit code is 1.
"""

import asyncio
import json
import sys
import time
import traceback

import scenarios
from langgraph_sdk import get_client
from normal import normal

AT_ONCE = 8
LIMIT = 120


async def main(url, wanted):
    found = {name: run for name, run in vars(scenarios).items() if getattr(run, "is_scenario", False)}
    for name in wanted:
        if name not in found:
            sys.exit(f"no scenario `{name}`; there are: {', '.join(found)}")
    places = asyncio.Semaphore(AT_ONCE)
    client = get_client(url=url)

    async def one(name, scenario):
        async with places:
            began = time.monotonic()
            try:
                seen = normal(await asyncio.wait_for(scenario(client), LIMIT))
            except Exception as error:
                seen = {"failed": f"{type(error).__name__}: {error}"}
                traceback.print_exc(file=sys.stderr)
            print(f"{time.monotonic() - began:6.2f} s {name}", file=sys.stderr)
            return name, seen

    chosen = [(name, run) for name, run in found.items() if not wanted or name in wanted]
    seen = dict(await asyncio.gather(*(one(name, run) for name, run in chosen)))
    print(json.dumps(seen, indent=1, sort_keys=True))
    failed = [name for name, one in seen.items() if isinstance(one, dict) and "failed" in one]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1].rstrip("/"), sys.argv[2:]))
