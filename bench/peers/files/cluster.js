// The application of the benchmark on node's cluster module, with the usual
// restart of a worker that ends. Of app.py's paths it has those that its rows ask for.
const cluster = require('cluster');
const fs = require('fs');
const http = require('http');

const workers = Number(process.argv[2]);
const port = Number(process.argv[3]);

if (cluster.isPrimary) {
  let stopping = false;
  for (let i = 0; i < workers; i++) cluster.fork();
  cluster.on('exit', () => { if (!stopping) cluster.fork(); });
  for (const name of ['SIGTERM', 'SIGINT']) {
    process.on(name, () => {
      stopping = true;
      for (const worker of Object.values(cluster.workers)) worker.process.kill(name);
      cluster.disconnect(() => process.exit(0));
    });
  }
} else {
  const log = process.env.BENCH_SPAWN_LOG;
  if (log) fs.appendFileSync(log, `${process.pid} ${process.hrtime.bigint()}\n`);
  const fail = process.env.BENCH_FAIL;
  const flag = process.env.BENCH_FAIL_FILE;
  if (fail && (!flag || fs.existsSync(flag))) {
    if (fail === 'exception') throw new Error('this version cannot be imported');
    process.exit(Number(fail));
  }
  const cell = new Int32Array(new SharedArrayBuffer(4));
  const block = (ms) => { if (ms > 0) Atomics.wait(cell, 0, 0, ms); };
  block(1000 * Number(process.env.BENCH_IMPORT_SECONDS || 0));
  http.createServer((req, res) => {
    const url = new URL(req.url, 'http://localhost');
    const ms = Number(url.searchParams.get('ms') || 0);
    const answer = () => {
      res.writeHead(200, {'Content-Type': 'text/plain', 'Content-Length': 2, 'X-Pid': process.pid});
      res.end('ok');
    };
    if (url.pathname === '/block') block(ms);
    if (url.pathname === '/sleep') setTimeout(answer, ms);
    else answer();
  }).listen(port, '127.0.0.1');
}
