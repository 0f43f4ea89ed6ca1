// SPDX-License-Identifier: MIT-0
/**
 * What server.ts promises, tried over real sockets with real clients.
 *
 * The suites are in the order of server.ts. Whoever copies the file keeps what stands above the
 * first `====` banner, deletes the rest and its group of imports, and puts the settings that the
 * new server cannot start without into `START`.
 *
 * `npm test` runs everything. `node --import tsx --test-name-pattern=Sessions server.test.ts` runs
 * one suite.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { mkdtemp, writeFile } from 'node:fs/promises';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as nodeTest from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { request } from 'undici';
import type { McpHttpServerOptions, Session } from './server.ts';

// For the sections from the first `====` banner on: who deletes these deletes this group, too.
import { exec } from 'node:child_process';
import { randomInt, randomUUID } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, readFile, rm } from 'node:fs/promises';
import http from 'node:http';
import https from 'node:https';
import { dirname } from 'node:path/posix';
import { text } from 'node:stream/consumers';
import { isDeepStrictEqual, parseArgs, promisify } from 'node:util';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import { createParser, type EventSourceMessage } from 'eventsource-parser';

// ---- Helpers ---------------------------------------------------------------------------------

/** The settings that every start needs. Add those that your own `main()` cannot do without. */
const START = { PORT: '0' };

// `npm run doctor` and `npm run exercise` run their own part of this file, and no test.
const [, , task] = process.argv;
const ignore = () => undefined;
const noTests = { after: ignore, before: ignore, describe: ignore, test: ignore };
const { after, before, describe, test } = task ? (noTests as unknown as typeof nodeTest) : nodeTest;
const subject = task ? ({} as typeof import('./server.ts')) : await import('./server.ts');
const { createMcpHttpServer, readSettings } = subject;

// What is left behind is removed on exit, and a signal alone would be no exit. If `npm test` is
// killed, this process gets another parent, and has nobody to work for.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));
const { ppid } = process;
setInterval(() => process.ppid === ppid || process.exit(1), 500).unref();

const cleanups: (() => unknown)[] = [];
const cleanUp = async () => {
  for (const cleanup of cleanups.reverse()) await cleanup();
};
after(cleanUp, { timeout: 10_000 });

const logged: string[] = [];
before(() => {
  nodeTest.mock.method(
    console,
    'error',
    (...parts: unknown[]) => void logged.push(parts.join(' ')),
  );
});

/** How long to wait for something that must happen, in milliseconds. */
const PATIENCE = Number(process.env['PATIENCE_MS'] ?? 20_000);

/** Most tests wait more than they work. One that hangs fails with its suite. */
const SUITE = { concurrency: true, timeout: 60_000 };

/** Asks until there is an answer, and fails with `what` when the time is over. */
async function until<T>(
  check: () => T,
  what = () => `This did not come true: ${check}`,
  patience = PATIENCE,
) {
  const deadline = Date.now() + patience;
  for (;;) {
    const answer = await check();
    if (answer) return answer;
    assert.ok(Date.now() < deadline, what());
    await sleep(5);
  }
}

/** The smallest server: one tool that answers, and hooks that record what they are told. */
async function startServer(options: Partial<McpHttpServerOptions> = {}) {
  const events: string[] = [];
  const hooks = {
    onSessionStart: ({ id, address }: Session) => void events.push(`start ${id} ${address}`),
    onSessionEnd: ({ id }: Session) => void events.push(`end ${id}`),
  };
  const getServer = () => createTestServer();
  return {
    events,
    ...(await startListening(createMcpHttpServer({ getServer, hooks, ...options }))),
  };
}

/** Lets a server listen on a free port, until the tests end. */
async function startListening({ server, shutdown }: ReturnType<typeof createMcpHttpServer>) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanups.push(() => {
    server.closeAllConnections();
    return shutdown();
  });
  const { port } = server.address() as AddressInfo;
  return { server, shutdown, url: `http://127.0.0.1:${port}` };
}

/** A server with one tool. Its connect() waits for `then`, after the SDK's has sent the id. */
function createTestServer(then: () => unknown = ignore) {
  const server = new McpServer({ name: 'test', version: '1.0.0' });
  server.registerTool('hello', {}, () => ({ content: [{ type: 'text', text: 'Hello' }] }));
  const connect = server.connect.bind(server);
  server.connect = async (transport) => {
    await connect(transport);
    await then();
  };
  return server;
}

/** The SDK's own client. */
async function connectClient(url: string, headers = {}) {
  const client = new Client({ name: 'test', version: '1.0.0' });
  await client.connect(new SSEClientTransport(new URL('/sse', url), { requestInit: { headers } }));
  cleanups.push(() => client.close());
  return client;
}

/** Sends raw bytes. `text` grows while the answer comes, and `ended` says that it is over. */
function send(url: string, bytes: string) {
  const socket = net.connect(Number(new URL(url).port), '127.0.0.1');
  const answer = { socket, text: '', ended: false };
  socket.setEncoding('utf8').on('data', (chunk) => {
    answer.text += chunk;
  });
  socket.on('error', ignore).on('close', () => {
    answer.ended = true;
  });
  socket.write(bytes);
  cleanups.push(() => socket.destroy());
  return answer;
}

const get = (path: string, more = '') => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${more}\r\n`;
const ping = (id: number) => ({ jsonrpc: '2.0', id, method: 'ping' });

function post(url: string, message: unknown, more = {}) {
  const headers = { 'content-type': 'application/json', ...more };
  return fetch(url, { method: 'POST', headers, body: JSON.stringify(message) });
}

/** Opens a stream, and waits for the event that says where to POST. */
async function openStream(url: string, path = '/sse', more = '') {
  const stream = send(url, get(path, more));
  const [, endpoint = ''] = await until(() => {
    assert.doesNotMatch(stream.text, /^HTTP\/1.1 [^2]/);
    return /^data: (.*)$/m.exec(stream.text);
  });
  return Object.assign(stream, {
    endpoint: url + endpoint,
    post: (id: number, more = {}) => post(url + endpoint, ping(id), more),
    replyTo: (id: number) =>
      until(() => stream.text.includes(`{"result":{},"jsonrpc":"2.0","id":${id}}`)),
  });
}

/** Starts server.ts as `npm start` does, but in another folder, and collects what it prints. */
async function runServer(env: Record<string, string>, envFile = '') {
  const folder = await mkdtemp(join(tmpdir(), 'server-'));
  await writeFile(join(folder, '.env'), envFile);
  // The child ends with this process, even if that is killed: its standard input ends then.
  const endWithParent =
    'data:text/javascript,process.stdin.on("end",()=>process.exit()).resume().unref()';
  const options = ['--import', import.meta.resolve('tsx'), '--import', endWithParent];
  const child = spawn(process.execPath, [...options, join(import.meta.dirname, 'server.ts')], {
    cwd: folder,
    env: { PATH: process.env['PATH'], ...env },
  });
  process.on('exit', () => {
    child.kill('SIGKILL');
    rmSync(folder, { recursive: true });
  });
  const run = { child, text: '', exit: once(child, 'close') };
  for (const output of [child.stdout, child.stderr]) {
    output.setEncoding('utf8').on('data', (chunk) => {
      run.text += chunk;
    });
  }
  /** Waits for a line; if the child ends without it, what it has printed is shown. */
  const line = (pattern: RegExp) => {
    const find = () => {
      const found = pattern.exec(run.text);
      assert.ok(found ?? child.exitCode === null, `It ended without ${pattern}: ${run.text}`);
      return found;
    };
    return until(find, () => `There is no ${pattern} in this: ${run.text}`);
  };
  return Object.assign(run, { line });
}

// ---- Sessions --------------------------------------------------------------------------------

describe('Sessions', SUITE, () => {
  test('the SDK makes the id, and the first event carries it', async () => {
    const { url, events } = await startServer();
    const { text } = await openStream(url);
    assert.match(text, /^HTTP\/1.1 200 OK\r\n.*Content-Type: text\/event-stream\r\n/s);
    assert.match(text, /X-Accel-Buffering: no\r\n/);
    const [, id] =
      /event: endpoint\ndata: \/messages\?sessionId=([\da-f-]{36})\n\n/.exec(text) ?? [];
    await until(() => events.includes(`start ${id} 127.0.0.1`));
  });

  test('a message that is posted as soon as the id is known is taken', async () => {
    let status = 0;
    const { url, events } = await startServer({
      getServer: () => createTestServer(() => until(() => status)),
    });
    const stream = await openStream(url);
    ({ status } = await stream.post(1));
    assert.equal(status, 202);
    await until(() => events.length === 1);
  });

  test('two sessions do not see each other’s replies', async () => {
    const { url } = await startServer();
    const [one, two] = [await openStream(url), await openStream(url)];
    await two.post(2);
    await one.post(1);
    await Promise.all([one.replyTo(1), two.replyTo(2)]);
    assert.doesNotMatch(one.text, /"id":2/);
    assert.doesNotMatch(two.text, /"id":1/);
  });

  test('a session stays open while its stream is open', async () => {
    const { url, events } = await startServer({ keepAliveMs: 10 });
    const stream = await openStream(url);
    for (const id of [1, 2]) {
      const { length } = stream.text;
      await until(() => stream.text.length > length + 100);
      assert.equal((await stream.post(id)).status, 202);
      await stream.replyTo(id);
    }
    assert.equal(events.length, 1);
  });

  test('a comment comes at each interval, until the session ends', async () => {
    const { url, server, events } = await startServer({ keepAliveMs: 10 });
    const [[, response], ended] = await Promise.all([once(server, 'request'), openStream(url)]);
    ended.socket.destroy();
    await until(() => events.length === 2);
    const { mock } = nodeTest.mock.method(response, 'write');
    const stream = await openStream(url);
    await until(() => stream.text.split(/\r\n:.*\n\n\r\n/).length > 3);
    assert.equal(mock.callCount(), 0);
  });

  test('a session ends with its stream, and each hook is called once', async () => {
    const { url, events } = await startServer();
    const client = await connectClient(url);
    assert.deepEqual(
      (await client.listTools()).tools.map((tool) => tool.name),
      ['hello'],
    );
    await client.close();
    await until(() => events.length === 2);
    const [, id] = events[0]?.split(' ') ?? [];
    assert.equal(events[1], `end ${id}`);
    const late = await post(`${url}/messages?sessionId=${id}`, ping(1));
    assert.equal(late.status, 404);
    assert.equal(await late.text(), 'Session not found: reconnect to /sse\n');
  });

  test('a session that ends during its start hook is gone at once, and its end hook waits', async () => {
    const events: string[] = [];
    let status = 0;
    const onSessionStart = async () => {
      await until(() => status === 404);
      events.push('start');
    };
    const { url } = await startServer({
      hooks: { onSessionStart, onSessionEnd: () => void events.push('end') },
    });
    const stream = await openStream(url);
    stream.socket.destroy();
    await until(async () => {
      ({ status } = await stream.post(1));
      return status === 404;
    });
    await until(() => events.length === 2);
    assert.deepEqual(events, ['start', 'end']);
  });

  test('a hook that fails is logged and changes nothing', async () => {
    const fail = (what: string) => () => Promise.reject(new Error(what));
    const hooks = { onSessionStart: fail('no start'), onSessionEnd: fail('no end') };
    const { url } = await startServer({ hooks });
    const stream = await openStream(url);
    assert.equal((await stream.post(1)).status, 202);
    stream.socket.destroy();
    await until(() => logged.includes('onSessionEnd failed: Error: no end'));
    assert.ok(logged.includes('onSessionStart failed: Error: no start'));
  });

  test('a server that cannot be connected leaves no session behind', async () => {
    const fail = (text: string) => {
      throw new Error(text);
    };
    const servers = [
      () => fail('none'),
      () => createTestServer(() => fail('late')),
      createTestServer,
    ];
    const getServer = () => servers.shift()!();
    const { url, events } = await startServer({ getServer, maxSessions: 1 });
    const refused = await request(`${url}/sse`);
    assert.equal(refused.statusCode, 500);
    assert.equal(await refused.body.text(), 'Error handling request\n');
    assert.ok(logged.includes('Error handling request: Error: none'));
    const broken = send(url, get('/sse'));
    await until(() => broken.text.endsWith('0\r\n\r\n'));
    await openStream(url);
    assert.equal(events.length, 1);
  });

  test('a session over the limit gets 503, until another one ends', async () => {
    const { url, events } = await startServer({ maxSessions: 1 });
    const stream = await openStream(url);
    const { statusCode, body } = await request(`${url}/sse`);
    assert.equal(statusCode, 503);
    assert.equal(await body.text(), 'All 1 sessions are in use: try again later\n');
    stream.socket.destroy();
    await until(() => events.length === 2);
    await openStream(url);
  });

  test('pipelined POSTs are served, and a pipelined GET opens its session in its turn', async () => {
    const { url, events } = await startServer();
    const stream = await openStream(url);
    const body = JSON.stringify(ping(1));
    const head = `POST ${stream.endpoint} HTTP/1.1\r\nHost: localhost\r\n`;
    const message = `${head}Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
    const pipeline = send(url, message.repeat(3) + get('/sse').repeat(2));
    await until(() => pipeline.text.includes('event: endpoint'));
    assert.equal(pipeline.text.split('202 Accepted').length, 4);
    assert.equal(events.length, 2);
    pipeline.socket.destroy();
    await until(() => events.length === 3);
    assert.match(events[2] ?? '', /^end/);
  });

  test('shutdown() ends each stream cleanly, and waits for the end hooks', async () => {
    const events: string[] = [];
    const onSessionEnd = async () => {
      await sleep(50); // A comment after the end would fail this test: five are due in this time.
      events.push('end');
    };
    const { url, shutdown } = await startServer({ hooks: { onSessionEnd }, keepAliveMs: 10 });
    const stream = await openStream(url);
    await shutdown();
    assert.deepEqual(events, ['end']);
    await until(() => stream.ended);
    assert.match(stream.text, /0\r\n\r\n$/);
    await assert.rejects(request(`${url}/sse`), /ECONNREFUSED/);
  });

  test('shutdown() cuts off what does not end, and waits for a session that opens late', async () => {
    const { url, shutdown, events } = await startServer();
    const stalled = send(url, 'POST /messages');
    const pipeline = send(url, get('/sse').repeat(2));
    await until(() => events.length === 1);
    await shutdown();
    assert.equal(events.length, 4);
    await until(() => stalled.ended && pipeline.ended);
  });
});

