# A server that opens a file for itself when it serves its first request, and keeps it.
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

own = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if not own:
            own.append(open(os.devnull))
        body = b"pid %d\n" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
