// What a peer and the test that starts it agree on.
import { createInterface } from 'node:readline';

// Standard output has one line, which says where the peer listens; all else goes to the log.
console.log = console.info = console.warn = console.debug = console.error;

// The first line of standard input holds the settings as JSON. Its end is the peer's end, so that
// nothing outlives a test run that was killed.
export function readSettings() {
  const lines = createInterface({ input: process.stdin });
  lines.once('close', () => process.exit(0));
  return new Promise((resolve) => lines.once('line', (line) => resolve(JSON.parse(line))));
}

// Take a free port of this machine alone; return the URL.
export async function listen(server) {
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${server.address().port}`;
}

export function sayReady(url) {
  process.stdout.write(`READY ${url}\n`);
}
