# A server that takes its listener from systemd's own library.
import socket
from http.server import HTTPServer

from systemd import daemon

from answer import Handler

[fd] = daemon.listen_fds()
server = HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=fd)
server.serve_forever()
