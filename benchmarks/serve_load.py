"""The server under many clients, a tenth of them hostile, with batching and without.

    uv run python benchmarks/serve_load.py MODEL IMAGE_FOLDER [--requests 10000] [--clients 64]

MODEL is a saved classifier, IMAGE_FOLDER holds images anywhere below. The server is a process of its own.
Every answer is held against what the classifier says of that image alone. Prints a line of JSON a server:
wrong, lost and harmed requests, seconds in percentiles, requests a second, and megabytes of memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import handful

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path)
parser.add_argument("images", type=Path)
parser.add_argument("--requests", type=int, default=10_000)
parser.add_argument("--clients", type=int, default=64)
SERVER = """
import sys
from pathlib import Path
from handful.serve import Limits, run
run([Path(sys.argv[1])], port=0, limits=Limits(batch=int(sys.argv[2])))
"""
BATCHES = {"batched": 32, "one by one": 1}


def poison(data: bytes, number: int) -> tuple[bytes, dict[str, str]]:
    """Give a hostile body, and headers."""
    kinds: list[tuple[bytes, dict[str, str]]] = [
        (data[: len(data) // 2], {}), (b"", {}), (b"<svg/>", {}), (os.urandom(2000), {}),
        (data, {"host": "evil.example"}), (data, {"origin": "http://evil.example"}),
        (b"x" * (40 * 2**20) if number % 100 == 0 else b"x", {}),
    ]  # fmt: skip
    return kinds[number // 10 % len(kinds)]


async def load(url: str, files: list[bytes], told: list[tuple[str, float]], args: argparse.Namespace) -> Any:
    """Send all requests, and give what came of each."""
    numbers, seconds, found = iter(range(args.requests)), [], Counter[str]()
    async with AsyncExitStack() as stack:
        # each its own pool: a common one spends more than the server, and is unfair
        made = [httpx.AsyncClient(base_url=url, timeout=120, verify=False) for _ in range(args.clients)]
        clients = [await stack.enter_async_context(client) for client in made]

        async def ask(client: httpx.AsyncClient, number: int) -> None:
            row = random.Random(number).randrange(len(files))
            hostile = number % 10 == 0
            body, headers = poison(files[row], number) if hostile else (files[row], {})
            start = time.perf_counter()
            try:
                answer = await client.post("/predict", content=body, headers=headers, params={"top": 1})
            except httpx.HTTPError as error:
                # a server that refuses a body may close before it has all of it
                found["hostile, closed" if hostile else f"lost: {type(error).__name__}"] += 1
                return
            if hostile:
                found["hostile, refused" if 400 <= answer.status_code < 500 else "hostile, taken"] += 1
                return
            seconds.append(time.perf_counter() - start)
            if answer.status_code != 200:
                found[f"harmed: {answer.status_code}"] += 1
                return
            (best,) = next(iter(answer.json()["results"][0]["answers"].values()))["predictions"]
            right = best["class"] == told[row][0] and abs(best["probability"] - told[row][1]) < 1e-4
            found["right" if right else "wrong"] += 1

        async def client_loop(client: httpx.AsyncClient) -> None:
            for number in numbers:
                await ask(client, number)

        await asyncio.gather(*map(client_loop, clients))
        health = (await clients[0].get("/health")).status_code
    return seconds, found, health


def memory(process: int) -> float:
    """Megabytes that a process holds now."""
    fields = Path(f"/proc/{process}/status").read_text("ascii").split("VmRSS:")[1].split()
    return round(int(fields[0]) / 1024, 1)


def main() -> None:
    """Run both servers, one after the other."""
    args = parser.parse_args()
    clf = handful.load(args.model)
    paths = sorted(path for path in args.images.rglob("*") if path.suffix in (".png", ".jpg", ".webp"))[:500]
    probabilities = clf.predict_proba(paths)
    told = [(str(clf.classes_[row.argmax()]), float(row.max())) for row in probabilities]
    files = [path.read_bytes() for path in paths]
    for name, batch in BATCHES.items():
        words = [sys.executable, "-c", SERVER, str(args.model), str(batch)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, encoding="utf-8") as server:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            asyncio.run(load(url, files, told, argparse.Namespace(requests=200, clients=args.clients)))
            before, start = memory(server.pid), time.perf_counter()
            seconds, found, health = asyncio.run(load(url, files, told, args))
            wall = time.perf_counter() - start
            after = memory(server.pid)
            server.terminate()
        p50, p95, p99 = (round(float(1000 * value), 1) for value in np.quantile(seconds, [0.5, 0.95, 0.99]))
        print(json.dumps({
            "server": name, "requests": args.requests, **found, "health after": health,
            "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "per_second": round(args.requests / wall, 1),
            "mb_before": before, "mb_after": after,
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
