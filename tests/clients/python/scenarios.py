"""What a LangGraph application does with its server, one function per habit.

Each takes a client, checks what must hold and returns what it saw. The graphs are those of
`examples/langgraph`: `chat`, `steps`, `approval`, `slow` and `failing`.
"""

import asyncio
import uuid

import httpx
from langgraph_sdk.errors import APIStatusError
from normal import keys, message

ALL_STEPS = ["begin", "work", "finish"]
MODES = ["values", "updates", "messages-tuple", "custom", "tasks", "checkpoints", "debug"]


def scenario(function):
    function.is_scenario = True
    return function


def says(text):
    return {"messages": [{"role": "user", "content": text}]}


async def status_of(awaitable):
    """The status that a call is refused with, or 200."""
    try:
        await awaitable
    except APIStatusError as error:
        return error.status_code
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    except httpx.TransportError:
        return "the connection closed"
    return 200


async def collect(stream):
    return [part async for part in stream]


async def until(probe, what, limit=20.0):
    """Asks again until it is true; the time is bounded, the order is not guessed."""
    end = asyncio.get_running_loop().time() + limit
    while asyncio.get_running_loop().time() < end:
        found = await probe()
        if found:
            return found
        await asyncio.sleep(0.05)
    raise TimeoutError(f"still not: {what}")


async def until_status(client, thread, run, *wanted):
    async def probe():
        found = await client.runs.get(thread, run)
        return found if found["status"] in wanted else None

    return await until(probe, f"run is {' or '.join(wanted)}")


async def until_step(client, thread, step):
    """Until the thread's state has committed this step."""

    async def probe():
        state = await client.threads.get_state(thread)
        return state if step in (state["values"] or {}).get("steps", []) else None

    return await until(probe, f"step {step} is done")


# ## The server, and its assistants


@scenario
async def server_says_what_it_is(client):
    http = client.http.client
    ok = (await http.get("/ok")).json()
    info = (await http.get("/info")).json()
    assert ok["ok"] is True
    return {"ok": ok, "flags": {name: info["flags"][name] for name in ("assistants", "crons")}}


@scenario
async def assistants_of_the_server(client):
    found = await client.assistants.search(graph_id="chat", limit=10)
    mine = [one for one in found if one["metadata"].get("created_by") == "system"]
    assert len(mine) == 1
    one = mine[0]
    assert one["assistant_id"] == "eb6db400-e3c8-5d06-a834-015cb89efe69"
    again = await client.assistants.get(one["assistant_id"])
    assert again == one
    unknown = await status_of(client.assistants.get(str(uuid.uuid4())))
    no_id = await status_of(client.assistants.get("not-a-uuid"))
    graph = await client.assistants.get_graph("steps")
    shapes = await client.assistants.get_schemas(
        (await client.assistants.search(graph_id="steps"))[0]["assistant_id"]
    )
    no_graph = await status_of(client.assistants.search(graph_id="no-such-graph"))
    return {
        "one": one,
        "unknown": unknown,
        "no_id": no_id,
        "nodes": sorted(node["id"] for node in graph["nodes"]),
        "edges": sorted((edge["source"], edge["target"]) for edge in graph["edges"]),
        "schemas": keys(shapes),
        "state": sorted(shapes["state_schema"].get("properties", {})),
        "no_graph": no_graph,
    }


@scenario
async def assistants_of_ones_own(client):
    mark = str(uuid.uuid4())
    made = await client.assistants.create(
        "chat", config={"configurable": {"tone": "dry"}}, metadata={"mark": mark, "a": 1}, name="Dry one"
    )
    id = made["assistant_id"]
    taken = await status_of(client.assistants.create("chat", assistant_id=id))
    same = await client.assistants.create("chat", assistant_id=id, if_exists="do_nothing")
    assert same["assistant_id"] == id and same["name"] == "Dry one"
    patched = await client.assistants.update(
        id, metadata={"b": 2}, name="Wet one", config={"configurable": {"tone": "wet"}}
    )
    versions = await client.assistants.get_versions(id)
    back = await client.assistants.set_latest(id, 1)
    found = await client.assistants.search(metadata={"mark": mark})
    by_name = await client.assistants.search(name="RY ON", metadata={"mark": mark})
    count = await client.assistants.count(metadata={"mark": mark})
    selected = await client.assistants.search(metadata={"mark": mark}, select=["assistant_id", "name"])
    ran = await client.runs.wait(None, id, input=says("hello"))
    await client.assistants.delete(id)
    gone = await status_of(client.assistants.get(id))
    unknown_graph = await status_of(client.assistants.create("no-such-graph"))
    untitled = await client.assistants.create("chat", metadata={"mark": mark})
    await client.assistants.delete(untitled["assistant_id"])
    # Where the peer leaves `context` behind on the way back it is wrong; look at the rest.
    without = lambda one: {key: value for key, value in one.items() if key != "context"}
    return {
        "made": made,
        "taken": taken,
        "patched": patched,
        "versions": [(one["version"], one["name"], one["metadata"]) for one in versions],
        "back": without(back),
        "found": [one["name"] for one in found],
        "by_name": len(by_name),
        "count": count,
        "selected": selected,
        "ran": [message(one) for one in ran["messages"]],
        "gone": gone,
        "unknown_graph": unknown_graph,
        "untitled": untitled["name"],
    }


