"""Observations made comparable: ids, times and checkpoints become words."""

import re

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
RUN_MESSAGE = re.compile(r"lc_run--<uuid>|run-+<uuid>")


def normal(value):
    """The same value without what differs from run to run."""
    if isinstance(value, dict):
        return {normal(key): normal(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [normal(one) for one in value]
    if isinstance(value, str):
        text = TIME.sub("<time>", UUID.sub("<uuid>", value))
        text = RUN_MESSAGE.sub("<uuid>", text)
        text = re.sub(r"[0-9a-f]{32}", "<hash>", text)
        return re.sub(r"\d{13}-\d+", "<event id>", text)
    return value


def message(one):
    """What a person sees of a message."""
    content = one["content"]
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    return [one["type"].removesuffix("MessageChunk").lower(), content]


def keys(value):
    return sorted(value)
