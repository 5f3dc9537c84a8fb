"""The application of the benchmark, as ASGI (app) and as WSGI (wsgi).

It knows nothing of what starts it. "/" answers at once, "/block?ms=N" blocks
the whole worker for N milliseconds (a handler that should have been async),
"/sleep?ms=N" takes N milliseconds and leaves an asynchronous worker free,
"/work?ms=N" (of app only) computes for N milliseconds of processor time.
Every answer names the process in X-Pid.
"""
import asyncio
import os
import sys
import time


def boot():
    """What an import can do: take long, need memory, fail. One line a start."""
    log = os.environ.get("BENCH_SPAWN_LOG")
    if log:
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, b"%d %d\n" % (os.getpid(), time.monotonic_ns()))
        os.close(fd)
    module = os.environ.get("BENCH_IMPORT")
    if module:
        __import__(module)
    fail = os.environ.get("BENCH_FAIL", "")
    flag = os.environ.get("BENCH_FAIL_FILE")
    if fail and (not flag or os.path.exists(flag)):
        if fail == "exception":
            raise RuntimeError("this version cannot be imported")
        os._exit(int(fail))
    time.sleep(float(os.environ.get("BENCH_IMPORT_SECONDS", "0")))
    megabytes = int(os.environ.get("BENCH_BALLAST_MB", "0"))
    # Random enough that same-page merging and zero pages do not make it free,
    # unless the benchmark is about merging.
    if os.environ.get("BENCH_BALLAST_SAME"):
        # The same in every worker, but no page like another one in the same.
        import random
        table = random.Random(1)
        return [bytearray(table.randbytes(1 << 20)) for _ in range(megabytes)]
    return [bytearray(os.urandom(1 << 20)) for _ in range(megabytes)]


BALLAST = boot()
PID = b"%d" % os.getpid()


def milliseconds(query):
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name == "ms":
            return min(int(value), 600_000)
    return 0


def work(ms):
    until = time.thread_time() + ms / 1000
    while time.thread_time() < until:
        pass


def touch():
    """Use the ballast, so that it stays in memory."""
    return sum(block[0] for block in BALLAST)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path, ms = scope["path"], milliseconds(scope["query_string"].decode())
    if path == "/block":
        time.sleep(ms / 1000)
    elif path == "/sleep":
        await asyncio.sleep(ms / 1000)
    elif path == "/work":
        work(ms)
    elif path == "/touch":
        touch()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2"), (b"x-pid", b"%d" % os.getpid())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def wsgi(environ, start_response):
    ms = milliseconds(environ.get("QUERY_STRING", ""))
    if environ["PATH_INFO"] in ("/block", "/sleep"):
        time.sleep(ms / 1000)
    elif environ["PATH_INFO"] == "/touch":
        touch()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2"), ("X-Pid", str(os.getpid()))])
    return [b"ok"]