# ## Threads


@scenario
async def threads_come_and_go(client):
    mark = str(uuid.uuid4())
    thread = await client.threads.create(metadata={"mark": mark})
    id = thread["thread_id"]
    again = await client.threads.create(thread_id=id, if_exists="do_nothing")
    assert again["metadata"] == {"mark": mark}
    taken = await status_of(client.threads.create(thread_id=id))
    patched = await client.threads.update(id, metadata={"more": [1]})
    empty = await client.threads.get_state(id)
    history = await client.threads.get_history(id)
    found = await client.threads.search(metadata={"mark": mark})
    counted = await client.threads.count(metadata={"mark": mark})
    await client.threads.delete(id)
    gone = await status_of(client.threads.get(id))
    return {
        "thread": thread,
        "taken": taken,
        "metadata": keys(patched["metadata"]),
        "empty": empty,
        "history": history,
        "found": len(found),
        "counted": counted,
        "gone": gone,
        "not_an_id": await status_of(client.threads.get("nonsense")),
        "state_of_unknown": await status_of(client.threads.get_state(str(uuid.uuid4()))),
        "delete_unknown": await status_of(client.threads.delete(str(uuid.uuid4()))),
    }


@scenario
async def threads_are_searched(client):
    mark = str(uuid.uuid4())
    ids = []
    for number in range(3):
        thread = await client.threads.create(metadata={"mark": mark, "number": number})
        ids.append(thread["thread_id"])
    await client.runs.wait(ids[1], "steps", input={"topic": "tea"})
    await client.runs.wait(ids[2], "approval", input={"request": 7})
    by = lambda **more: client.threads.search(metadata={"mark": mark}, **more)
    number = lambda found: [one["metadata"]["number"] for one in found]
    oldest = await by(sort_by="created_at", sort_order="asc")
    page = await by(limit=1, offset=1, sort_by="created_at", sort_order="asc")
    interrupted = await by(status="interrupted")
    some = await by(ids=[ids[0], ids[2]], sort_by="created_at", sort_order="asc")
    selected = await by(select=["thread_id", "status"], sort_by="created_at", sort_order="asc")
    last = await by(ids=[ids[1]], extract={"last": "values.steps[-1]"})
    return {
        "newest_first": number(await by()),
        "oldest_first": number(oldest),
        "page": number(page),
        "interrupted": number(interrupted),
        "some": number(some),
        "selected": selected,
        "extracted": [one["extracted"] for one in last],
        "graphs": [one["metadata"].get("graph_id") for one in oldest],
        "bad_limit": await status_of(by(limit=0)),
        "bad_sort": await status_of(by(sort_by="colour")),
    }


@scenario
async def threads_are_copied_and_pruned(client):
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "steps", input={"topic": "tea"})
    copy = await client.threads.copy(thread)
    assert copy["thread_id"] != thread
    state = await client.threads.get_state(copy["thread_id"])
    history = await client.threads.get_history(copy["thread_id"], limit=100)
    # The copy goes its own way.
    await client.runs.wait(copy["thread_id"], "steps", input={"topic": "more"})
    original = await client.threads.get_state(thread)
    pruned = await client.threads.prune([thread, copy["thread_id"], str(uuid.uuid4())])
    return {
        "state": state["values"],
        "history": len(history),
        "original": original["values"]["steps"],
        "pruned": pruned,
        "gone": await status_of(client.threads.get(thread)),
    }


# ## Runs


@scenario
async def a_chat_streams_in_every_mode(client):
    thread = (await client.threads.create())["thread_id"]
    created = {}
    parts = await collect(
        client.runs.stream(
            thread,
            "chat",
            input=says("hello big world"),
            stream_mode=MODES,
            on_run_created=created.update,
        )
    )
    assert parts[0].event == "metadata" and parts[0].data["attempt"] == 1
    assert created["run_id"] == parts[0].data["run_id"] and created["thread_id"] == thread
    chunks = [part.data for part in parts if part.event == "messages"]
    text = "".join(chunk["content"] for chunk, _ in chunks)
    assert text == "You said: hello big world", text
    state = await client.threads.get_state(thread)
    stored = state["values"]["messages"][-1]
    assert {chunk["id"] for chunk, _ in chunks} == {stored["id"]}, "one id from first chunk to state"
    run = await client.runs.get(thread, created["run_id"])
    return {
        "events": sorted({part.event for part in parts}),
        "text": text,
        "chunk": chunks[0][0]["type"],
        "chunk_metadata": sorted(
            name
            for name in chunks[0][1]
            if name in ("langgraph_node", "langgraph_step", "langgraph_triggers", "langgraph_path", "run_id", "thread_id")
        ),
        "last": chunks[-1][0].get("chunk_position"),
        "values": [[message(one) for one in part.data["messages"]] for part in parts if part.event == "values"],
        "updates": [{node: [message(one) for one in wrote["messages"]] for node, wrote in part.data.items()} for part in parts if part.event == "updates"],
        "tasks": [keys(part.data) for part in parts if part.event == "tasks"],
        "checkpoints": [keys(part.data) for part in parts if part.event == "checkpoints"],
        "debug": [part.data["type"] for part in parts if part.event == "debug"],
        "run": run["status"],
        "run_keys": keys(run),
    }


