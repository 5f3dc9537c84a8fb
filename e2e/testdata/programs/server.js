// A server of node's own module. Its argument is a port, or fd:N.
const where = process.argv[2];
require('http').createServer((q, r) => r.end('pid ' + process.pid + '\n'))
  .listen(where.startsWith('fd:') ? { fd: +where.slice(3) } : +where);