// ---- Requests --------------------------------------------------------------------------------

describe('Requests', SUITE, () => {
  const usage = 'use GET /sse or POST /messages\n';
  const refusals = [
    ['an unknown path', 'GET', '/nothing', 404, `Not found: ${usage}`],
    ['a path of slashes', 'GET', '//', 404, `Not found: ${usage}`],
    ['a POST to the stream', 'POST', '/sse', 405, `Method not allowed: ${usage}`],
    ['a GET of the messages', 'GET', '/messages', 405, `Method not allowed: ${usage}`],
    [
      'no id',
      'POST',
      '/messages',
      400,
      'Missing sessionId parameter: post to the URL that /sse gives\n',
    ],
    [
      'an unknown id',
      'POST',
      '/messages?sessionId=1',
      404,
      'Session not found: reconnect to /sse\n',
    ],
  ] as const;
  for (const [what, method, path, status, text] of refusals) {
    test(`${what} gets ${status}`, async () => {
      const { url } = await startServer();
      const { statusCode, headers, body } = await request(new URL(url + path), { method });
      assert.equal(statusCode, status);
      assert.equal(await body.text(), text);
      if (status === 405) assert.equal(headers['allow'], method === 'GET' ? 'POST' : 'GET');
    });
  }

  test('a trailing slash makes no difference, in a request or in an option', async () => {
    const { url } = await startServer({ ssePath: '/mcp/sse/', messagesPath: '/mcp/messages/' });
    for (const path of ['/mcp/sse', '/mcp/sse/', 'http://localhost/mcp/sse']) {
      const { endpoint } = await openStream(url, path);
      assert.match(endpoint, /\/mcp\/messages\?sessionId=/);
      const { status } = await post(endpoint.replace('?', '/?'), ping(1));
      assert.equal(status, 202);
    }
  });

  const origins = [
    [{ host: 'localhost' }, true],
    [{ host: 'LOCALHOST:3000' }, true],
    [{ host: '[::1]:3000' }, true],
    [{ host: 'mcp.example:3000' }, true],
    [{ host: 'evil.example' }, false],
    [{ host: 'localhost.evil.example' }, false],
    [{ host: 'evil example' }, false],
    [{ origin: 'https://mcp.example' }, true],
    [{ origin: 'https://evil.example' }, false],
    [{ origin: 'null' }, false],
    [{ 'sec-fetch-site': 'cross-site' }, false],
  ] as const;
  for (const [headers, isLetIn] of origins) {
    test(`${JSON.stringify(headers)} is ${isLetIn ? 'let in' : 'refused'}`, async () => {
      const { url } = await startServer({ allowedHosts: ['mcp.example'] });
      const { statusCode, body } = await request(`${url}/nothing`, { headers });
      assert.equal(statusCode, isLetIn ? 404 : 403);
      if (!isLetIn) assert.match(await body.text(), /^Host, Origin or site not allowed: /);
    });
  }

  test('with a token, each request must carry it', async () => {
    const { url } = await startServer({ token: 's3cret' });
    for (const authorization of ['', 'Bearer wrong', 'Basic s3cret', 's3cret']) {
      const answer = await request(`${url}/messages`, { headers: { authorization } });
      assert.equal(answer.statusCode, 401);
      assert.equal(answer.headers['www-authenticate'], 'Bearer');
      assert.doesNotMatch(await answer.body.text(), /s3cret/);
    }
    assert.equal((await request(`${url}/nothing`)).statusCode, 404);
    const client = await connectClient(url, { authorization: 'bearer s3cret' });
    await client.ping();
  });

  test('a message of 1 MiB is taken, and one byte more gets 413', async () => {
    const { url } = await startServer();
    const { endpoint } = await openStream(url);
    const message = JSON.stringify(ping(1)).padEnd(1024 * 1024);
    const headers = { 'content-type': 'application/json' };
    const taken = await request(endpoint, { method: 'POST', headers, body: message });
    assert.equal(taken.statusCode, 202);
    const refused = await request(endpoint, { method: 'POST', headers, body: `${message} ` });
    assert.equal(refused.statusCode, 413);
    assert.equal(await refused.body.text(), 'Message too large: send at most 1048576 bytes\n');
  });

  test('a request that does not arrive in time gets 408', async () => {
    const { url, server } = await startServer();
    assert.equal(server.requestTimeout, 30_000);
    assert.equal(server.keepAliveTimeout, 65_000);
    assert.equal(server.timeout, 60_000);
    server.requestTimeout = 50;
    server.headersTimeout = 50;
    const stalled = send(url, 'GET /sse');
    await until(() => /^HTTP\/1.1 408/.test(stalled.text));
  });
});

// ---- Start -----------------------------------------------------------------------------------

describe('Start', SUITE, () => {
  const settings = [
    ['PORT', '65536', /<=65535\n.*at PORT/],
    ['PORT', 'secret', /expected number.*\n.*at PORT/],
    ['SSE_PATH', 'sse', /must be a path such as \/mcp\/sse\n.*at SSE_PATH/],
    ['MESSAGES_PATH', '/messages/', /must be a path .*\n.*at MESSAGES_PATH/],
    ['MESSAGES_PATH', '/sse', /SSE_PATH and MESSAGES_PATH must differ/],
    ['ALLOWED_HOSTS', 'http://mcp.example', /must be host names, no ports\n.*at ALLOWED_HOSTS/],
    ['MCP_TOKEN', 'secret token', /must be printable ASCII without spaces\n.*at MCP_TOKEN/],
    ['HOST', '0.0.0.0', /HOST lets others in: set MCP_TOKEN/],
  ] as const;
  for (const [name, value, fault] of settings) {
    test(`${name}=${value} is refused with a reason that does not show it`, () => {
      const refuse = (error: Error) => fault.test(error.message) && !/secret/.test(error.message);
      assert.throws(() => readSettings({ ...START, [name]: value }), refuse);
    });
  }

  test('a setting that is unset or blank takes its default', () => {
    const { HOST, PORT, ALLOWED_HOSTS } = readSettings({ ...START, HOST: '', PORT: ' ' });
    assert.deepEqual([HOST, PORT, ALLOWED_HOSTS], ['127.0.0.1', 3000, []]);
    const { ALLOWED_HOSTS: hosts } = readSettings({ ...START, ALLOWED_HOSTS: 'A.example , b.c' });
    assert.deepEqual(hosts, ['a.example', 'b.c']);
    for (const HOST of ['localhost', '::1']) readSettings({ ...START, HOST });
  });

  test('the start says how to reach it, .env counts, and a signal ends it once', async () => {
    const env = 'HOST=:: \n  \nMCP_TOKEN=t0ken\r\nSSE_PATH=/from-file\nALLOWED_HOSTS=a.example';
    const paths = { SSE_PATH: '/events', MESSAGES_PATH: '/post' };
    const run = await runServer({ ...START, ...paths }, env);
    const [, url = ''] = await run.line(/^MCP over HTTP\+SSE: GET (\S+)\/events, POST \1\/post$/m);
    assert.match(url, /^http:\/\/localhost:\d+$/);
    await run.line(/^Token: required$/m);
    await run.line(/^Try: curl -N -H "Authorization: Bearer <MCP_TOKEN>" \S+\/events$/m);
    const open = async (authorization: string) => {
      const headers = { host: 'a.example', authorization };
      return request(`${url}/events`, { headers });
    };
    assert.equal((await open('')).statusCode, 401);
    const [first, second] = [await open('Bearer t0ken'), await open('Bearer t0ken')];
    assert.equal(second.statusCode, 200, run.text);
    await run.line(/^Session [\da-f]{8} started from \S+$/m);
    first.body.on('error', ignore).destroy();
    await run.line(/^Session [\da-f]{8} ended after \d+ ms$/m);
    assert.doesNotMatch(run.text, /t0ken/);
    run.child.stdout.destroy();
    const third = await open('Bearer t0ken');
    run.child.kill('SIGINT');
    run.child.kill('SIGINT');
    for (const { body } of [second, third]) assert.match(await body.text(), /\ndata: \/post\?/);
    assert.deepEqual(await run.exit, [0, null]);
  });

  test('a port in use ends the start with one line', async () => {
    const { url } = await startServer();
    const run = await runServer({ ...START, PORT: new URL(url).port });
    assert.deepEqual(await run.exit, [1, null]);
    assert.match(run.text, /^Cannot start: listen EADDRINUSE: .*\n$/);
  });
});

// ==== The tool and its firewall ===============================================================

const { connectFirewall, getServer } = subject;
const API_KEY = 'LUFRPT1-secret+key/==';
const ANSWER_HINT = 'check PANOS_HOSTNAME, the network, and the certificate (NODE_EXTRA_CA_CERTS)';
const REFUSAL_HINT = 'check PANOS_API_KEY, the XML API rights of its role, and the target if any';

