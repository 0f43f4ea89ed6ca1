// SPDX-License-Identifier: MIT-0
import assert from 'node:assert/strict';
import { exec } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import { after, describe, mock, test } from 'node:test';
import { promisify } from 'node:util';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import { createMcpHttpServer } from '../server.ts';
import { examine, runDoctor, USAGE } from './doctor.ts';
import { answering, FAULTS, Healthy, type Fault } from './faults.ts';
import { cleanups, cleanUp, createTestServer, logged } from './helpers.ts';

mock.method(console, 'error', (...parts: unknown[]) => void logged.push(parts.join(' ')));
after(cleanUp, { timeout: 10_000 });

async function serve(fault: Fault) {
  const made = Object.assign(new Healthy(), fault);
  await once(made.server.listen(0, '127.0.0.1'), 'listening');
  cleanups.push(() => made.server.close().closeAllConnections());
  return made;
}

/** Waits are short; limits are wide, since only a fault reaches them. */
async function expectFindings(fault: Fault, expected: string[]) {
  const made = await serve(fault);
  const lines: string[] = [];
  const print = (line: string) => {
    lines.push(line);
    if (line.startsWith('…')) made.rest();
  };
  const options = { pause: 80, watch: 200, print, ...made.options };
  const { findings } = await examine(`${made.origin}/mcp/sse`, options);
  const names = findings.map(({ name }) => name);
  assert.deepEqual(names, expected, lines.join('\n'));
  assert.doesNotMatch(lines.join('\n'), /[\da-f]{8}-[\da-f]{4}/, 'a whole session id is shown');
  if (expected.length === 0) assert.ok(made.requests <= 60, `${made.requests} requests`);
}

const run = promisify(exec);

describe('The doctor', { concurrency: 20 }, () => {
  test('is a command that shows no token', async () => {
    const { origin } = await serve(answering(401));
    const command = `node --import tsx workshop/doctor.ts ${origin} --json --header`;
    const { stdout, stderr, code } = await run(
      `${command} "Authorization: Bearer secret-of-mine"`,
    ).catch((error) => error);
    const seen = `the stream opens: GET ${origin}/ gets 401 "No: *** ***"`;
    const findings = [{ name: 'unauthorized', kind: 'problem', seen }];
    assert.deepEqual(JSON.parse(stdout), { url: origin, findings });
    assert.deepEqual([code, stderr], [1, '']);
    assert.equal(await runDoctor([origin, '--header', 'secret-of-mine']), 2);
    assert.equal(logged.at(-1), USAGE);
  });

  for (const [name, fault] of Object.entries(FAULTS)) {
    test(`finds ${name}, and nothing else`, () => expectFindings(fault, [name]));
  }

  test('finds nothing on a server with other spellings', () => {
    const spellings: Fault = {
      write: (res, event, data) => res.write(`event: ${event}\r\ndata: ${data}\r\n\r\n`),
      accept: ({ res }) => res.writeHead(204).end(),
      endpoint(id) {
        return `${this.origin}/mcp/messages?session_id=${id}`;
      },
    };
    return expectFindings(spellings, []);
  });

  test('finds nothing on a server of the SDK alone', () => {
    const transports = new Map<string | undefined, SSEServerTransport>();
    const server = http.createServer((req, res) => {
      if (!req.headers.host?.startsWith('127.0.0.1')) return res.writeHead(403).end();
      if (req.method === 'POST') {
        const transport = transports.get(req.url?.split('=')[1]);
        return transport?.handlePostMessage(req, res) ?? res.writeHead(400).end('No transport');
      }
      const transport = new SSEServerTransport('/mcp/messages', res);
      transports.set(transport.sessionId, transport);
      transport.onclose = () => transports.delete(transport.sessionId);
      return createTestServer().connect(transport);
    });
    return expectFindings({ server }, []);
  });

  for (const token of ['', 'secret-of-mine']) {
    test(`finds nothing on the server of this project with the token "${token}"`, async () => {
      const { server } = createMcpHttpServer({
        getServer: createTestServer,
        token,
        ssePath: '/mcp/sse',
        messagesPath: '/mcp/messages',
      });
      const options = { headers: { authorization: `Bearer ${token}` } };
      await expectFindings({ server, options }, []);
    });
  }
});
