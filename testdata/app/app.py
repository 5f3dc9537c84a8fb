"""A small web application that knows nothing of skep.

Every answer carries the process id, so that a test sees which worker gave it.
IMPORT_DELAY (seconds) makes it slow to start, as large applications are, and
IMPORT_MB makes it hold so many MiB from then on.
"""

import asyncio
import os
import time

from fastapi import FastAPI, HTTPException

time.sleep(min(float(os.environ.get("IMPORT_DELAY", "0")), 60))

app = FastAPI()
leaked = []


def answer():
    return {"pid": os.getpid()}


def bounded(value, most):
    if not 0 <= value <= most:
        raise HTTPException(status_code=400, detail=f"want 0 to {most}")
    return value


@app.get("/")
async def root():
    return answer()


@app.get("/sleep")
async def sleep(s: float = 1):
    """Wait as a handler does that awaits a database: others go on."""
    await asyncio.sleep(bounded(s, 60))
    return answer()


@app.get("/block")
async def block(s: float = 1):
    """Block the event loop: nothing else in this worker goes on."""
    time.sleep(bounded(s, 60))
    return answer()


@app.get("/leak")
async def leak(mb: int = 1):
    """Keep mb MiB more, every page of it written."""
    leaked.append(b"\x01" * (bounded(mb, 1024) << 20))
    return answer()


leaked.append(b"\x01" * (int(os.environ.get("IMPORT_MB", "0")) << 20))
