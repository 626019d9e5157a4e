"""What people write by hand: a chat and a campaign generator in FastAPI, in one process, state in dictionaries.

It speaks the same addresses as Clearway's doors, so that the same client can ask both. It is not a straw man: handlers
are `async`, work is given to a background task, progress is reported. The mistakes are those of the services that
Clearway replaces: blocking calls on the event loop, progress by a timetable, a thread for each stream, and nothing that
survives the process.

    pip install fastapi uvicorn
    PROVIDER=http://127.0.0.1:9100/v1 uvicorn app:app --port 8001
"""

import asyncio
import json
import os
import queue
import threading
import time
import urllib.request
from datetime import datetime

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse, StreamingResponse

PROVIDER = os.environ.get("PROVIDER", "http://127.0.0.1:9100/v1")
STEPS = [
    "project_manager", "strategy", "audience_persona", "creative", "copy", "cta_optimizer", "visual", "designer",
    "social_media_campaign", "emotion_personalization", "media_planner", "review", "campaign_summary",
    "client_summary", "web_developer", "html_validation",
]

app = FastAPI()
threads: dict[str, list] = {}
campaigns: dict[str, dict] = {}


def ask(messages):
    """One call of the provider, as most SDKs make it: it blocks."""
    body = json.dumps({"model": "m", "messages": messages}).encode()
    request = urllib.request.Request(
        PROVIDER + "/chat/completions", body, {"content-type": "application/json", "authorization": "Bearer x"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


@app.get("/health")
@app.get("/api/v1/health")
async def health():
    return {"status": "ok", "thread_pool_ready": True}


@app.post("/chat")
async def chat(body: dict):
    key = f"bc::{body['user_id']}::{body.get('conversation_id', 'default')}"
    messages = threads.setdefault(key, [])
    messages.append({"role": "user", "content": body["message"]})
    reply = ask(messages)  # the event loop waits here, and everybody with it
    messages.append({"role": "assistant", "content": reply})
    return {"user_id": body["user_id"], "conversation_id": "default", "thread_id": key, "reply": reply}


@app.post("/chat/stream")
async def stream(body: dict):
    words: queue.Queue = queue.Queue()

    def work():
        for word in ask([{"role": "user", "content": body["message"]}]).split():
            words.put({"type": "delta", "text": word + " "})
        words.put(None)

    threading.Thread(target=work).start()  # one for each stream, however many there are

    def events():
        while (event := words.get()) is not None:
            yield f"data: {json.dumps(event)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def generate(campaign):
    campaign["status"] = "running"
    for number, step in enumerate(STEPS):
        campaign["step"] = step
        campaign["progress"] = number * 100 // len(STEPS)
        campaign["results"][step] = ask([{"role": "user", "content": f"{step}: {json.dumps(campaign['brief'])}"}])
        await asyncio.sleep(0)  # "gives others a chance"
    campaign["progress"], campaign["status"] = 100, "completed"


@app.post("/api/v1/campaigns/generate")
async def start(brief: dict):
    now = datetime.now()
    name = f"campaign_{now:%Y%m%d_%H%M%S}_{now.microsecond // 10:05}"
    campaigns[name] = {"brief": brief, "status": "initialized", "progress": 0, "results": {}, "began": time.time()}
    asyncio.create_task(generate(campaigns[name]))
    return {"campaign_id": name, "status": "started"}


@app.get("/api/v1/campaigns/progress")
async def progress():
    shown = [{"campaign_id": name, "status": it["status"], "progress": it["progress"]} for name, it in campaigns.items()]
    return {"campaigns": shown, "total": len(shown)}


@app.get("/campaigns/view/{name}")
async def view(name: str):
    if name not in campaigns:
        raise HTTPException(404)
    return HTMLResponse("".join(f"<h2>{step}</h2><p>{text}</p>" for step, text in campaigns[name]["results"].items()))