@scenario
async def a_chat_streams_whole_messages(client):
    parts = await collect(client.runs.stream(None, "chat", input=says("one two"), stream_mode="messages"))
    partial = [part.data[0] for part in parts if part.event == "messages/partial"]
    contents = [one["content"] for one in partial]
    assert contents and all(after.startswith(before) for before, after in zip(contents, contents[1:]))
    metadata = [part.data for part in parts if part.event == "messages/metadata"]
    assert len({one["id"] for one in partial}) == 1 and partial[0]["id"] in metadata[0]
    return {
        "events": list(dict.fromkeys(part.event for part in parts)),
        "last": contents[-1],
        "type": partial[0]["type"],
    }


@scenario
async def a_chat_remembers_and_edits(client):
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "chat", input=says("first"))
    second = await client.runs.wait(thread, "chat", input=says("second"))
    messages = second["messages"]
    assert len(messages) == 4 and all(one["id"] for one in messages)
    # A message with a known id replaces the stored one.
    edited = dict(messages[0], content="edited")
    await client.threads.update_state(thread, {"messages": [edited]})
    state = await client.threads.get_state(thread)
    return {
        "conversation": [message(one) for one in messages],
        "edited": [message(one) for one in state["values"]["messages"]],
        "keys": {one["type"]: keys(one) for one in messages[:2]},
    }


@scenario
async def a_workflow_streams_in_every_mode(client):
    seen = {}
    for mode in ("values", "updates", "custom", "tasks", "checkpoints"):
        thread = (await client.threads.create())["thread_id"]
        parts = await collect(client.runs.stream(thread, "steps", input={"topic": "tea"}, stream_mode=mode))
        seen[mode] = [part.data for part in parts if part.event == mode]
    assert seen["values"][-1]["steps"] == ALL_STEPS
    assert [list(one) for one in seen["updates"]] == [[name] for name in ALL_STEPS]
    tasks = [(one["name"], "result" in one) for one in seen["tasks"]]
    return {
        "values": seen["values"],
        "updates": seen["updates"],
        "custom": seen["custom"],
        "tasks": tasks,
        "task": {key: seen["tasks"][1][key] for key in ("name", "error", "result", "interrupts")},
        "checkpoints": [(one["metadata"]["source"], one["metadata"]["step"], one["next"]) for one in seen["checkpoints"]],
    }


@scenario
async def modes_together_come_in_order(client):
    thread = (await client.threads.create())["thread_id"]
    modes = ["updates", "values", "custom", "tasks", "checkpoints"]
    parts = await collect(client.runs.stream(thread, "steps", input={"topic": "tea"}, stream_mode=modes))
    return [part.event for part in parts]


@scenario
async def wait_and_join(client):
    thread = (await client.threads.create())["thread_id"]
    values = await client.runs.wait(thread, "steps", input={"topic": "tea"})
    assert values["steps"] == ALL_STEPS
    run = (await client.runs.list(thread))[0]
    joined = await client.runs.join(thread, run["run_id"])
    assert joined == values
    background = await client.runs.create(thread, "steps", input={"topic": "more"})
    assert background["status"] in ("pending", "running")
    after = await client.runs.join(thread, background["run_id"])
    return {
        "values": values,
        "after": after,
        "run": {key: run[key] for key in ("status", "multitask_strategy", "metadata")} | {"assistant": len(run["assistant_id"])},
        "statuses": [one["status"] for one in await client.runs.list(thread)],
        "no_thread": await status_of(client.runs.wait(str(uuid.uuid4()), "steps", input={}, raise_error=False)),
        "created": (await client.runs.wait(str(uuid.uuid4()), "steps", input={"topic": "x"}, if_not_exists="create"))["steps"],
        "no_graph": await status_of(client.runs.create(thread, "no-such-graph", input={})),
        "no_assistant": await status_of(client.runs.create(thread, str(uuid.uuid4()), input={})),
        "no_run": await status_of(client.runs.get(thread, str(uuid.uuid4()))),
    }


