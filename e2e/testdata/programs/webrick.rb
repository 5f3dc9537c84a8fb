# A WEBrick server. A request for /close makes it stop as it does for itself: it calls
# shutdown(2) and close(2) on its listeners. The process lives on.
require 'webrick'
server = WEBrick::HTTPServer.new(BindAddress: '127.0.0.1', Port: ARGV[0].to_i, AccessLog: [], Logger: WEBrick::Log.new(File::NULL))
server.mount_proc('/') do |request, response|
  response['Connection'] = 'close'
  response.body = "pid #{Process.pid}\n"
  Thread.new { server.shutdown } if request.path == '/close'
end
server.start
sleep
