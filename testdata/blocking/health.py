# A server with one thread that answers 503 to /healthz until there is a file
# SLOT in a folder, the second argument; the first one is the port, or "fd" for
# the first descriptor that is passed. Others are told its pid. It counts the
# questions for /healthz and from where they came.
import os
import socket
import sys

slot, folder = os.environ["SKEP_SLOT"], sys.argv[2]
if sys.argv[1] == "fd":
    listener = socket.socket(fileno=3)
else:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1", int(sys.argv[1])))
    listener.listen(64)
while True:
    connection, peer = listener.accept()
    with connection:
        request = connection.recv(4096)
        status, body = "200 OK", b"%d\n" % os.getpid()
        if request.startswith(b"GET /healthz "):
            if not os.path.exists(os.path.join(folder, slot)):
                status = "503 Not yet"
            print("asked", slot, os.getpid(), peer[0], status[:3], flush=True)
        connection.sendall(b"HTTP/1.0 %s\r\nContent-Length: %d\r\n\r\n" % (status.encode(), len(body)) + body)