@scenario
async def a_failing_graph(client):
    thread = (await client.threads.create())["thread_id"]
    parts = await collect(client.runs.stream(thread, "failing", input={}, stream_mode="updates"))
    assert parts[-1].event == "error" and "always fails" in parts[-1].data["message"]
    run = (await client.runs.list(thread))[0]
    raised = None
    try:
        await client.runs.wait(thread, "failing", input={})
    except Exception as error:
        raised = "always fails" in str(error)
    silent = await client.runs.wait(thread, "failing", input={}, raise_error=False)
    found = await client.threads.get(thread)
    state = await client.threads.get_state(thread)
    return {
        "events": [part.event for part in parts],
        "error": keys(parts[-1].data),
        "run": run["status"],
        "raised": raised,
        "silent": keys(silent["__error__"]),
        "thread": found["status"],
        "thread_error": found["error"] is not None,
        "next": state["next"],
        "task_error": state["tasks"][0]["error"] is not None,
    }


@scenario
async def stateless_runs_leave_nothing(client):
    values = await client.runs.wait(None, "steps", input={"topic": "tea"})
    kept = {}
    parts = await collect(
        client.runs.stream(None, "steps", input={"topic": "tea"}, on_run_created=kept.update, stream_mode="updates")
    )
    batch = await client.runs.create_batch([
        {"assistant_id": "steps", "input": {"topic": "a"}},
        {"assistant_id": "steps", "input": {"topic": "b"}},
    ])
    resumed = await status_of(client.runs.wait(None, "approval", command={"resume": 1}))
    return {
        "values": values,
        "events": [part.event for part in parts],
        "created": keys(kept),
        "batch": [one["status"] in ("pending", "running") for one in batch],
        "resume": resumed,
    }


@scenario
async def a_delayed_run_waits(client):
    thread = (await client.threads.create())["thread_id"]
    run = await client.runs.create(thread, "steps", input={"topic": "later"}, after_seconds=1)
    early = (await client.runs.get(thread, run["run_id"]))["status"]
    values = await client.runs.join(thread, run["run_id"])
    return {"later": run["created_at"] > run["updated_at"], "early": early, "steps": values["steps"]}


# ## Streams that break off


@scenario
async def a_stream_is_joined_again(client):
    thread = (await client.threads.create())["thread_id"]
    run = await client.runs.create(
        thread, "steps", input={"topic": "tea"}, stream_mode=["values", "updates"], stream_resumable=True
    )
    await client.runs.join(thread, run["run_id"])
    whole = await collect(client.runs.join_stream(thread, run["run_id"], last_event_id="-1"))
    ids = [part.id for part in whole]
    assert all(ids) and len(set(ids)) == len(ids)
    later = await collect(client.runs.join_stream(thread, run["run_id"], last_event_id=ids[2]))
    assert [part.id for part in later] == ids[3:]
    one_mode = await collect(
        client.runs.join_stream(thread, run["run_id"], last_event_id="-1", stream_mode="updates")
    )
    live = await collect(client.runs.join_stream(thread, run["run_id"]))
    unknown = await collect(client.runs.join_stream(thread, str(uuid.uuid4())))
    return {
        "whole": [part.event for part in whole],
        "one_mode": [part.event for part in one_mode],
        "live": [part.event for part in live],
        "unknown": [part.event for part in unknown],
    }


@scenario
async def many_follow_one_run(client):
    thread = (await client.threads.create())["thread_id"]
    run = await client.runs.create(
        thread, "slow", input={"seconds": 1}, stream_mode=["values", "updates"], stream_resumable=True
    )
    follow = lambda: collect(client.runs.join_stream(thread, run["run_id"], last_event_id="-1"))
    seen = await asyncio.gather(*(follow() for _ in range(5)))
    assert all(one == seen[0] for one in seen)
    return [part.event for part in seen[0]]


@scenario
async def a_thread_is_followed(client):
    thread = (await client.threads.create())["thread_id"]
    seen = []
    done = asyncio.Event()

    async def follow():
        async for part in await client.threads.join_stream(thread):
            seen.append(part)
            if part.event == "metadata" and (part.data or {}).get("status") == "run_done":
                done.set()

    follower = asyncio.create_task(follow())
    await asyncio.sleep(1.0)  # the peer has no sign for "I listen now"
    await collect(client.runs.stream(thread, "steps", input={"topic": "tea"}, stream_mode="updates"))
    await asyncio.wait_for(done.wait(), 20)
    follower.cancel()
    # What is heard depends on the modes; that something is, and that the end is told, does not.
    return {"events": bool(seen), "ids": all(part.id for part in seen), "done": seen[-1].data["status"]}


# ## State


@scenario
async def history_tells_every_step(client):
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "steps", input={"topic": "tea"})
    history = await client.threads.get_history(thread)
    assert [one["next"] for one in history] == [[], ["finish"], ["work"], ["begin"], ["__start__"]]
    ids = [one["checkpoint"]["checkpoint_id"] for one in history]
    assert ids == sorted(ids, reverse=True)
    for child, parent in zip(history, history[1:]):
        assert child["parent_checkpoint"]["checkpoint_id"] == parent["checkpoint"]["checkpoint_id"]
    at = await client.threads.get_state(thread, checkpoint=history[2]["checkpoint"])
    assert at["values"] == history[2]["values"]
    older = await client.threads.get_history(thread, limit=2)
    nowhere = await client.threads.get_state(thread, checkpoint_id=str(uuid.uuid4()))
    inputs = await client.threads.get_history(thread, metadata={"source": "input"})
    return {
        "states": [(one["metadata"]["source"], one["metadata"]["step"], one["values"]) for one in history],
        "last_parent": history[-1]["parent_checkpoint"],
        "task": history[1]["tasks"],
        "keys": keys(history[0]),
        "limit": len(older),
        "nowhere": nowhere["values"],
        "inputs": len(inputs),
    }