// A certificate for clients on a server, which therefore no client accepts. It guards nothing.
const TLS = {
  cert: `-----BEGIN CERTIFICATE-----
MIIBszCCAVigAwIBAgIUf6KlAKaY5zzHKrBSPmb6aS1vXHMwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNjEzMzkxMVoYDzIxMjYxMTAy
MTMzOTExWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASZDoEndU+cFLlgKmI3LrgEUlNYD2Tfhky9eEsnQSFxIqlt4WT0o+oK
0tHcVMK9yZcmb6JxJFRfA0YBUZ68LLZfo4GFMIGCMB0GA1UdDgQWBBQIHukeZS6C
AOXd+6Q2QMpnVNvRMTAfBgNVHSMEGDAWgBQIHukeZS6CAOXd+6Q2QMpnVNvRMTAP
BgNVHRMBAf8EBTADAQH/MBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATATBgNV
HSUEDDAKBggrBgEFBQcDAjAKBggqhkjOPQQDAgNJADBGAiEA5nxL/Bybj7q4iCBr
TayAnG0sOR6ULioZ/vDjf70RWxoCIQD6QwyHzq5AKXbv9Ay64UVomzzRa9DXuC0d
dnxuDg0avw==
-----END CERTIFICATE-----`,
  key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgCQOfcRznn3Zeoniw
54fpT5I7PGJcMpmjBMX4qIXUHjChRANCAASZDoEndU+cFLlgKmI3LrgEUlNYD2Tf
hky9eEsnQSFxIqlt4WT0o+oK0tHcVMK9yZcmb6JxJFRfA0YBUZ68LLZf
-----END PRIVATE KEY-----`,
};

type Answer = (res: http.ServerResponse) => unknown;

/** A stand-in for a firewall, the settings that lead to it, and the calls that it gets. */
async function startFirewall(answer: Answer, firewall: http.Server = http.createServer()) {
  const calls: { req: http.IncomingMessage; res: http.ServerResponse; body: string }[] = [];
  firewall.on('request', async (req, res) => {
    calls.push({ req, res, body: await text(req) });
    answer(res);
  });
  firewall.listen(0, '127.0.0.1');
  await once(firewall, 'listening');
  cleanups.push(() => firewall.close().closeAllConnections());
  const { port } = firewall.address() as AddressInfo;
  const env = { ...START, PANOS_HOSTNAME: `http://127.0.0.1:${port}`, PANOS_API_KEY: API_KEY };
  return { calls, env, port };
}

/** A client of the tool with these settings. */
async function connectTool(env: Record<string, string>) {
  const firewall = connectFirewall(readSettings(env));
  const { url } = await startServer({ getServer: () => getServer(firewall) });
  return { url, client: await connectClient(url) };
}

/** Calls the tool, and returns its data, or the text of its error. */
async function ask(client: Client, target?: string, options = {}) {
  const call = { name: 'show_system_info', arguments: { target } };
  const result = await client.callTool(call, undefined, options);
  const [{ text }] = result.content as [{ text: string }];
  if (result.isError) return text;
  assert.deepEqual(JSON.parse(text), result.structuredContent);
  return result.structuredContent;
}

const success = (system: string) => {
  return `<response status="success"><result><system>${system}</system></result></response>`;
};
const refusal = (code: string, inner: string) => {
  return `<response status = 'error' code = '${code}'>${inner}</response>`;
};
const long = 'x'.repeat(2000);

describe('The tool and its firewall', SUITE, () => {
  test('without a firewall, sample data comes and says so', async () => {
    const { client } = await connectTool(START);
    const { tools } = await client.listTools();
    assert.ok(tools[0]?.annotations?.readOnlyHint && tools[0].outputSchema);
    const note = 'Sample data: to ask a real firewall, set PANOS_HOSTNAME and PANOS_API_KEY.';
    assert.deepEqual(await ask(client), { hostname: 'sample-firewall', note });
  });

  test('the firewall is asked as PAN-OS wants it, with the key in a header alone', async () => {
    const { calls, env } = await startFirewall((res) => res.end(success('<a>1</a>')));
    const { client } = await connectTool(env);
    for (const target of [undefined, '', '007951000000013']) await ask(client, target);
    const form = { type: 'op', cmd: '<show><system><info></info></system></show>' };
    const forms = calls.map(({ body }) => Object.fromEntries(new URLSearchParams(body)));
    assert.deepEqual(forms, [form, form, { ...form, target: '007951000000013' }]);
    const { method, url, headers } = calls[0]!.req;
    const { 'content-type': type, 'x-pan-key': key } = headers;
    assert.deepEqual(
      [method, url, type, key],
      ['POST', '/api/', 'application/x-www-form-urlencoded', API_KEY],
    );
    assert.match(String(await ask(client, 'a b')), /must be a serial number/);
  });

  test('each field comes as the text that was sent', async () => {
    const reply =
      success(`<hostname>caf&#233; &amp; b</hostname><serial>007</serial><v>2023.20140</v>
      <time>Tue Aug 15\n</time><empty/><ZTP>a</ZTP><ZTP>b</ZTP>
      <plugins><entry name='dlp' version='1.0'><c><![CDATA[<d>]]></c></entry></plugins>`);
    const { env } = await startFirewall((res) => res.end(`\n<?xml version="1.0"?>${reply}`));
    const { client } = await connectTool(env);
    await client.listTools(); // From now on the client checks results against the output schema.
    assert.deepEqual(await ask(client), {
      hostname: 'café & b',
      serial: '007',
      v: '2023.20140',
      time: 'Tue Aug 15',
      empty: '',
      ZTP: ['a', 'b'],
      plugins: { entry: { name: 'dlp', version: '1.0', c: '<d>' } },
    });
  });

  const failures = [
    [
      400,
      refusal('400', '<result><msg>Key Expired</msg></result>'),
      'HTTP 400, code 400: Key Expired',
      REFUSAL_HINT,
    ],
    [
      200,
      refusal('16', '<msg><line>No</line></msg>').replace('error', 'unauth'),
      'HTTP 200, code 16: No',
      REFUSAL_HINT,
    ],
    [
      200,
      refusal('17', '<msg><line><![CDATA[ a]]></line><line>b\n</line></msg>'),
      'HTTP 200, code 17: a b',
      REFUSAL_HINT,
    ],
    [
      200,
      refusal('', '<msg/><result><msg><line><line>c</line></line></msg></result>'),
      'HTTP 200, code none: c',
      REFUSAL_HINT,
    ],
    [200, refusal('1', `<msg>key=${API_KEY}</msg>`), 'HTTP 200, code 1: key=***', REFUSAL_HINT],
    [
      200,
      refusal('1', `<msg>${long}</msg>`),
      `HTTP 200, code 1: ${long}`.slice(0, 500),
      REFUSAL_HINT,
    ],
    [401, '<html></html>', 'HTTP 401 without a PAN-OS reply', REFUSAL_HINT],
    [503, '<html><hr></html>', 'HTTP 503 without a PAN-OS reply', ANSWER_HINT],
    [200, success('<a>').slice(0, -20), 'HTTP 200 without a PAN-OS reply', ANSWER_HINT],
    [200, success(''), 'no system information in the reply', ANSWER_HINT],
    [200, long.repeat(600), 'the reply broke off: Response content exceeded max size', ANSWER_HINT],
  ] as const;
  for (const [status, reply, reason, hint] of failures) {
    test(`HTTP ${status} with ${reply.slice(0, 80)} is told in one sentence`, async () => {
      const { env, port } = await startFirewall((res) => res.writeHead(status).end(reply));
      const { client } = await connectTool(env);
      assert.equal(await ask(client), `Asking 127.0.0.1:${port} failed (${reason}): ${hint}.`);
    });
  }

  test('a lost connection is tried once more, unless the reply has begun', async () => {
    const { calls, env } = await startFirewall((res) => {
      if (calls.length === 2) res.destroy();
      else if (calls.length < 4) res.end(success('<a>1</a>'));
      else res.writeHead(200, { 'content-length': 99 }).write('<a>', () => res.destroy());
    });
    const { client } = await connectTool(env);
    assert.deepEqual(await ask(client), { a: '1' });
    assert.deepEqual(await ask(client), { a: '1' });
    assert.match(String(await ask(client)), /\(the reply broke off: .*\): check PANOS_HOSTNAME/);
    assert.equal(calls.length, 4);
  });

  test('a certificate that is not accepted is an error, unless its check is switched off', async () => {
    const { env, port } = await startFirewall(
      (res) => res.end(success('<a>1</a>')),
      https.createServer(TLS),
    );
    const strict = { ...env, PANOS_HOSTNAME: `localhost:${port}` };
    const { client } = await connectTool(strict);
    assert.match(
      String(await ask(client)),
      /\(unsuitable certificate purpose\): .*NODE_EXTRA_CA_CERTS/,
    );
    const { client: lax } = await connectTool({ ...strict, PANOS_SKIP_VERIFY_CERTIFICATE: 'true' });
    assert.deepEqual(await ask(lax), { a: '1' });
  });

  test('a call ends with its session, and when the client cancels it', async () => {
    const { calls, env } = await startFirewall(ignore);
    const { client, url } = await connectTool(env);
    const cancel = new AbortController();
    const cancelled = ask(client, '', cancel);
    const other = await connectClient(url);
    const closed = ask(other);
    await until(() => calls.length === 2);
    cancel.abort();
    await assert.rejects(cancelled, /AbortError/);
    await other.close();
    await assert.rejects(closed, /Connection closed/);
    await until(() => calls.every(({ res }) => res.destroyed));
  });

  test('fifty clients at once are all answered, through five connections', async () => {
    const { calls, env } = await startFirewall((res) => res.end(success('<a>1</a>')));
    const { url } = await connectTool(env);
    const clients = await Promise.all(Array.from({ length: 50 }, () => connectClient(url)));
    const answers = await Promise.all(clients.map((client) => ask(client)));
    assert.deepEqual(answers, Array(50).fill({ a: '1' }));
    assert.equal(new Set(calls.map(({ req }) => req.socket)).size, 5);
  });

  test('finished calls leave nothing in memory', async () => {
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    const { env } = await startFirewall((res) => res.end(success(`<a>${'x'.repeat(100_000)}</a>`)));
    const { client } = await connectTool(env);
    const heapAfter = async (calls: number) => {
      for (let call = 0; call < calls; call += 1) await ask(client);
      collect();
      return process.memoryUsage().heapUsed;
    };
    const before = await heapAfter(20);
    const growth = (await heapAfter(100)) - before;
    assert.ok(growth < 5_000_000, `100 calls with 100 KB each left ${growth} bytes`);
  });

  test('the settings of the firewall are checked', () => {
    const read = (env: Record<string, string>) => () => readSettings({ ...START, ...env });
    assert.throws(read({ PANOS_HOSTNAME: 'fw.example' }), /PANOS_API_KEY need each other/);
    assert.throws(read({ PANOS_HOSTNAME: 'f w' }), /must be like fw.example.*\n.*PANOS_HOSTNAME/);
  });
});

// ==== Any MCP server over HTTP+SSE: the doctor ================================================

/** These make nobody lose a session today. All other findings are problems. */
const RISKS = [
  'silent-stream',
  'not-before-initialize',
  'unknown-id-accepted',
  'ended-id-accepted',
  'any-host-accepted',
];

