# A server that opens a file for itself when it serves its first request, and keeps it.
import os
import sys
from http.server import HTTPServer

from answer import Handler

own = []


class LateHandler(Handler):
    def do_GET(self):
        if not own:
            own.append(open(os.devnull))
        super().do_GET()


HTTPServer(("127.0.0.1", int(sys.argv[1])), LateHandler).serve_forever()
