"""The application of the benchmark as FastAPI users write it: every path answers
at once and names the process in X-Pid.
"""
from fastapi import FastAPI, Response

import app as plain  # with what its import does, see there

app = FastAPI()


@app.get("/{path:path}")
async def answer(path: str, response: Response):
    response.headers["X-Pid"] = plain.PID.decode()
    return "ok"