/** What the README says of a finding: what it means, what to do, and where more is said. */
function adviceOn(name: string) {
  const page = readFileSync(join(import.meta.dirname, 'README.md'), 'utf8');
  const row = new RegExp(`^[ -]*(.*) \\(\`${name}\`\\)<br>\\*Yours:\\* (.*?)(<br>|$)`, 'm');
  const [, means, cure] = row.exec(page) ?? [];
  return `  ${name}: ${means}\n  What to do: ${cure}\n  README.md says more: search it for ${name}.`;
}

/** What a check throws when it finds something; the message is what was seen. */
class Finding extends Error {
  constructor(name: string, seen: string) {
    super(seen);
    this.name = name;
  }
}

/** All times are in milliseconds. */
const DEFAULTS = {
  headers: {} as Record<string, string>,
  print: ignore as (line: string) => void,
  /** For the head of a stream, for its `endpoint` event, and for the answer to a POST. */
  answer: 5_000,
  /** For the reply on the stream. */
  reply: 10_000,
  /** What "a moment later" means. */
  pause: 1_000,
  /** How long an open stream is watched. */
  watch: 40_000,
  /** A shorter watch says nothing about silence: many servers write once in 15 s. */
  shortestSilence: 20_000,
};

type Options = Partial<typeof DEFAULTS>;
type Message = { id?: unknown; method?: string; result?: object; error?: object };
type Visit = ReturnType<typeof newVisit>;

/** What is known of the server that is looked at. */
function newVisit(url: string, options: Options) {
  return {
    ...DEFAULTS,
    ...options,
    url: new URL(url),
    /** Tokens and session ids, which are not shown. */
    secrets: Object.values(options.headers ?? {})
      .join(' ')
      .split(' '),
    /** The streams of the check that is running. */
    streams: [] as Exchange[],
    /** Each reply, with the first stream that it came on. */
    replies: new Map<unknown, Message & { stream: Exchange }>(),
    hasStream: false,
    hasSession: false,
    /** What a made-up id gets: this is how the server says that a session is unknown. */
    unknown: undefined as Exchange | undefined,
    otherOrigin: '',
    /** What the path in the `endpoint` event lacks. */
    prefix: '',
    silence: 0,
    strangeName: '',
    strangeData: '',
  };
}

/** One request, its answer, and the stream if the answer is one. */
class Exchange {
  visit: Visit;
  controller = new AbortController();
  openedAt = Date.now();
  /** Without an answer, the status is 0, and the code says why. */
  status = 0;
  code = '';
  type = '';
  text = '';
  /** Where to POST; the stream's own URL until the first event has come. */
  endpoint: URL;
  /** The same with an id that nobody was given. */
  madeUp: URL | undefined;
  lastByteAt = 0;
  endedAt = 0;

  constructor(visit: Visit, url: URL) {
    this.visit = visit;
    this.endpoint = url;
  }
}

// ---- What a client needs of a server ---------------------------------------------------------

/** Each check returns what it saw, or nothing where it does not apply, or throws a finding. */
const CHECKS: Record<string, (visit: Visit) => Promise<string | void>> = {
  async 'the stream opens'(visit) {
    const { type } = await open(visit);
    visit.hasStream = true;
    return `GET ${visit.url.pathname} gets 200 ${type}`;
  },

  async 'its first event says where to POST'(visit) {
    const { endpoint } = await open(visit);
    const { url, otherOrigin } = visit;
    if (!otherOrigin) return endpoint.pathname + endpoint.search;
    throw new Finding(
      'other-origin',
      `it names ${otherOrigin}, and the stream is at ${url.origin}`,
    );
  },

  /** Looks for the endpoint below the folders of the stream's own path. */
  async 'the path of the endpoint leads to the server'(visit) {
    visit.prefix = '';
    const stream = await open(visit);
    const { pathname } = stream.endpoint;
    const folder = dirname(visit.url.pathname);
    if (pathname.startsWith(folder)) return;
    const failure = await callOn(stream, 'initialize').then(ignore, (error: Error) => error);
    if (!failure) return;
    for (let prefix = folder; prefix !== '/'; prefix = dirname(prefix)) {
      stream.endpoint.pathname = prefix + pathname;
      const reply = await callOn(stream, 'initialize').catch(ignore);
      if (!reply) continue;
      visit.prefix = prefix;
      const seen = `${failure.message} at ${pathname}, and a reply below ${prefix}`;
      throw new Finding('missing-prefix', seen);
    }
  },

  async 'an unknown id is refused'(visit) {
    const { endpoint, madeUp } = await open(visit);
    if (!madeUp || madeUp.href === endpoint.href) return;
    visit.unknown = await postTo(visit, madeUp, messageOf('ping'));
    const seen = `a made-up one gets ${told(visit.unknown)}`;
    if (isAccepted(visit.unknown)) throw new Finding('unknown-id-accepted', seen);
    return seen;
  },

  /** Each stream gets a row of marks: + for a request that was answered, - for one refused. */
  async 'messages are answered, at once and later'(visit) {
    const rows: string[] = [];
    let refusal: Exchange | undefined;
    while (rows.length < 2) {
      const stream = await open(visit);
      let row = '';
      // With a round robin of eight processes, one of nine POSTs reaches the right one.
      while (row.length < (refusal ? 9 : 5)) {
        if (row.length === 3) await sleep(visit.pause);
        const { answer } = await tryOn(stream, row === '' ? 'initialize' : 'ping');
        row += isAccepted(answer) ? '+' : '-';
        if (!isAccepted(answer)) refusal = answer;
      }
      rows.push(row);
      await closeStreams(visit);
    }
    const seen = `on new streams, messages are answered (+) or refused (-): ${rows.join(' ')}`;
    visit.hasSession = true;
    if (!refusal) return seen;
    const name = nameOfRows(rows, refusal);
    visit.hasSession = name === 'filed-late';
    throw new Finding(name, `${seen}, with ${told(refusal)}`);
  },

  async 'two sessions stay apart'(visit) {
    if (!visit.hasSession) return;
    const blame = renamed('shared-server', 'with two sessions open');
    const first = await startSession(visit);
    const second = await startSession(visit).catch(blame);
    for (const stream of [first, second, first, second]) await callOn(stream, 'ping').catch(blame);
    return 'each gets its own replies';
  },

  async 'an ended id is refused'(visit) {
    if (!visit.hasSession || !visit.unknown || isAccepted(visit.unknown)) return;
    const { controller, endpoint } = await startSession(visit);
    controller.abort();
    await sleep(visit.pause);
    const answer = await postTo(visit, endpoint, messageOf('ping'));
    const seen = `after the end of its stream, it gets ${told(answer)}`;
    if (isAccepted(answer)) throw new Finding('ended-id-accepted', seen);
    return seen;
  },

  async 'a client may go on without initialize'(visit) {
    if (!visit.hasSession) return;
    const stream = await open(visit);
    const refused = ({ message }: Error): Message => ({ error: { message } });
    const { result, error } = await callOn(stream, 'tools/list').catch(refused);
    if (result) return 'tools/list is answered';
    const later = await callOn(await startSession(visit), 'tools/list');
    if (!later.result) return;
    throw new Finding('not-before-initialize', `tools/list gets ${JSON.stringify(error)}`);
  },

  /** A web page can make its own name lead to 127.0.0.1, and then the browser sends that name. */
  async 'a foreign Host is refused'({ url, headers, answer }) {
    if (!/^http:\/\/(localhost|127\.[\d.]+|\[::1\])[:/]/.test(url.href)) return;
    // fetch() sends the URL's own Host, whatever it is told.
    const signal = AbortSignal.timeout(answer);
    const foreign = { headers: { ...headers, host: 'rebinding.example' }, signal };
    const response = await request(url, foreign).catch(ignore);
    response?.body.on('error', ignore).destroy();
    const status = response?.statusCode ?? 'no answer';
    if (status === 200) throw new Finding('any-host-accepted', 'GET gets 200');
    return `GET gets ${status}`;
  },

  async 'the stream stays open'(visit) {
    const stream = await (visit.hasSession ? startSession(visit) : open(visit));
    const { watch, print } = visit;
    print(`… an open stream is watched for ${seconds(watch)}`);
    const start = Date.now();
    await waitFor(() => stream.endedAt, watch);
    if (stream.endedAt) throw endOf(stream);
    visit.silence = Date.now() - Math.max(start, stream.lastByteAt);
    if (visit.hasSession) await callOn(stream, 'ping');
    return `for ${seconds(watch)}`;
  },

  async 'a byte comes within the watch'({ silence, watch, shortestSilence }) {
    if (!silence || watch < shortestSilence) return;
    if (silence < 0.9 * watch) return 'it is kept alive';
    throw new Finding('silent-stream', `none came for ${seconds(watch)}`);
  },

  async 'events have the names that clients know'({ strangeName }) {
    if (strangeName) throw new Finding('wrong-event-name', strangeName);
    return 'endpoint and message';
  },

  async 'each message event is JSON-RPC'({ strangeData }) {
    if (strangeData) throw new Finding('heartbeat-as-data', strangeData);
    return 'nothing else came';
  },

  async 'a bad message is survived'(visit) {
    if (!visit.hasSession) return;
    const stream = await startSession(visit);
    for (const [what, body, type] of BAD_MESSAGES) {
      const answer = await postTo(visit, stream.endpoint, body, type);
      const blame = renamed('killed-by-bad-message', `after ${what} (${told(answer)})`);
      await callOn(stream, 'ping').catch(blame);
    }
    return 'also JSON that is no message, and another content type';
  },
};

function nameOfRows(rows: string[], refusal: Exchange) {
  if (rows.every((row) => /^-+$/.test(row))) return nameOfRefusal(refusal);
  if (rows.every((row) => /^-*\++$/.test(row))) return 'filed-late';
  if (rows.every((row) => /^\++-+$/.test(row))) return 'removed-early';
  return 'several-processes';
}

const BODY_IS_READ = /stream is not readable|encoding should not be set|\[object Object\]/;

function nameOfRefusal(refusal: Exchange) {
  const { visit, status, text } = refusal;
  if (BODY_IS_READ.test(text)) return 'body-already-read';
  // The doctor posts to the URL's own origin only, and messages may be taken elsewhere.
  if (visit.otherOrigin) return 'other-origin';
  const isOfSession = /session|transport|undefined|null|None|KeyError/i.test(text);
  // A server that fails at every POST says nothing of its sessions.
  if (status >= 500 && !isOfSession) return 'reply-lost';
  if (BY_STATUS[status] && !isOfSession) return BY_STATUS[status];
  return isUnknown(refusal) ? 'id-not-filed' : 'reply-lost';
}

const JSON_TYPE = 'application/json';
const BAD_MESSAGES = [
  ['text that is not JSON', 'This is not JSON.', JSON_TYPE],
  ['JSON that is no message', '{}', JSON_TYPE],
  ['another content type', '{"jsonrpc":"2.0","id":0,"method":"ping"}', 'text/plain'],
] as const;

function renamed(name: string, when: string) {
  return ({ message }: Error) => {
    throw new Finding(name, `${when}, ${message}`);
  };
}

// ---- Why no stream opens ---------------------------------------------------------------------

const BY_STATUS: Record<number, string> = {
  401: 'unauthorized',
  403: 'host-refused',
  421: 'host-refused',
  502: 'bad-gateway',
  503: 'bad-gateway',
  504: 'bad-gateway',
};

