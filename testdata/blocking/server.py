# A server with one thread that knows nothing of skep: a request for /block
# blocks all of it, one for /spin loops for ever, one for /work computes for
# 200 ms; others are told its pid.
import faulthandler
import os
import select
import socket
import sys
import time

faulthandler.enable()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(64)
while True:
    select.select([listener], [], [])
    connection, _ = listener.accept()
    with connection:
        request = connection.recv(4096)
        if b"/block" in request:
            time.sleep(1000)
        while b"/spin" in request:
            pass
        if b"/work" in request:
            until = time.thread_time() + 0.2
            while time.thread_time() < until:
                pass
        body = b"%d\n" % os.getpid()
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
