// SPDX-License-Identifier: MIT-0
/**
 * What server.ts promises, tried over real sockets with real clients.
 *
 * The suites are in the order of server.ts. Whoever copies the file keeps what stands above the
 * `====` banner, and puts the settings that the new server cannot start without into `START`.
 *
 * `npm test` runs everything. `node --import tsx --test-name-pattern=Sessions server.test.ts` runs
 * one suite.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { mkdtemp, writeFile } from 'node:fs/promises';
import http from 'node:http';
import https from 'node:https';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as nodeTest from 'node:test';
import { after, before, describe, test } from 'node:test';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { request } from 'undici';
import {
  connectFirewall,
  createMcpHttpServer,
  getServer,
  readSettings,
  type McpHttpServerOptions,
  type Session,
} from './server.ts';

// ---- Helpers ---------------------------------------------------------------------------------

/** The settings that every start needs. Add those that your own `main()` cannot do without. */
const START = { PORT: '0' };

const ignore = () => undefined;

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