async function explain(stream: Exchange) {
  const { visit, status, code, type, text, lastByteAt } = stream;
  const { url } = visit;
  const seen = `GET ${url.origin}${url.pathname} gets ${told(stream)} ${type}`.trim();
  if (code && code !== TIMEOUT) return new Finding(nameOfFailure(stream), seen);
  const posted = await postTo(visit, url, messageOf('initialize'));
  if (isMcp(posted)) return new Finding('streamable-http', `${seen}; a POST is answered by MCP`);
  const name = BY_STATUS[status];
  if (name) return new Finding(name, seen);
  // Another session is open, or an earlier one was never given up.
  if (visit.hasStream || /already (connected|started)/i.test(text))
    return new Finding('shared-server', seen);
  const isSilent = isEventStream(stream) && !lastByteAt;
  if (status && !isSilent) return new Finding('wrong-url', `${seen}; ${await findBeside(visit)}`);
  const root = await exchange(visit, new URL('/', url));
  const isAnswering = status || posted.status || root.status;
  return new Finding(isAnswering ? 'buffered' : 'unreachable', `${seen}, no endpoint event`);
}

function nameOfFailure({ visit, code, text }: Exchange) {
  if (code === 'ECONNREFUSED' && visit.hasStream) return 'died';
  // The codes of the network are like ECONNREFUSED; those of TLS follow no rule.
  const isNetwork = /^no answer: (E(?!PROTO)[A-Z]+|(EAI|UND)_\w+) (?!.*TLS)/.test(text);
  const isTls = visit.url.protocol === 'https:' && !isNetwork;
  return isTls ? 'untrusted-certificate' : 'unreachable';
}

async function findBeside(visit: Visit) {
  const seen = ['/sse', '/mcp', '/mcp/sse'].map(async (path) => {
    const url = new URL(path, visit.url);
    if (isEventStream(await exchange(visit, url))) return `${path} is an event stream`;
    const posted = await postTo(visit, url, messageOf('initialize'));
    return `${path} is ${isMcp(posted) ? 'Streamable HTTP' : 'no MCP'}`;
  });
  return (await Promise.all(seen)).join(', ');
}

function isMcp({ status, text }: Exchange) {
  const [, data = text] = /^data:(.*)$/m.exec(text) ?? [];
  const { result, error } = messageIn(data) ?? {};
  return result ?? (error && status <= 400);
}

// ---- Streams ---------------------------------------------------------------------------------

const ACCEPT = 'text/event-stream, application/json';
const TIMEOUT = 'TIMEOUT';
const PROXY = process.env['HTTP_PROXY'] ? ' (HTTP_PROXY is set)' : '';

const isEventStream = ({ status, type }: Exchange) =>
  status === 200 && type.startsWith('text/event-stream');

/** Sends a request. If an event stream answers a GET, it is listened to. */
async function exchange(visit: Visit, url: URL, init: RequestInit = {}) {
  const stream = new Exchange(visit, url);
  const { controller } = stream;
  visit.streams.push(stream);
  const giveUp = () => controller.abort({ code: TIMEOUT, message: 'it takes too long' });
  const timer = setTimeout(giveUp, visit.answer);
  try {
    const headers = { accept: ACCEPT, ...init.headers, ...visit.headers, connection: 'close' };
    const response = await fetch(url, { ...init, headers, signal: controller.signal });
    stream.status = response.status;
    stream.type = response.headers.get('content-type') ?? '';
    if (isEventStream(stream) && !init.body) void listen(stream, response);
    // A body may stay open for ever.
    else stream.text = await Promise.race([response.text(), sleep(1_000, '')]);
  } catch (error) {
    const { cause = error } = error as Error;
    const { name, code = name, message } = cause as NodeJS.ErrnoException;
    Object.assign(stream, { code, text: `no answer: ${code} ${message}${PROXY}` });
  }
  clearTimeout(timer);
  return stream;
}

/** Opens a stream and waits for its `endpoint` event. */
async function open(visit: Visit) {
  const stream = await exchange(visit, visit.url);
  const isDone = () => stream.madeUp || stream.endedAt || !isEventStream(stream);
  await waitFor(isDone, visit.answer);
  if (!stream.madeUp) throw await explain(stream);
  return stream;
}

/** Opens a stream and does what each client does first. */
async function startSession(visit: Visit) {
  const stream = await open(visit);
  await callOn(stream, 'initialize');
  await postTo(visit, stream.endpoint, { jsonrpc: '2.0', method: 'notifications/initialized' });
  return stream;
}

async function listen(stream: Exchange, { body, url }: Response) {
  const parser = createParser({ onEvent: (event) => hear(stream, event) });
  stream.endpoint = new URL(url);
  try {
    for await (const chunk of body?.pipeThrough(new TextDecoderStream()) ?? []) {
      stream.lastByteAt = Date.now();
      parser.feed(chunk);
    }
  } catch {
    // A stream that breaks off has ended, too.
  }
  stream.endedAt = Date.now();
}

function hear(stream: Exchange, { event = 'message', data }: EventSourceMessage) {
  const { visit, endpoint, madeUp } = stream;
  if (event === 'endpoint' && !madeUp) takeEndpoint(stream, new URL(data, endpoint));
  const message = messageIn(data);
  if (!message) {
    if (event === 'message') visit.strangeData = `one was ${quote(data)}`;
    return;
  }
  const { id, method } = message;
  if (method === 'ping') void postTo(visit, endpoint, { jsonrpc: '2.0', id, result: {} });
  if (method || visit.replies.has(id)) return;
  visit.replies.set(id, { ...message, stream });
  if (event !== 'message') visit.strangeName = `a reply came as the event ${event}`;
}

// An id is in a parameter of that name, or else in the last part that has digits.
const ID = /(?<=[?&]\w*(session|id)\w*=)[^&]+|[^/?&=]*\d[^/?&=]*(?=\D*$)/i;

/** Nothing is sent to another origin, lest a token gets there. */
function takeEndpoint(stream: Exchange, { origin, pathname, search }: URL) {
  const { visit, endpoint } = stream;
  if (origin !== endpoint.origin) visit.otherOrigin = origin;
  const path = visit.prefix + pathname + search;
  const [id = ''] = ID.exec(path) ?? [];
  const madeUp = id.replace(/\w{1,8}(?=\W*$)/, String(randomInt(1e7, 1e8)));
  visit.secrets.push(id, madeUp);
  stream.endpoint = new URL(endpoint.origin + path);
  stream.madeUp = new URL(endpoint.origin + path.replace(ID, madeUp));
}

async function closeStreams({ streams, pause }: Visit) {
  for (const { controller } of streams.splice(0)) controller.abort();
  // The server needs time to see it.
  await sleep(pause / 10);
}

function endOf({ visit, openedAt, endedAt }: Exchange) {
  const age = endedAt - openedAt;
  const name = age < 1.5 * visit.pause ? 'removed-early' : 'cut-off';
  return new Finding(name, `the stream ended by itself after ${seconds(age)}`);
}

// ---- Messages --------------------------------------------------------------------------------

let lastId = 0;

function messageOf(method: string) {
  lastId += 1;
  const clientInfo = { name: 'doctor', version: '1.0.0' };
  const params = { protocolVersion: '2024-11-05', capabilities: {}, clientInfo };
  return { jsonrpc: '2.0', id: lastId, method, ...(method === 'initialize' && { params }) };
}

/** The message in a text, if it is JSON-RPC. */
function messageIn(text: string): Message | undefined {
  try {
    const message = JSON.parse(text);
    return message.jsonrpc ? message : undefined;
  } catch {
    return undefined;
  }
}

/** Sends a request. Unless it is refused, its reply has to come on the same stream. */
async function tryOn(stream: Exchange, method: string) {
  const { visit, endpoint } = stream;
  const message = messageOf(method);
  const answer = await postTo(visit, endpoint, message);
  const isDone = () => visit.replies.has(message.id) || stream.endedAt;
  if (isAccepted(answer)) await waitFor(isDone, visit.reply);
  const reply = visit.replies.get(message.id);
  if (reply?.stream === stream) return { answer, reply };
  if (stream.endedAt) throw endOf(stream);
  const seen = `${method} gets ${told(answer)}`;
  if (reply) throw new Finding('shared-server', `${seen}, and the reply comes on another stream`);
  if (!isAccepted(answer)) return { answer, reply };
  throw new Finding('reply-lost', `${seen}, and no reply comes on the stream`);
}

/** Sends a request that must not be refused, except at first: the session may be filed late. */
async function callOn(stream: Exchange, method: string) {
  const first = await tryOn(stream, method);
  if (first.reply) return first.reply;
  await sleep(stream.visit.pause);
  const { answer, reply } = await tryOn(stream, method);
  if (reply) return reply;
  const name = isUnknown(answer) ? 'removed-early' : 'reply-lost';
  throw new Finding(name, `${method} gets ${told(answer)}`);
}

function postTo(visit: Visit, url: URL, message: object | string, type = JSON_TYPE) {
  const body = typeof message === 'string' ? message : JSON.stringify(message);
  return exchange(visit, url, { method: 'POST', headers: { 'content-type': type }, body });
}

const isAccepted = ({ status, code }: Exchange) =>
  (status >= 200 && status < 300) || code === TIMEOUT;

/** Whether this is how a made-up id is answered; ids, numbers and paths in the text may differ. */
function isUnknown(answer: Exchange) {
  const { visit } = answer;
  const plain = ({ text }: Exchange) =>
    hide(visit, text).replace(/\/[\w/.~%…-]*|[\da-f-]{8,}|\d+/gi, '');
  const { unknown } = visit;
  return unknown?.status === answer.status && plain(unknown) === plain(answer);
}

async function waitFor(isReached: () => unknown, limit: number) {
  const end = Date.now() + limit;
  while (!isReached() && Date.now() < end) await sleep(1);
}

// ---- What is shown ---------------------------------------------------------------------------

/** Hides tokens and session ids, and whatever else looks like one. */
function hide({ secrets }: Visit, text: string) {
  let hidden = text;
  for (const secret of secrets) {
    // A shorter one may be a part of anything.
    if (secret.length > 3) hidden = hidden.replaceAll(secret, '***');
  }
  return hidden.replace(/(?=[\w-]*\d)([\w-]{8})[\w-]{12,}/g, '$1…');
}

const told = ({ status, text }: Exchange) => (status ? `${status} ${quote(text)}` : text);

/** A text in one short line, without markup and control characters. */
function quote(text: string) {
  const line = text.replace(/(<(style|script|head)[^]*?<\/\2>|<[^>]*>|[\p{C}\s])+/gu, ' ');
  return `"${line.trim().slice(0, 100)}"`;
}

const seconds = (ms: number) => `${(ms / 1_000).toFixed(1)} s`;

// ---- The examination and its command line ----------------------------------------------------

/** Looks at a server from outside as a client would, and prints what each check saw. */
async function examine(url: string, options: Options) {
  const visit = newVisit(url, options);
  const { print, pause } = visit;
  const findings: { name: string; kind: string; seen: string }[] = [];
  /** The last check that could begin: if the server dies, it has died of that one. */
  let place = '';
  for (const [title, run] of Object.entries(CHECKS)) {
    let outcome = await attempt(visit, run);
    if (!(outcome instanceof Finding && outcome.name === 'died')) place = title;
    if (outcome instanceof Finding) {
      // It proves before it accuses. By now, a server that only restarts is back.
      await sleep(pause);
      outcome = await attempt(visit, run);
    }
    if (outcome instanceof Finding) {
      const { name, message } = outcome;
      const kind = RISKS.includes(name) ? 'risk' : 'problem';
      const seen = hide(visit, `${place}: ${message}`);
      print(`${kind === 'risk' ? '!' : '✘'} ${seen}`);
      if (findings.some((finding) => finding.name === name)) continue;
      findings.push({ name, kind, seen });
      print(adviceOn(name));
      if (visit.hasStream && name !== 'died') continue;
      print('The rest was not checked.');
      break;
    } else if (outcome) {
      print(hide(visit, `✔ ${title}: ${outcome}`));
    }
  }
  return { url: hide(visit, url), findings };
}

