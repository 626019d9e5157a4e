"""Graphs equal to examples/langgraph of Clearway, for LangChain's own development server."""
import asyncio
import operator
from typing import Annotated, Any, TypedDict

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt


class Echo(BaseChatModel):
    @property
    def _llm_type(self):
        return "echo"

    def reply(self, messages):
        last = [m for m in messages if m.type == "human"][-1]
        text = last.content if isinstance(last.content, str) else "".join(p.get("text", "") for p in last.content)
        return "You said: " + text

    def _generate(self, messages, stop=None, run_manager=None, **kw):
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=self.reply(messages)))])

    async def _astream(self, messages, stop=None, run_manager=None, **kw):
        words = self.reply(messages).split(" ")
        for i, word in enumerate(words):
            await asyncio.sleep(0.01)
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=("" if i == 0 else " ") + word))
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


async def model(state: MessagesState):
    return {"messages": [await Echo().ainvoke(state["messages"])]}


chat = StateGraph(MessagesState).add_node("model", model).add_edge(START, "model").compile()


def merge_by_id(old, new):
    out = list(old or [])
    for item in new if isinstance(new, list) else [new]:
        at = next((i for i, x in enumerate(out) if x.get("id") == item.get("id")), None)
        if at is None:
            out.append(item)
        else:
            out[at] = item
    return out


class Steps(TypedDict, total=False):
    topic: str
    steps: Annotated[list, operator.add]
    parts: Annotated[list, merge_by_id]


def one(name, **more):
    async def node(state):
        get_stream_writer()({"step": name})
        return {"steps": [name], **more}
    return node


workflow = (
    StateGraph(Steps)
    .add_node("begin", one("begin", parts=[{"id": "a", "text": "first"}]))
    .add_node("work", one("work", parts=[{"id": "a", "text": "changed"}, {"id": "b", "text": "second"}]))
    .add_node("finish", one("finish"))
    .add_edge(START, "begin").add_edge("begin", "work").add_edge("work", "finish").add_edge("finish", END)
    .compile()
)


class Approval(TypedDict, total=False):
    request: Any
    answer: Any
    steps: Annotated[list, operator.add]


async def draft(state):
    return {"steps": ["draft"]}


async def ask(state):
    answer = interrupt({"question": "Publish?", "request": state.get("request")})
    return {"answer": answer, "steps": ["ask"]}


async def publish(state):
    return {"steps": ["publish"]}


approval = (
    StateGraph(Approval).add_node("draft", draft).add_node("ask", ask).add_node("publish", publish)
    .add_edge(START, "draft").add_edge("draft", "ask").add_edge("ask", "publish").compile()
)


class Slow(TypedDict, total=False):
    seconds: float
    steps: Annotated[list, operator.add]


async def pause(state):
    await asyncio.sleep(float(state.get("seconds", 1)))
    return {"steps": ["work"]}


slow = (
    StateGraph(Slow).add_node("begin", one("begin")).add_node("work", pause).add_node("finish", one("finish"))
    .add_edge(START, "begin").add_edge("begin", "work").add_edge("work", "finish").compile()
)


async def boom(state):
    raise ValueError("this graph always fails")


failing = (
    StateGraph(Slow).add_node("begin", one("begin")).add_node("boom", boom)
    .add_edge(START, "begin").add_edge("begin", "boom").compile()
)