@scenario
async def state_is_changed_from_outside(client):
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "steps", input={"topic": "tea"})
    answer = await client.threads.update_state(thread, {"steps": ["outside"]}, as_node="begin")
    state = await client.threads.get_state(thread)
    found = await client.threads.get(thread)
    after = await client.runs.wait(thread, "steps", input=None)
    unknown = await status_of(client.threads.update_state(thread, {"steps": ["x"]}, as_node="nobody"))
    fresh = (await client.threads.create())["thread_id"]
    return {
        "answer": keys(answer),
        "source": state["metadata"]["source"],
        "next": state["next"],
        "steps": state["values"]["steps"],
        "thread": found["status"],
        "after": after["steps"],
        "unknown": unknown,
        "no_graph": await status_of(client.threads.update_state(fresh, {"steps": ["x"]})),
    }


@scenario
async def a_fork_runs_again(client):
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "steps", input={"topic": "tea"})
    history = await client.threads.get_history(thread)
    before_work = next(one for one in history if one["next"] == ["work"])
    checkpoint = {key: before_work["checkpoint"][key] for key in ("checkpoint_id", "checkpoint_ns")}
    values = await client.runs.wait(thread, "steps", input=None, checkpoint=checkpoint)
    after = await client.threads.get_history(thread)
    fork = next(one for one in after if one["metadata"]["source"] == "fork")
    assert fork["parent_checkpoint"]["checkpoint_id"] == checkpoint["checkpoint_id"]
    return {
        "values": values,
        "sources": [one["metadata"]["source"] for one in after],
        "kept": {one["checkpoint"]["checkpoint_id"] for one in history} <= {one["checkpoint"]["checkpoint_id"] for one in after},
    }


@scenario
async def steps_count_over_the_whole_thread(client):
    thread = (await client.threads.create())["thread_id"]
    steps = lambda history: [(one["metadata"]["source"], one["metadata"]["step"], one["next"]) for one in history]
    await client.runs.wait(thread, "steps", input={"topic": "one"})
    await client.threads.update_state(thread, {"steps": ["outside"]}, as_node="begin")
    await client.runs.wait(thread, "steps", input=None)
    parts = await collect(client.runs.stream(thread, "steps", input={"topic": "two"}, stream_mode=["checkpoints", "debug"]))
    told = [one.data["metadata"]["step"] for one in parts if one.event == "checkpoints"]
    debug = sorted((one.data["step"], one.data["type"]) for one in parts if one.event == "debug")
    asked = (await client.threads.create())["thread_id"]
    await client.runs.wait(asked, "approval", input={"request": 1})
    await client.runs.wait(asked, "approval", command={"resume": "yes"})
    chat = (await client.threads.create())["thread_id"]
    await client.runs.wait(chat, "chat", input=says("one"))
    chunks = [one.data[1] async for one in client.runs.stream(chat, "chat", input=says("two"), stream_mode="messages-tuple") if one.event == "messages"]
    return {
        "history": steps(await client.threads.get_history(thread, limit=100)),
        "told": told,
        "debug": debug,
        "resumed": steps(await client.threads.get_history(asked, limit=100)),
        "message": chunks[0]["langgraph_step"],
    }


@scenario
async def what_is_left_to_do_is_dropped(client):
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "approval", input={"request": 1})
    with_values = await status_of(client.threads.update_state(thread, {"steps": ["x"]}, as_node="__end__"))
    await client.threads.update_state(thread, None, as_node="__end__")
    state = await client.threads.get_state(thread)
    found = await client.threads.get(thread)
    return {"with_values": with_values, "next": state["next"], "source": state["metadata"]["source"], "thread": found["status"], "interrupts": state["interrupts"]}


@scenario
async def names_that_nobody_knows_are_passed_over(client):
    values = await client.runs.wait(None, "steps", input={"topic": "tea", "colour": "green"})
    only = await status_of(client.runs.wait(None, "steps", input={"colour": "green"}))
    thread = (await client.threads.create())["thread_id"]
    run = await client.runs.create(thread, "steps", input={"topic": "tea"})
    await client.runs.join(thread, run["run_id"])
    return {"values": values, "only": only, "input": run["kwargs"]["input"]}


