# Servers that look blocked and are not. The first argument is the port, the
# second says how:
#   fork    the parent has accepted once; then a child serves and the parent waits
#   thread  the thread that listened has accepted once; then another one serves
#   naps    a handler that takes long, of many short naps
# A client's first connection stays open.
import os
import select
import socket
import sys
import threading
import time

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(64)


def accept():
    select.select([listener], [], [])
    return listener.accept()[0]


def answer(connection):
    connection.recv(4096)
    body = b"%d\n" % os.getpid()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def serve():
    while True:
        with accept() as connection:
            answer(connection)


time.sleep(0.5)  # so that it is seen to wait
kept = accept()
answer(kept)
if sys.argv[2] == "fork":
    if os.fork() == 0:
        serve()
    os.wait()
elif sys.argv[2] == "thread":
    threading.Thread(target=serve, daemon=True).start()
    time.sleep(1000)
elif sys.argv[2] == "naps":
    for _ in range(600):
        time.sleep(0.01)
    serve()
