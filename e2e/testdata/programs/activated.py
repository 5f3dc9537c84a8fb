# A server that takes its listener from systemd's own library.
import os
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer

from systemd import daemon


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"pid %d\n" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


[fd] = daemon.listen_fds()
server = HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=fd)
server.serve_forever()
