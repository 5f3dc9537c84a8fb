# A server with one thread that speaks sd_notify(3) by systemd's own library. The
# argument is a port to bind, or "fd" for the first descriptor that is passed. A
# file NAME of the second argument, a folder, is a command for the worker in
# slot NAME[0]: "0ready", "1stopping", "0silent", "0trigger".
import os
import select
import signal
import socket
import sys
import time

from systemd import daemon

slot, folder = os.environ["SKEP_SLOT"], sys.argv[2]
if sys.argv[1] == "fd":
    listener = socket.socket(fileno=daemon.listen_fds()[0])
else:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    listener.listen(64)
print("up", os.getpid(), slot, flush=True)
signal.signal(signal.SIGTERM, lambda *_: (print("term", os.getpid(), flush=True), sys.exit(0)))
watchdog = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
if watchdog and os.environ["WATCHDOG_PID"] != str(os.getpid()):
    sys.exit("WATCHDOG_PID is " + os.environ["WATCHDOG_PID"])
alive, accepting, pinged = False, True, 0


def told(what):
    try:
        os.unlink(os.path.join(folder, slot + what))
    except FileNotFoundError:
        return False
    return True


while True:
    readable, _, _ = select.select([listener] if accepting else [], [], [], 0.02)
    if readable:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            body = b"%d\n" % os.getpid()
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    if told("ready"):
        daemon.notify("X_UNKNOWN=1\nREADY=1\nSTATUS=serving in slot " + slot)
        alive = watchdog > 0
    if told("stopping"):
        daemon.notify("STOPPING=1")
        accepting = False
    if told("exit"):
        sys.exit(0)
    if told("silent"):
        alive = False
    if told("trigger"):
        daemon.notify("WATCHDOG=trigger")
    if told("sleep"):
        time.sleep(1000)
    if alive and time.monotonic() - pinged > watchdog / 2:
        pinged = time.monotonic()
        daemon.notify("WATCHDOG=1")
