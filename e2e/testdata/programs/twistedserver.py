# A Twisted server. A request for /close makes it stop listening, for which Twisted
# calls shutdown(2) and close(2), and live on.
import os
import sys

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site


class Root(Resource):
    isLeaf = True

    def render_GET(self, request):
        if request.path == b"/close":
            reactor.callLater(0, listener.stopListening)
        request.setHeader(b"connection", b"close")
        return b"pid %d\n" % os.getpid()


listener = reactor.listenTCP(int(sys.argv[1]), Site(Root()), interface="127.0.0.1")
reactor.run()
