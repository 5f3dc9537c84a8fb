# A WSGI application that answers with its process id.
import os


def app(environ, start_response):
    body = b"pid %d\n" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