async function attempt(visit: Visit, run: (visit: Visit) => unknown) {
  try {
    return await run(visit);
  } catch (error) {
    if (error instanceof Finding) return error;
    throw error;
  } finally {
    await closeStreams(visit);
  }
}

const USAGE = 'Usage: npm run doctor -- URL [--header "Name: value"] [--watch SECONDS] [--json]';

/** The exit code is 1 if there is a problem, and 2 if the command is wrong. */
async function runDoctor(args: string[]) {
  const command = readCommand(args);
  if (!command) {
    console.error(USAGE);
    return 2;
  }
  const { url, options, json } = command;
  const result = await examine(url, options);
  const names = result.findings.map(({ name }) => name).join(', ') || 'nothing';
  console.log(json ? JSON.stringify(result) : `Found: ${names}.`);
  return result.findings.some(({ kind }) => kind === 'problem') ? 1 : 0;
}

/** Nothing if the command is wrong. Its words are not repeated, since one may be a token. */
function readCommand(args: string[]) {
  try {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        header: { type: 'string', multiple: true, default: [] },
        watch: { type: 'string', default: '40' },
        json: { type: 'boolean', default: false },
      },
    });
    const { header, json } = values;
    const [url = ''] = positionals;
    const watch = 1_000 * Number(values.watch);
    assert.match(url, /^https?:\/\/[^@]+$/);
    assert.ok(URL.canParse(url) && watch >= 0);
    const lines = header.map((line) => line.split(/:\s*(.*)/, 2) as [string, string]);
    const headers = Object.fromEntries(new Headers(lines));
    return { url, json, options: { headers, watch, print: json ? ignore : console.log } };
  } catch {
    return undefined;
  }
}

if (task === 'doctor') process.exitCode = await runDoctor(process.argv.slice(3));

// ---- Faulty servers --------------------------------------------------------------------------

type ServerResponse = http.ServerResponse;

/** A request, and the session that it belongs to. */
type Call = { id: string; stream: ServerResponse; req: http.IncomingMessage; res: ServerResponse };

/** A healthy server by hand, whose results are empty. Each fault below replaces a part of it. */
class Healthy {
  options: Options = {};
  protocol = 'http:';
  eventName = 'message';
  streams = new Map<string, ServerResponse>();
  requests = 0;
  server = http.createServer((req, res) => this.handle(req, res));

