"""N unmanaged uvicorn processes that share a port by SO_REUSEPORT: what one
gets without a manager, and the kernel's own choice of a worker."""
import os
import signal
import socket
import sys

workers, port = int(sys.argv[1]), int(sys.argv[2])
children = []
for _ in range(workers):
    pid = os.fork()
    if pid == 0:
        import uvicorn

        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
        config = uvicorn.Config("app:app", log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[sock])
        os._exit(0)
    children.append(pid)


def stop(signum, _):
    for child in children:
        try:
            os.kill(child, signum)
        except ProcessLookupError:
            pass


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
for _ in children:
    os.wait()