@scenario
async def a_thread_tells_what_it_is_asked_for(client):
    async def follow(mode, wanted):
        seen = []
        base = client.http.client.base_url
        async with httpx.AsyncClient(base_url=base, timeout=30) as alone:
            query = {"stream_modes": mode}
            async with alone.stream("GET", f"/threads/{thread}/stream", params=query) as response:
                ready.release()
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        seen.append(line[7:])
                    if seen.count(wanted) == (2 if wanted == "metadata" else 1) and not line:
                        return seen

    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "steps", input={"topic": "tea"})
    ready = asyncio.Semaphore(0)
    followers = [asyncio.create_task(follow(mode, wanted)) for mode, wanted in (("lifecycle", "metadata"), ("state_update", "state_update"))]
    for _ in followers:
        await asyncio.wait_for(ready.acquire(), 10)
    await asyncio.sleep(1.0)  # the peer has no sign for "I listen now"
    await client.threads.update_state(thread, {"steps": ["outside"]}, as_node="begin")
    await client.runs.wait(thread, "steps", input=None)
    lifecycle, changes = await asyncio.wait_for(asyncio.gather(*followers), 30)
    return {"lifecycle": lifecycle, "changes": changes}


@scenario
async def breakpoints_stop(client):
    thread = (await client.threads.create())["thread_id"]
    parts = await collect(
        client.runs.stream(thread, "steps", input={"topic": "tea"}, interrupt_before=["finish"], stream_mode=["updates", "values"])
    )
    state = await client.threads.get_state(thread)
    found = await client.threads.get(thread)
    after = await client.runs.wait(thread, "steps", input=None)
    every = (await client.threads.create())["thread_id"]
    await client.runs.wait(every, "steps", input={"topic": "tea"}, interrupt_after="*")
    first = await client.threads.get_state(every)
    return {
        "events": [part.event for part in parts],
        "last": parts[-1].data,
        "next": state["next"],
        "thread": found["status"],
        "interrupts": found["interrupts"],
        "after": after["steps"],
        "every": first["next"],
    }


# ## People


@scenario
async def a_person_is_asked(client):
    thread = (await client.threads.create())["thread_id"]
    parts = await collect(
        client.runs.stream(thread, "approval", input={"request": {"amount": 12}}, stream_mode=["values", "updates"])
    )
    run = (await client.runs.list(thread))[0]
    found = await client.threads.get(thread)
    state = await client.threads.get_state(thread)
    asked = state["tasks"][0]["interrupts"][0]
    assert asked == state["interrupts"][0]
    assert list(found["interrupts"].values())[0][0]["id"] == asked["id"]
    joined = await client.runs.join(thread, run["run_id"])
    answer = {"decisions": [{"type": "approve", "why": ["a", 1, None]}]}
    resumed = await client.runs.wait(thread, "approval", command={"resume": answer})
    assert resumed["answer"] == answer
    return {
        "events": [part.event for part in parts],
        "update": parts[-1].data if parts[-1].event == "updates" else parts[-2].data,
        "value": asked["value"],
        "next": state["next"],
        "run": run["status"],
        "thread": found["status"],
        "joined": keys(joined),
        "resumed": resumed,
        "after": (await client.threads.get(thread))["status"],
    }


@scenario
async def falsy_answers_count(client):
    async def answered(answer):
        thread = (await client.threads.create())["thread_id"]
        stopped = await client.runs.wait(thread, "approval", input={"request": 1})
        assert stopped["__interrupt__"][0]["value"]["question"] == "Publish?"
        return (await client.runs.wait(thread, "approval", command={"resume": answer})).get("answer", "none")

    return await asyncio.gather(*(answered(answer) for answer in (False, 0, "", [], "no", {"no": 1})))


@scenario
async def answers_by_id_and_new_input(client):
    thread = (await client.threads.create())["thread_id"]
    stopped = await client.runs.wait(thread, "approval", input={"request": 1})
    first = stopped["__interrupt__"][0]["id"]
    again = await client.runs.wait(thread, "approval", input={"request": 2})
    second = again["__interrupt__"][0]["id"]
    assert first != second, "new input asks anew"
    empty = await client.runs.wait(thread, "approval", command={"resume": {}})
    assert empty["__interrupt__"][0]["id"] == second, "an empty object answers nothing"
    done = await client.runs.wait(thread, "approval", command={"resume": {second: "yes"}})
    return {"again": again["__interrupt__"][0]["value"], "done": done}


@scenario
async def commands_update_and_go(client):
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "steps", input={"topic": "tea"})
    went = await client.runs.wait(thread, "steps", command={"update": {"steps": ["by command"]}, "goto": "work"})
    return went["steps"]


# ## Several at once


@scenario
async def strategies_on_a_busy_thread(client):
    async def two(strategy):
        thread = (await client.threads.create())["thread_id"]
        first = await client.runs.create(thread, "slow", input={"seconds": 2})
        await until_step(client, thread, "begin")
        try:
            second = await client.runs.create(thread, "slow", input={"seconds": 0}, multitask_strategy=strategy)
        except (APIStatusError, httpx.HTTPStatusError) as error:
            refused = getattr(error, "status_code", None) or error.response.status_code
            await client.runs.join(thread, first["run_id"])
            return {"refused": refused}
        await client.runs.join(thread, second["run_id"])
        state = await client.threads.get_state(thread)
        try:
            before = (await client.runs.get(thread, first["run_id"]))["status"]
        except (APIStatusError, httpx.HTTPStatusError) as error:
            before = getattr(error, "status_code", None) or error.response.status_code
        return {"accepted": second["status"], "first": before, "steps": state["values"]["steps"]}

    names = ("enqueue", "reject", "interrupt", "rollback")
    seen = dict(zip(names, await asyncio.gather(*(two(name) for name in names))))
    assert seen["reject"] == {"refused": 409}
    return seen