  get origin() {
    return `${this.protocol}//127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  handle(req: http.IncomingMessage, res: ServerResponse): unknown {
    this.requests += 1;
    if (!this.allows(req)) return res.writeHead(403).end('Forbidden');
    const [path, id = ''] = String(req.url).split(/\?\w+=/);
    if (path === '/mcp/sse' && req.method === 'GET') return this.open(res);
    const stream = path === '/mcp/messages' && this.find(id);
    return stream ? this.take({ id, stream, req, res }) : this.refuse(res);
  }

  allows({ headers }: http.IncomingMessage) {
    return headers.host?.startsWith('127.0.0.1:');
  }

  open(res: ServerResponse) {
    const id = randomUUID();
    this.streams.set(id, res);
    res.writeHead(200, { 'content-type': 'text/event-stream' });
    this.write(res, 'endpoint', this.endpoint(id));
    const timer = setInterval(() => this.beat(res), 50);
    res.on('close', () => {
      clearInterval(timer);
      this.remove(id);
    });
  }

  find(id: string) {
    return this.streams.get(id);
  }

  remove(id: string) {
    this.streams.delete(id);
  }

  endpoint(id: string) {
    return `/mcp/messages?sessionId=${id}`;
  }

  refuse(res: ServerResponse) {
    res.writeHead(404).end('Session not found');
  }

  write(res: ServerResponse, event: string, data: string) {
    res.write(`event: ${event}\ndata: ${data}\n\n`);
  }

  beat(res: ServerResponse) {
    res.write(': keep-alive\n\n');
  }

  /** What happens when the doctor says that it watches. */
  rest() {}

  async take(call: Call) {
    const message = messageIn(await text(call.req));
    if (!message) return this.reject(call);
    this.accept(call);
    const { id, method = '' } = message;
    const reply = { jsonrpc: '2.0', id, ...this.reply(method, call) };
    if (id) this.send(call, JSON.stringify(reply));
  }

  accept({ res }: Call) {
    res.writeHead(202).end('Accepted');
  }

  reject({ res }: Call) {
    res.writeHead(400).end('Not a message');
  }

  reply(_method: string, _call: Call): object {
    return { result: {} };
  }

  send({ stream }: Call, reply: string) {
    this.write(stream, this.eventName, reply);
  }
}

type Fault = Partial<Healthy> & ThisType<Healthy>;

const answering = (status: number): Fault => ({
  handle: ({ headers }, res) => res.writeHead(status).end(`No: ${headers.authorization}`),
});
/** The ids that have been here before. */
const known = new Set<unknown>();

const FAULTS: Record<string, Fault> = {
  unreachable: { handle: (req) => req.destroy() },
  'untrusted-certificate': { protocol: 'https:' },
  unauthorized: answering(401),
  'host-refused': answering(421),
  'streamable-http': {
    handle({ method }, res) {
      res.writeHead(method === 'POST' ? 200 : 405).end('{"jsonrpc":"2.0","id":1,"result":{}}');
    },
  },
  'wrong-url': answering(404),
  'bad-gateway': answering(502),
  buffered: { write: ignore, beat: ignore, options: { answer: 1_000 } },
  'other-origin': { endpoint: (id) => `http://mcp.internal/mcp/messages?sessionId=${id}` },
  'missing-prefix': { endpoint: (id) => `/messages?sessionId=${id}` },
  'id-not-filed': { endpoint: () => `/mcp/messages?sessionId=${randomUUID()}` },
  'filed-late': {
    find(id) {
      if (known.has(id)) return this.streams.get(id);
      known.add(id);
      return undefined;
    },
  },
  'removed-early': {
    accept({ id, res }) {
      this.remove(id);
      res.writeHead(202).end();
    },
  },
  'several-processes': {
    find(id) {
      return this.requests % 2 ? undefined : this.streams.get(id);
    },
  },
  'body-already-read': {
    accept({ res }) {
      res.writeHead(400).end('InternalServerError: stream is not readable');
    },
  },
  'shared-server': {
    send(_call, reply) {
      this.streams.forEach((stream) => this.write(stream, 'message', reply));
    },
  },
  'reply-lost': { send: ignore, options: { reply: 300 } },
  'wrong-event-name': { eventName: 'reply' },
  'heartbeat-as-data': { beat: (res) => res.write('data: ping\n\n') },
  'killed-by-bad-message': {
    reject({ id, res }) {
      this.remove(id);
      res.writeHead(400).end();
    },
  },
  died: {
    reject() {
      this.server.close().closeAllConnections();
    },
  },
  'cut-off': {
    rest() {
      setTimeout(() => this.server.closeAllConnections(), 200);
    },
    options: { watch: 10_000 },
  },
  'silent-stream': { beat: ignore, options: { shortestSilence: 0 } },
  'not-before-initialize': {
    reply(method, { id }) {
      if (method === 'initialize') known.add(id);
      return known.has(id) ? { result: {} } : { error: { code: -32602 } };
    },
  },
  'unknown-id-accepted': { refuse: (res) => res.writeHead(202).end() },
  'ended-id-accepted': { remove: ignore },
  'any-host-accepted': { allows: () => true },
};

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
    const command = `node --import tsx server.test.ts doctor ${origin} --json --header`;
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

// ==== The exercises ===========================================================================

const WAIT = 4_000;
const WITH_TOKEN = { authorization: 'Bearer the-token' };
const TOKEN_LINE = 'Authorization: Bearer the-token\r\n';

/** Starts the server that is checked, with these settings, and returns its URL. */
type Start = (env: Record<string, string>) => Promise<string>;

/** What a check is waiting for. */
let awaited = 'server.ts must start';

/** Fails with one sentence for the participant: what is missing, and what was seen. */
function demand(found: unknown, missing: string, seen: unknown): asserts found {
  if (!found) throw new Error(`${missing}. Seen: ${JSON.stringify(seen)?.slice(0, 300)}`);
}

function orMissing(missing: string) {
  awaited = missing;
  return ({ message }: Error): never => {
    demand(false, missing, message);
  };
}

const OTHERS = [
  ['without the token', {}, 401],
  ['with a foreign Host', { ...WITH_TOKEN, host: 'attacker.example' }, 403],
  ['with a foreign Origin', { ...WITH_TOKEN, origin: 'http://attacker.example' }, 403],
] as const;

/** The checks of Origin and of the token come before everything that a path does. */
async function refusesOthers(url: string, requests: string[]) {
  for (const line of requests) {
    const [method, path] = line.split(' ') as ['GET' | 'POST', string];
    for (const [who, headers, expected] of OTHERS) {
      if (path === '/healthz' && expected === 401) continue; // It needs no token.
      const missing = `${line} ${who} must get ${expected}`;
      const answer = await request(url + path, { method, headers }).catch(orMissing(missing));
      demand(answer.statusCode === expected, missing, answer.statusCode);
    }
  }
}

// ---- Exercise 4: make sessions visible -------------------------------------------------------

async function checkHealth(start: Start) {
  const url = await start({ ...START, MCP_TOKEN: 'the-token' });

  async function healthIs(when: string, wanted: object) {
    const answer = await fetch(`${url}/healthz`).catch(orMissing('GET /healthz must be answered'));
    demand(answer.ok, 'GET /healthz must get 200, and need no token', answer.status);
    const health = await answer.json().catch(ignore);
    demand(
      isDeepStrictEqual({ ...health, ...wanted }, health),
      `${when}: GET /healthz must say ${JSON.stringify(wanted)}`,
      health,
    );
    return health.longestMs;
  }

  /** Opens a session, and returns what ends it. */
  async function open() {
    const { socket, post } = await openStream(url, '/sse', TOKEN_LINE);
    return async () => {
      socket.destroy();
      const isGone = async () => (await post(1, WITH_TOKEN)).status === 404;
      await until(isGone, () => 'An ended session must get 404', WAIT);
    };
  }

  await refusesOthers(url, ['GET /healthz', 'GET /sse', 'POST /messages']);
  await healthIs('Requests were refused', { sessions: 0, started: 0, longestMs: 0 });
  const endFirst = await open();
  const endSecond = await open();
  await healthIs('Two streams are open', { sessions: 2, started: 2, longestMs: 0 });
  await sleep(1000);
  await endFirst();
  await endSecond();
  const endThird = await open();
  const longest = await healthIs('A third stream is open', { sessions: 1, started: 3 });
  demand(longest > 900, 'After one second longestMs must say so', longest);
  await endThird();
  const kept = await healthIs('All streams have ended', { sessions: 0, started: 3 });
  demand(kept >= longest, 'A shorter session must leave longestMs as it was', kept);
}

// ---- Exercise 5: a call that ends with its session -------------------------------------------

const ADDRESS_TOOL = { name: 'show_address_objects' };
const ADDRESS_CALL = {
  type: 'config',
  action: 'show',
  xpath: "/config/devices/entry[@name='localhost.localdomain']/vsys/entry[@name='vsys1']/address",
};
const ADDRESS = { name: 'web', fqdn: 'web.example', tag: { member: 'dmz' } };
const ENTRY = '<entry name="web"><fqdn>web.example</fqdn><tag><member>dmz</member></tag></entry>';

/** A firewall that gives its `answer`; without one, it keeps its callers waiting. */
async function startChangingFirewall() {
  const state = { answer: '' };
  const firewall = await startFirewall((res) => {
    if (state.answer) res.end(state.answer);
  });
  return { state, ...firewall };
}

type Calls = Awaited<ReturnType<typeof startFirewall>>['calls'];

/** Begins a call that the firewall does not answer, ends it, and waits until the firewall knows. */
async function endsToo(
  calls: Calls,
  who: string,
  begin: () => Promise<unknown>,
  end: () => unknown,
) {
  const { length } = calls;
  begin().catch(ignore);
  await until(
    () => calls.length > length,
    () => 'A call must ask the firewall',
    WAIT,
  );
  await end();
  const isOver = () => calls[length]?.res.destroyed;
  await until(
    isOver,
    () => `${who}: its call to the firewall must end too. Seen: the call goes on.`,
    WAIT,
  );
}

async function checkAddresses(start: Start) {
  const { state, calls, env } = await startChangingFirewall();
  const client = await connectClient(await start(env));
  const call = (options = {}) => client.callTool(ADDRESS_TOOL, undefined, options);
  const { tools } = await client.listTools();
  const isThere = tools.some(
    ({ name, annotations }) => name === ADDRESS_TOOL.name && annotations?.readOnlyHint,
  );
  demand(isThere, 'There must be a tool show_address_objects with readOnlyHint: true', tools);
  for (const number of [2, 1, 0]) {
    const list = `<address>${ENTRY.repeat(number)}</address>`;
    state.answer = `<response status="success"><result>${list}</result></response>`;
    const wanted = { addresses: Array(number).fill(ADDRESS) };
    const result = await call().catch(orMissing('The tool must answer'));
    const asked = Object.fromEntries(new URLSearchParams(calls.at(-1)?.body));
    const isRight = isDeepStrictEqual(asked, ADDRESS_CALL);
    demand(isRight, 'The firewall must be asked as the README says', asked);
    demand(
      isDeepStrictEqual(result.structuredContent, wanted),
      `The result must be ${JSON.stringify(wanted)}`,
      result,
    );
  }
  state.answer = refusal('403', '<msg>No right</msg>');
  const refused = JSON.stringify(await call());
  demand(
    /No right.*"isError":true/.test(refused),
    'The firewall refuses: the client must get an error with its words',
    refused,
  );
  state.answer = '';
  const controller = new AbortController();
  await endsToo(
    calls,
    'A client cancels',
    () => call(controller),
    () => controller.abort(),
  );
  await endsToo(
    calls,
    'A client leaves',
    () => call(),
    () => client.close(),
  );
  const withoutFirewall = await connectClient(await start(START));
  await withoutFirewall.listTools(); // From now on the client checks results against the schema.
  const sample = JSON.stringify(await withoutFirewall.callTool(ADDRESS_TOOL));
  demand(
    /addresses\W+name.*sample data/i.test(sample),
    'Without a firewall, the tool must return a sample with its note',
    sample,
  );
}

// ---- Exercise 7: Streamable HTTP beside SSE --------------------------------------------------

const INFO_CALL = { name: 'show_system_info' };

async function checkMcp(start: Start) {
  const { state, calls, env } = await startChangingFirewall();
  const url = await start({ ...env, MCP_TOKEN: 'the-token' });
  const requestInit = { headers: WITH_TOKEN };

  async function connect() {
    const client = new Client({ name: 'client', version: '1.0.0' });
    cleanups.push(() => client.close());
    const transport = new StreamableHTTPClientTransport(new URL('/mcp', url), { requestInit });
    const missing =
      'Clients must be able to connect to /mcp, and each request have a server of its own';
    await client.connect(transport).catch(orMissing(missing));
    return client;
  }

  const first = await connect();
  const second = await connect();
  await endsToo(
    calls,
    'A client of /mcp leaves',
    () => first.callTool(INFO_CALL),
    async () => {
      state.answer = success('<model>PA-440</model>');
      const missing = 'While a call of another client goes on, a call on /mcp must be answered';
      const result = await second.callTool(INFO_CALL).catch(orMissing(missing));
      demand(JSON.stringify(result).includes('"model":"PA-440"'), missing, result);
      await first.close();
    },
  );
  await refusesOthers(url, ['POST /mcp', 'GET /sse', 'POST /messages']);
  const { post } = await openStream(url, '/sse', TOKEN_LINE);
  const { status } = await post(1, WITH_TOKEN);
  demand(status === 202, 'A POST to /messages must get 202 as before', status);
}

// ---- Exercise 3: repair lost sessions --------------------------------------------------------

/** A small change: a text that must be there once, and what replaces it. */
type Edit = [string, string];

function edit(source: string, edits: Edit[]) {
  return edits.reduce((text, [find, replacement]) => {
    const parts = text.split(find);
    demand(
      parts.length === 2,
      'Run `git checkout server.ts` first, because this must be in it once',
      find,
    );
    return parts.join(replacement);
  }, source);
}

const STORED = `    // Stored before connect() sends the id: the client may post as soon as it has read it.
    transports.set(sessionId, transport);
`;
const CONNECTED = 'await getServer().connect(transport);';

const LATE =
  '    setTimeout(() => transports.set(sessionId, transport), 500); // Looks the user up.\n';
const REMOVED = `    req.resume();
    req.on('close', () => transports.delete(sessionId));
`;
const SERVER = '  const mcpServer = getServer();\n';

/** The ordinary test that a fault breaks, and what the fault changes. */
const PLACED: Record<string, [string, ...Edit[]]> = {
  '3a': [
    'the SDK makes the id, and the first event carries it',
    ['const { sessionId } = transport;', 'const sessionId = crypto.randomUUID();'],
  ],
  '3b': ['a message that is posted as soon as the id is known is taken', [STORED, LATE]],
  '3c': ['a session stays open while its stream is open', [STORED, STORED + REMOVED]],
  '3d': [
    'two sessions do not see each other’s replies',
    ['  const running = new Set', `${SERVER}  const running = new Set`],
    [
      `// Each session has a server of its own, because an McpServer takes only one transport.
      ${CONNECTED}`,
      'await mcpServer.connect(transport);',
    ],
  ],
  '3e': [
    'a comment comes at each interval, until the session ends',
    ["res.write(': keep-alive\\n\\n')", "res.write('')"],
  ],
};

/** Puts a fault into server.ts, and says what two clients see. */
async function placeFault([, ...edits]: (typeof PLACED)[string], start: Start) {
  const source = await readFile('server.ts', 'utf8');
  for (const [, ...others] of Object.values(PLACED)) edit(source, others); // None may be in it.
  await writeFile('server.ts', edit(source, edits));
  const url = await start(START);
  for (const who of ['first', 'second']) {
    const called = connectClient(url).then((client) => client.callTool(INFO_CALL));
    console.log(`The ${who} client: ${await called.then(() => 'its call is answered', String)}`);
  }
  return 'server.ts has a fault now: repair it, and run `npm run exercise 3`.';
}

/** Runs the tests that a pattern names, and returns the name of the first that fails. */
async function findFailing(pattern: string, folder: string) {
  const options = `--import tsx --test-reporter=tap --test-name-pattern="${pattern}"`;
  const env = { ...process.env, PATIENCE_MS: '3000' };
  const tests = run(`node ${options} --test-force-exit server.test.ts`, { cwd: folder, env });
  return tests.then(ignore, ({ stdout }) => {
    return /^ +not ok \d+ - (.+)$/m.exec(stdout)?.[1] ?? 'none could be run';
  });
}

async function checkSessions(start: Start) {
  const url = await start(START);
  awaited = 'The suite Sessions and the doctor must come to an end';
  const name = await findFailing('^Sessions', '.');
  demand(!name, 'The suite Sessions must pass', `this test fails: ${name}`);
  const { findings } = await examine(`${url}/sse`, { watch: 1000, pause: 300 });
  demand(findings.length === 0, 'The doctor must find nothing', findings);
}

// ---- The command -----------------------------------------------------------------------------

const EXERCISES: Record<string, (start: Start) => Promise<void>> = {
  '3': checkSessions,
  '4': checkHealth,
  '5': checkAddresses,
  '7': checkMcp,
};

async function runExercise(name: string) {
  const start: Start = async (env) => {
    const server = await runServer(env);
    const fail = () =>
      demand(false, 'server.ts must not end', /^\w*Error.*/m.exec(server.text)?.[0]);
    void server.exit.then(fail);
    const [, url = ''] = await server.line(/GET (.*)\/sse,/).catch(orMissing('It must start'));
    awaited = 'server.ts must answer';
    return url;
  };
  const fault = PLACED[name];
  if (fault) return placeFault(fault, start);
  const check = EXERCISES[name];
  if (!check) {
    const readme = await readFile('README.md', 'utf8');
    const titles = readme.match(/(?<=^### Exercise )\d.*/gm) ?? [];
    return `${titles.join('\n')}\nnpm run exercise 4 checks exercise 4; 1, 2 and 6 need no check.`;
  }
  // A name without a use does not stop people in the middle of their work.
  const types = run('npm run --silent typecheck -- --noUnusedLocals false');
  await types.catch(({ stdout }) =>
    demand(false, 'The type check must pass', stdout.split('\n')[0]),
  );
  await check(start);
  return `✔ Exercise ${name} is done.`;
}

if (task === 'exercise') {
  const finish = (text: string, code: number) => {
    process.stdout.write(`${text}\n`, () => process.exit(code));
  };
  const fail = ({ message }: Error) => finish(`✘ ${message}`, 1);
  process.on('uncaughtException', fail);
  setTimeout(() => finish(`✘ ${awaited}. Seen: nothing in 15 s`, 1), 15_000);
  await runExercise(process.argv[3] ?? '').then((text) => finish(text, 0), fail);
}

// ---- The proofs ------------------------------------------------------------------------------

/** The changes that the README prints as the solution of an exercise. */
async function readSolution(number: string) {
  const readme = await readFile('README.md', 'utf8');
  const section = readme.split('\n### Exercise ')[Number(number)] ?? '';
  const hunks = section.matchAll(/^@@.*\n([^]*?)(?=^@@|^```)/gm);
  return [...hunks].map(([, hunk = '']): Edit => {
    const before = hunk.replace(/^\+.*\n/gm, '').replace(/^[ -]/gm, '');
    const after = hunk.replace(/^-.*\n/gm, '').replace(/^[ +]/gm, '');
    return [before, after];
  });
}

const FOREIGN = '      if (isForeign(req, allowedHosts)) {\n';
const HEALTHZ = "      if (path === '/healthz') return";

/** Wrong solutions that people hand in: the fault, what the check must say, and the change. */
const WRONG: Record<string, [RegExp, ...Edit[]][]> = {
  '4': [
    // Refused requests are counted.
    [
      /Requests were refused: .*"started":1/,
      [HEALTHZ, `      if (path === ssePath) health.started += 1;\n${HEALTHZ}`],
    ],
    // It is answered before the check of Host and Origin.
    [
      /GET \/healthz with a foreign Host must get 403. Seen: 200/,
      [
        FOREIGN,
        `      if (req.url === '/healthz') return reply(res, 200, JSON.stringify(health));\n${FOREIGN}`,
      ],
    ],
    // The last session and not the longest.
    [
      /shorter session must leave longestMs/,
      ['Math.max(health.longestMs, Date.now()', '(Date.now()'],
    ],
  ],
  '5': [
    // No signal.
    [
      /A client cancels: its call to the firewall must end too/,
      ['ask(call, signal)', 'ask(call, new AbortController().signal)'],
    ],
    // One entry is no list.
    [
      /The result must be \{"addresses":\[\{[^[]*\]\}/,
      ['[data.address.entry].flat()', 'data.address.entry'],
    ],
    // An error is swallowed.
    [
      /must get an error with its words/,
      ['ask(call, signal)', "ask(call, signal).catch(() => ({ address: '' }))"],
    ],
  ],
  '7': [
    // A shared McpServer.
    [
      /each request have a server of its own.*Error handling request/,
      ['  async function handleMcp', `${SERVER}  async function handleMcp`],
      [
        `${CONNECTED}\n    await transport`,
        'await mcpServer.connect(transport);\n    await transport',
      ],
    ],
    // Nothing ends with the request.
    [
      /leaves: its call to the firewall must end too/,
      ["    res.once('close', () => void transport.close());\n", ''],
    ],
  ],
};
const NOTHING = /must get 200, .*404|must be a tool|connect to \/mcp.*Not found/;

describe('The exercises', SUITE, () => {
  const folder = `.exercises-${process.pid}`;
  const source = readFileSync('server.ts', 'utf8');
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  before(() => void nodeTest.mock.method(console, 'log', ignore));

  /** Runs a server.ts in this process, because a child for each takes a minute in all. */
  async function load(text: string): Promise<Start> {
    const file = `${folder}/${randomUUID()}.ts`;
    await mkdir(folder, { recursive: true });
    await writeFile(file, `${text}\nexport { logHooks };\n`);
    const changed = await import(`./${file}`);
    return async (env) => {
      const firewall = changed.connectFirewall(env);
      const { url } = await startListening(
        changed.createMcpHttpServer({
          getServer: () => changed.getServer(firewall),
          hooks: changed.logHooks,
          token: env['MCP_TOKEN'],
        }),
      );
      return url;
    };
  }

  async function prove(number: string, says: RegExp, text: string) {
    const checking = EXERCISES[number]?.(await load(text));
    const outcome = await checking?.then(() => 'passed', String);
    assert.match(`${number}: ${outcome}`, says);
  }

  for (const [number, wrong] of Object.entries(WRONG)) {
    test(`exercise ${number} passes the printed solution, and refuses wrong ones`, async () => {
      const solved = edit(source, await readSolution(number));
      await prove(number, NOTHING, source);
      await prove(number, /passed/, solved);
      for (const [says, ...edits] of wrong) await prove(number, says, edit(solved, edits));
    });
  }

  for (const [name, [breaks, ...edits]] of Object.entries(PLACED)) {
    test(`fault ${name} breaks an ordinary test`, async () => {
      const place = `${folder}/${name}`;
      const whole = await readFile('server.test.ts', 'utf8');
      const [tests = ''] = whole.split('\n// ==== The exer'); // So that it cannot run itself.
      await mkdir(place, { recursive: true });
      await writeFile(`${place}/server.ts`, edit(source, edits));
      await writeFile(`${place}/server.test.ts`, tests);
      assert.equal(await findFailing(breaks, place), breaks);
    });
  }
});

// ==== README ==================================================================================

const fileText = (name: string) => readFileSync(join(import.meta.dirname, name), 'utf8');

describe('README', SUITE, () => {
  const page = fileText('README.md');
  const code = fileText('server.ts');
  const { scripts } = JSON.parse(fileText('package.json'));
  const block = (info: string) => {
    const [, rest = ''] = page.split(`\n\`\`\`${info}\n`);
    assert.ok(rest, `The page has no block of ${info}`);
    return rest.slice(0, rest.indexOf('```'));
  };
  const shownUrl = 'http://127.0.0.1:3000';

  /** Whether a text says what the page quotes from it, where `…` stands for anything. */
  function assertQuoted(quote: string, text: string) {
    const isThere = quote.split('…').every((part) => text.includes(part));
    assert.ok(isThere, `It does not say this: ${quote}`);
  }

  test('what it shows of server.ts is there, and the wrong code differs in one line', () => {
    assertQuoted(block('ts server.ts'), code);
    for (const [, call = ''] of block('mermaid').matchAll(/Server->>S\w+: (.*)/g)) {
      assertQuoted(call, code);
    }
    const wrong = block('ts wrong').match(/^.*;(?= \/\/)/gm) ?? [];
    const strange = wrong.filter((line) => !code.includes(line));
    assert.deepEqual(strange, ['const sessionId = randomUUID();']);
  });

  test('the start and the session by hand print what is shown', async () => {
    const run = await runServer(START);
    const [, url = ''] = await run.line(/^Try: curl -N (.*)\/sse$/m);
    assert.equal(run.text.replaceAll(url, shownUrl), block('text'));
    const stream = await openStream(url);
    const [session = ''] = page.split('\n## When it breaks');
    for (const [, body = '', shown] of session.matchAll(/^\$ post '(.*)'\n(.*)/gm)) {
      const answer = await post(stream.endpoint, JSON.parse(body));
      assert.equal(await answer.text(), shown);
    }
    await until(() => stream.text.includes('"id":2}'));
    stream.socket.destroy();
    await run.line(/ended after/);
    const late = await stream.post(3);
    for (const [line] of session.matchAll(/^(event|data): .*|Session \w{8} (start|end)[^`]+/gm)) {
      const quote = line.replace(/[\da-f]{8}(-[\da-f]+)*|\d+ ms/g, '…');
      assertQuoted(quote, stream.text + run.text);
    }
    assertQuoted(`The answer is \`${(await late.text()).trim()}\``, session);
  });

  test('the settings are those of server.ts, with their defaults', () => {
    const defaults: Record<string, unknown> = readSettings({});
    const inCode = [...code.matchAll(/^ {4}([A-Z_]+): (?:z|\w+Schema)\b/gm)];
    const inPage = [...page.matchAll(/^\| `([A-Z_]+)` \|(?: `(.*?)`)? \|/gm)];
    assert.deepEqual(
      inPage.map(([, name, value = '']) => `${name} ${value}`).sort(),
      inCode.map(([, name = '']) => `${name} ${defaults[name] ?? ''}`).sort(),
    );
    const names = page.matchAll(/\b([A-Z]+(?:_[A-Z]+)*)=/g);
    for (const [, name = ''] of names) assertQuoted(name, `${code} NO_PROXY SESSION`);
  });

  test('what server.ts says when something is wrong is listed as it says it', () => {
    const [, list = ''] = /\n## Settings\n[^]*?is wrong:\n([^]*?)\n\n/.exec(page) ?? [];
    const quotes = list.matchAll(/`([^`]+)`(?=: |, `)/g);
    for (const [, quote = ''] of quotes) assertQuoted(quote, code);
    const replies = code.matchAll(/reply\(res, \d+, .(\w+)/g);
    for (const [, word] of replies) assertQuoted(`\`${word}`, list);
  });

  test('nginx asks the processes that are started beside it', () => {
    const nginx = block('nginx');
    const processes = [...page.matchAll(/PORT=(\d+) MESSAGES_PATH=(\/\w+\/)/g)];
    assert.equal(processes.length, 2);
    for (const [, port, prefix] of processes) {
      assertQuoted(
        `server 127.0.0.1:${port} …location ${prefix} { proxy_pass http://127.0.0.1:${port};`,
        nginx,
      );
    }
  });

  test('the entry and the example of a client reach the server', async (t) => {
    const { firewall } = JSON.parse(block('json')).mcpServers;
    assert.deepEqual(firewall, { type: 'sse', url: `${shownUrl}/sse` });
    const file = `./node_modules/.client-${process.pid}.mts`;
    cleanups.push(() => rm(file));
    const { url } = await startServer({ getServer: () => getServer(), token: 's3cret' });
    await writeFile(file, block('ts client.ts').replace(shownUrl, url));
    const { mock } = t.mock.method(console, 'log', ignore);
    process.env['MCP_TOKEN'] = 's3cret';
    await import(file);
    delete process.env['MCP_TOKEN'];
    const { hostname } = mock.calls[0]?.arguments[0];
    assertQuoted(`structuredContent); // { hostname: '${hostname}',`, page);
  });

  test('its links and its commands lead somewhere', () => {
    const headings = page.toLowerCase().matchAll(/^#+ (.*)/gm);
    const anchors = [...headings].map(
      ([, title = '']) => `#${title.replace(/[^\w -]/g, '').replaceAll(' ', '-')}`,
    );
    for (const [, link = ''] of page.matchAll(/\]\((?!https:)([^)]+)\)/g)) {
      assert.ok(anchors.includes(link) || existsSync(join(import.meta.dirname, link)), link);
    }
    const commands = page.matchAll(/npm (?:run )?(?!install|uninstall|ci|run)(\w+)/g);
    for (const [command, name = ''] of commands) assert.ok(scripts[name], command);
  });

  const [, rows = ''] = /\n### It does not connect\n([^]*)\n### Your text/.exec(page) ?? [];

  test('each finding of the doctor stands in one row, which the doctor can read', () => {
    const found = [...rows.matchAll(/ \(`([a-z-]+)`\)<br>\*Yours/g)].map(([, name]) => name);
    assert.deepEqual(found.sort(), Object.keys(FAULTS).sort());
    for (const name of Object.keys(FAULTS)) assert.doesNotMatch(adviceOn(name), /undefined/);
  });

  test('a text of two rows says in all of them but one how to tell them apart', () => {
    const texts = rows.split('\n- ').flatMap((row) =>
      (row.split('<br>')[0] ?? '').split(/[,;] /).flatMap((part) => {
        const isTold = /\w/.test(part.replaceAll(/`[^`]*`|\bor\b/g, ''));
        return [...part.matchAll(/`([^`]+)`/g)].map(([, text = '']) => ({ text, row, isTold }));
      }),
    );
    for (const { text } of texts) {
      const bare = texts.filter((other) => other.text.includes(text) && !other.isTold);
      const rivals = new Set(bare.map(({ row }) => row));
      assert.ok(rivals.size < 2, `Two rows do not say when they apply: ${text}`);
    }
  });

  test('the texts of installed packages are what these packages say', () => {
    const sayings = {
      '@modelcontextprotocol/sdk/dist/esm/client/sse.js':
        'SSE error: …Endpoint origin does not match connection origin…Error POSTing to endpoint (HTTP ',
      '@modelcontextprotocol/sdk/dist/esm/client/streamableHttp.js':
        'Streamable HTTP error…Unexpected content type: ',
      '@modelcontextprotocol/sdk/dist/esm/examples/server/simpleSseServer.js':
        'Session not found…Missing sessionId parameter',
      '@modelcontextprotocol/sdk/dist/esm/examples/server/sseAndStreamableHttpCompatibleServer.js':
        'No transport found for sessionId',
      '@modelcontextprotocol/sdk/dist/esm/server/sse.js':
        'SSEServerTransport already started!…SSE connection not established',
      '@modelcontextprotocol/sdk/dist/esm/server/webStandardStreamableHttp.js':
        'Invalid Host header…Mcp-Session-Id',
      '@modelcontextprotocol/sdk/dist/esm/shared/protocol.js':
        'Already connected to a transport…Request timed out…Connection closed…Not connected',
      'eventsource/dist/index.js': 'Non-200 status code (…expected "text/event-stream"',
      'raw-body/index.js': 'stream is not readable',
      'undici/lib/core/errors.js': 'Body Timeout Error',
      'undici/lib/dispatcher/client-h1.js': 'other side closed',
      'undici/lib/web/fetch/index.js': 'fetch failed…terminated',
    };
    for (const [file, texts] of Object.entries(sayings)) {
      assertQuoted(texts, fileText(`node_modules/${file}`));
      assertQuoted(texts, rows);
    }
  });
});
