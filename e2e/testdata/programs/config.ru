# A Rack application that answers with its process id.
run ->(_env) { [200, { 'content-type' => 'text/plain' }, ["pid #{Process.pid}\n"]] }