@scenario
async def cancel_really_stops(client):
    seen = {}
    for action in ("interrupt", "rollback"):
        thread = (await client.threads.create())["thread_id"]
        run = await client.runs.create(thread, "slow", input={"seconds": 60})
        await until_step(client, thread, "begin")
        began = asyncio.get_running_loop().time()
        await client.runs.cancel(thread, run["run_id"], wait=True, action=action)
        took = asyncio.get_running_loop().time() - began
        assert took < 5, f"it took {took:.1f} s"
        state = await client.threads.get_state(thread)
        seen[action] = {
            "run": await status_of(client.runs.get(thread, run["run_id"])),
            "next": state["next"],
            "steps": state["values"].get("steps"),
            "thread": (await client.threads.get(thread))["status"],
            "again": await status_of(client.runs.cancel(thread, run["run_id"], wait=True)),
        }
        if action == "interrupt":
            assert (await client.runs.get(thread, run["run_id"]))["status"] == "interrupted"
        # The thread is free at once.
        next_run = await client.runs.wait(thread, "slow", input={"seconds": 0})
        seen[action]["next_run"] = next_run["steps"]
    seen["unknown"] = await status_of(client.runs.cancel(thread, str(uuid.uuid4())))
    return seen


@scenario
async def a_queued_run_is_cancelled(client):
    thread = (await client.threads.create())["thread_id"]
    first = await client.runs.create(thread, "slow", input={"seconds": 2})
    await until_step(client, thread, "begin")
    second = await client.runs.create(thread, "slow", input={"seconds": 0})
    await client.runs.cancel(thread, second["run_id"], wait=True)
    status = (await client.runs.get(thread, second["run_id"]))["status"]
    await client.runs.join(thread, first["run_id"])
    state = await client.threads.get_state(thread)
    return {"status": status, "steps": state["values"]["steps"]}


@scenario
async def many_are_cancelled(client):
    thread = (await client.threads.create())["thread_id"]
    runs = [await client.runs.create(thread, "slow", input={"seconds": 60}) for _ in range(3)]
    await until_step(client, thread, "begin")
    await client.runs.cancel_many(thread_id=thread, run_ids=[one["run_id"] for one in runs])
    for run in runs:
        await until_status(client, thread, run["run_id"], "interrupted")
    return {"nobody": await status_of(client.runs.cancel_many(thread_id=thread, run_ids=[str(uuid.uuid4())]))}


@scenario
async def a_client_that_leaves(client):
    seen = {}
    for choice, ends in (("cancel", "interrupted"), ("continue", "success")):
        thread = (await client.threads.create())["thread_id"]
        created = {}
        stream = client.runs.stream(
            thread, "slow", input={"seconds": 3}, stream_mode="updates", on_disconnect=choice, on_run_created=created.update
        )
        async for part in stream:
            if part.event == "updates":
                break
        await stream.aclose()
        await until_status(client, thread, created["run_id"], ends)
        seen[choice] = ends
    return seen


@scenario
async def runs_are_deleted(client):
    thread = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread, "steps", input={"topic": "one"})
    await client.runs.wait(thread, "steps", input={"topic": "two"})
    newest = (await client.runs.list(thread))[0]
    await client.runs.delete(thread, newest["run_id"])
    state = await client.threads.get_state(thread)
    return {
        "gone": await status_of(client.runs.get(thread, newest["run_id"])),
        "left": len(await client.runs.list(thread)),
        "steps": state["values"]["steps"],
        "unknown": await status_of(client.runs.delete(thread, str(uuid.uuid4()))),
    }


# ## Store, crons


