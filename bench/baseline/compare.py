"""The health of two servers while four campaigns run: the hand-made one of `app.py`, and Clearway.

    pip install fastapi uvicorn
    python compare.py ../../target/release/clearway

Both ask the same simulated provider, which takes a second for each answer. Printed is what a probe every 10 ms saw.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).parent
SECONDS = 10
BRIEF = {
    "product": "Lamp", "client": "Lumen", "target_audience": "students", "goals": ["sell"], "key_features": ["dims"],
    "username": "ann",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(url, body=None, timeout=30):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def until_up(url):
    for _ in range(300):
        try:
            return call(url, timeout=1)
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def watch(url):
    """Probes for a while; the times in milliseconds, sorted. One that is under way at the end counts as it is."""
    times, end = [], time.monotonic() + SECONDS
    while (begin := time.monotonic()) < end:
        call(url + "/api/v1/health", timeout=120)
        times.append((time.monotonic() - begin) * 1000)
        time.sleep(0.01)
    return sorted(times)


def measure(name, url):
    until_up(url + "/api/v1/health")
    for _ in range(4):
        threading.Thread(target=call, args=(url + "/api/v1/campaigns/generate", BRIEF, 120), daemon=True).start()
    time.sleep(0.3)
    times = watch(url)
    at = lambda share: times[min(len(times) - 1, int(len(times) * share))]
    print(f"| {name} | {len(times)} | {at(0.5):.1f} | {at(0.99):.1f} | {times[-1]:.1f} |")


def main():
    clearway = os.path.abspath(sys.argv[1])
    provider, ports = free_port(), (free_port(), free_port())
    running = []
    with tempfile.TemporaryDirectory() as folder:
        project = pathlib.Path(folder)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            running.append(subprocess.Popen([clearway, "sim", "--listen", f"127.0.0.1:{provider}", "--ttft-ms", "1000"], **quiet))
            address = f"http://127.0.0.1:{provider}/v1"
            hand_made = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(ports[0])]
            running.append(subprocess.Popen(hand_made, cwd=HERE, env={**os.environ, "PROVIDER": address}, **quiet))
            env = {**os.environ, "OPENAI_API_KEY": "x", "OPENAI_BASE_URL": address}
            ours = [clearway, "dev", "--listen", f"127.0.0.1:{ports[1]}"]
            running.append(subprocess.Popen(ours, cwd=project, env=env, **quiet))
            print("| four campaigns, and the health beside them | probes answered in 10 s | p50 ms | p99 ms | worst ms |")
            print("|---|---|---|---|---|")
            measure("hand-made", f"http://127.0.0.1:{ports[0]}")
            measure("Clearway", f"http://127.0.0.1:{ports[1]}")
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait(20)


if __name__ == "__main__":
    main()