@scenario
async def the_store_keeps_items(client):
    mark = str(uuid.uuid4())
    store = client.store
    space = [mark, "notes"]
    await store.put_item(space, "a", {"title": "green tea", "stars": 3, "tags": {"kind": "drink"}})
    await store.put_item(space, "b", {"title": "black coffee", "stars": 5})
    await store.put_item([mark, "people", "near"], "c", {"title": "someone"})
    item = await store.get_item(space, "a")
    await store.put_item(space, "a", {"title": "white tea", "stars": 4, "tags": {"kind": "drink"}})
    changed = await store.get_item(space, "a")
    titles = lambda found: sorted(one["value"]["title"] for one in found["items"])
    everything = await store.search_items([mark])
    equal = await store.search_items(space, filter={"stars": 5})
    greater = await store.search_items(space, filter={"stars": {"$gte": 4}})
    # The peer fails at items without the field, and closes the connection: not on the one of all.
    async with httpx.AsyncClient(base_url=client.http.client.base_url) as alone:
        body = {"namespace_prefix": [mark], "filter": {"stars": {"$gte": 4}}}
        missing_field = (await alone.post("/store/items/search", json=body)).status_code
    unequal = await store.search_items(space, filter={"stars": {"$ne": 5}})
    page = await store.search_items(space, limit=1, offset=1)
    spaces = await store.list_namespaces(prefix=[mark])
    short = await store.list_namespaces(prefix=[mark], max_depth=2)
    ends = await store.list_namespaces(suffix=["near"], prefix=[mark])
    await store.delete_item(space, "b")
    await store.delete_item(space, "b")
    missing = await store.get_item(space, "b")
    return {
        "item": item,
        "changed": changed["value"],
        "age_kept": changed["created_at"] == item["created_at"],
        "everything": titles(everything),
        "found": everything["items"][0].keys() >= {"namespace", "key", "value", "created_at", "updated_at"},
        "equal": titles(equal),
        "greater": titles(greater),
        "missing_field": missing_field,
        "unequal": titles(unequal),
        "page": len(page["items"]),
        "spaces": sorted(spaces["namespaces"]),
        "short": sorted(short["namespaces"]),
        "ends": ends["namespaces"],
        "missing": missing,
        "dots": await refused(client.store.put_item(["a.b"], "k", {})),
        "empty": await status_of(client.store.put_item([], "k", {})),
    }


async def refused(awaitable):
    """Refused by the SDK itself, or by the server."""
    try:
        await awaitable
    except ValueError:
        return "by the SDK"
    except APIStatusError as error:
        return error.status_code
    return None


@scenario
async def crons_are_kept(client):
    mark = str(uuid.uuid4())
    made = await client.crons.create(
        "steps", schedule="5 4 * * *", input={"topic": "tea"}, metadata={"mark": mark}, timezone="Europe/Berlin"
    )
    thread = (await client.threads.create())["thread_id"]
    for_thread = await client.crons.create_for_thread(thread, "steps", schedule="0 0 1 1 *", input={"topic": "tea"})
    steps = (await client.assistants.search(graph_id="steps"))[0]["assistant_id"]
    found = await client.crons.search(assistant_id=steps, limit=100)
    mine = [one for one in found if one["cron_id"] in (made["cron_id"], for_thread["cron_id"])]
    of_thread = await client.crons.search(thread_id=thread)
    count = await client.crons.count(thread_id=thread)
    off = await client.crons.update(made["cron_id"], enabled=False, schedule="6 4 * * *")
    bad = {
        "schedule": await status_of(client.crons.create("steps", schedule="every day", input={})),
        "timezone": await status_of(client.crons.create("steps", schedule="0 0 * * *", input={}, timezone="Mars/Base")),
        "assistant": await status_of(client.crons.create("no-such-graph", schedule="0 0 * * *", input={})),
    }
    for one in mine:
        await client.crons.delete(one["cron_id"])
    return {
        "mine": len(mine),
        "of_thread": [(one["schedule"], one["thread_id"] == thread) for one in of_thread],
        "count": count,
        "made": sorted(set(made) & {"cron_id", "schedule", "timezone", "enabled", "next_run_date", "payload", "created_at", "updated_at", "end_time", "thread_id"}),
        "next": made["next_run_date"] is not None,
        "off": (off["enabled"], off["schedule"]),
        "bad": bad,
        "gone": await status_of(client.crons.delete(made["cron_id"])),
    }


# ## The thread protocol


@scenario
async def a_thread_session(client):
    async with client.threads.stream(assistant_id="chat") as thread:
        await thread.run.start(input=says("hello session"))
        reading = []

        async def read(one):
            return "".join([delta async for delta in one.text])

        async def follow():
            async for one in thread.messages:
                reading.append(asyncio.create_task(read(one)))

        following = asyncio.create_task(follow())
        output = await asyncio.wait_for(thread.output, 20)
        await asyncio.wait_for(following, 20)
        texts = await asyncio.wait_for(asyncio.gather(*reading), 20)
    return {"texts": texts, "output": [message(one) for one in output["messages"]]}


@scenario
async def a_thread_session_is_asked(client):
    async with client.threads.stream(assistant_id="approval") as thread:
        await thread.run.start(input={"request": {"amount": 12}})

        async def asked():
            return thread.interrupted and list(thread.interrupts)

        questions = await until(asked, "it is interrupted")
        await thread.run.respond({"type": "approve"})
        output = await asyncio.wait_for(thread.output, 20)
    return {
        "payload": questions[0].get("value", questions[0].get("payload")),
        "answer": output["answer"],
        "steps": output["steps"],
    }


@scenario
async def a_thread_session_by_websocket(client):
    async with client.threads.stream(assistant_id="steps", transport="websocket") as thread:
        await thread.run.start(input={"topic": "tea"})
        output = await asyncio.wait_for(thread.output, 20)
    return output
