// SPDX-License-Identifier: MIT-0
/**
 * What server.ts promises, tried with real clients over real sockets.
 *
 * The suites are in the order of server.ts. Whoever replaces the tool replaces the suite
 * `The tool and its firewall`, which is the last one, and keeps the others as they are.
 *
 * Run one suite with
 * `node --test-force-exit --import tsx --test-name-pattern=Sessions server.test.ts`.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { after, describe, mock, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import * as subject from './server.ts';

const { createMcpHandler, readSettings } = subject;

/** The settings that every start needs. Add those that your own server cannot start without. */
const START = { PORT: '0' };

/** Most tests wait more than they work. One that hangs fails with its suite. */
const SUITE = { concurrency: true, timeout: 60_000 };

// ---- Helpers ---------------------------------------------------------------------------------

const cleanups: (() => unknown)[] = [];
after(async () => {
  for (const cleanup of cleanups.reverse()) await cleanup();
});

/** A text that grows, and can be waited for. */
class Transcript extends EventEmitter {
  text = '';

  add(more: string) {
    this.text += more;
    this.emit('more');
  }

  /** Waits until the text matches, for 20 seconds at the most. */
  async match(pattern: RegExp) {
    const signal = AbortSignal.timeout(20_000);
    for (;;) {
      const found = pattern.exec(this.text);
      if (found) return found;
      await once(this, 'more', { signal }).catch(() => {
        throw new Error(`This has no ${pattern}:\n${this.text}`);
      });
    }
  }
}

/** What the server logs as errors while the tests run. */
const errors = new Transcript();
mock.method(console, 'error', (...parts: unknown[]) => errors.add(`${parts.join(' ')}\n`));

async function listen(server: http.Server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  cleanups.push(() => server.close().closeAllConnections());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

function createTestServer() {
  return new McpServer({ name: 'test', version: '1.0.0' });
}

/** A server whose `connect()` waits for `last`, after it has sent the id. */
function connectingServer(last: () => Promise<unknown>) {
  const server = createTestServer();
  server.connect = async (transport) => {
    await McpServer.prototype.connect.call(server, transport);
    await last();
  };
  return server;
}

/** Serves the test server, and writes down when sessions start and end, and streams close. */
async function serve(options: Partial<subject.McpHandlerOptions> = {}) {
  const events = new Transcript();
  const hooks: subject.SessionHooks = {
    onSessionStart: ({ sessionId }) => events.add(`start ${sessionId}\n`),
    onSessionEnd: ({ sessionId }) => events.add(`end ${sessionId}\n`),
  };
  const handler = createMcpHandler({ getServer: createTestServer, hooks, ...options });
  const server = http.createServer((req, res) => {
    if (req.method === 'GET') res.on('close', () => events.add('closed\n'));
    handler.handleRequest(req, res);
  });
  return { ...handler, server, events, url: await listen(server) };
}

/** Sends a request, and returns the answer as soon as its head has come. */
async function send(method: string, url: string, headers = {}, body = '') {
  const req = http.request(url, { method, headers, agent: false }).end(body);
  cleanups.push(() => req.destroy());
  const [res] = (await once(req, 'response')) as [http.IncomingMessage];
  return res;
}

/** Posts a ping, and returns the status of the answer. */
async function post(url: string, headers = {}, id = 1) {
  const body = JSON.stringify({ jsonrpc: '2.0', id, method: 'ping' });
  const res = await send('POST', url, { 'content-type': 'application/json', ...headers }, body);
  return res.statusCode;
}

/** Opens a stream, and waits for the event that says where to POST. */
async function open(url: string, path = '/sse', headers = {}) {
  const res = await send('GET', url + path, headers);
  assert.equal(res.statusCode, 200);
  const stream = new Transcript();
  res.setEncoding('utf8').on('data', (chunk: string) => stream.add(chunk));
  res.on('error', () => undefined).on('end', () => stream.add('\n[ended]'));
  const [, endpoint = '', id = ''] = await stream.match(/^event: endpoint\ndata: (.*=(.*))\n\n/);
  const postHere = (number = 1) => post(url + endpoint, headers, number);
  /** Posts a ping, and waits for its reply. */
  const ping = async (number = 1) => {
    assert.equal(await postHere(number), 202);
    await stream.match(new RegExp(`^data: {"result":{},"jsonrpc":"2.0","id":${number}}$`, 'm'));
  };
  return { id, endpoint, res, stream, post: postHere, ping };
}

/** The SDK's own client. */
async function connectClient(url: string, headers = {}) {
  const client = new Client({ name: 'test', version: '1.0.0' });
  await client.connect(new SSEClientTransport(new URL('/sse', url), { requestInit: { headers } }));
  cleanups.push(() => client.close());
  return client;
}

// ---- Sessions --------------------------------------------------------------------------------

describe('Sessions', SUITE, () => {
  test('the SDK makes the id, and the first event on the stream carries it', async () => {
    const { url, events } = await serve();
    const { id, res, endpoint } = await open(url);
    await events.match(new RegExp(`^start ${id}\n`));
    assert.equal(endpoint, `/messages?sessionId=${id}`);
    assert.equal(res.headers['x-accel-buffering'], 'no');
  });

  test('a message that is posted as soon as the id is known is taken', async () => {
    const news = new Transcript();
    const { url } = await serve({ getServer: () => connectingServer(() => news.match(/posted/)) });
    const session = await open(url);
    assert.equal(await session.post(), 202);
    news.add('posted');
  });

  test('two sessions go on beside each other, and see only their own replies', async () => {
    const { url } = await serve();
    const [one, two] = [await open(url), await open(url)];
    await two.ping(2);
    await one.ping();
    await one.ping(3);
    assert.doesNotMatch(one.stream.text, /"id":2/);
  });

  test('comments come at each interval, and end with the stream, as the session does', async () => {
    const { url, server, events } = await serve({ keepAliveMs: 10 });
    const [[, response], session] = await Promise.all([once(server, 'request'), open(url)]);
    session.res.destroy();
    await events.match(/^start (.*)\nclosed\nend \1\n$/);
    const { mock: writes } = mock.method(response as http.ServerResponse, 'write');
    assert.equal(await session.post(), 404);
    const other = await open(url);
    await other.stream.match(/(\n: keep-alive\n){3}/);
    assert.equal(writes.callCount(), 0, 'comments after the end');
  });

  test('a session is gone at once if it ends in its start hook; its end hook waits', async () => {
    const news = new Transcript();
    const { url, events } = await serve({
      hooks: {
        onSessionStart: () => news.match(/go on/).then(() => events.add('start\n')),
        onSessionEnd: () => Promise.reject(new Error(`no end after ${events.text}`)),
      },
    });
    const session = await open(url);
    session.res.destroy();
    await events.match(/closed/);
    assert.equal(await session.post(), 404);
    news.add('go on');
    await errors.match(/^Error handling request: Error: no end after closed\nstart$/m);
  });

  test('a start hook that fails is logged; the session goes on, and has no end hook', async () => {
    const onSessionStart = () => Promise.reject(new Error('no start'));
    const onSessionEnd = () => events.add('end\n');
    const { url, events } = await serve({ hooks: { onSessionStart, onSessionEnd } });
    const session = await open(url);
    await errors.match(/^Error handling request: Error: no start$/m);
    await session.ping();
    session.res.destroy();
    await events.match(/closed/);
    assert.equal(await session.post(), 404);
    assert.equal(events.text, 'closed\n');
  });

  test('a client whose server cannot be made gets 500', async () => {
    const getServer = () => assert.fail('no server');
    const { url } = await serve({ getServer });
    const res = await send('GET', `${url}/sse`);
    assert.equal(res.statusCode, 500);
    assert.equal(await text(res), 'Error handling request\n');
    await errors.match(/^Error handling request: AssertionError.*: no server$/m);
  });

  test('a stream whose server cannot be connected ends', async () => {
    const getServer = () => connectingServer(() => Promise.reject(new Error('no connection')));
    const { url, events } = await serve({ getServer });
    const session = await open(url);
    await session.stream.match(/\[ended\]/);
    assert.equal(await session.post(), 404);
    assert.equal(events.text, 'closed\n');
  });

  test('a client that has left before its turn gets no session', async () => {
    const { url, server, events, handleRequest } = await serve();
    server.removeAllListeners('request');
    const client = http.get(`${url}/sse`).on('error', () => undefined);
    const [req, res] = await once(server, 'request');
    client.destroy();
    await once(res, 'close');
    handleRequest(req, res);
    await setImmediate();
    assert.equal(events.text, '');
  });

  test('closeSessions() ends a session, and its end hook is called', async () => {
    const { url, closeSessions, events } = await serve();
    const { stream } = await open(url);
    await closeSessions();
    await stream.match(/\[ended\]/);
    await events.match(/^end/m);
  });
});

// ---- Requests --------------------------------------------------------------------------------

describe('Requests', SUITE, () => {
  const notFound = 'Not found: use GET /sse or POST /messages\n';
  const refusals = [
    ['GET /nothing', 404, notFound],
    ['GET //', 404, notFound],
    ['POST /sse', 404, notFound],
    ['GET /messages', 404, notFound],
    ['POST /messages', 400, 'Missing sessionId parameter: post to the URL that /sse gives\n'],
    ['POST /messages?sessionId=%', 404, 'Session not found: reconnect to /sse\n'],
  ] as const;
  for (const [request, status, answer] of refusals) {
    test(`${request} gets ${status}`, async () => {
      const [method = '', path] = request.split(' ');
      const { url } = await serve();
      const res = await send(method, url + path);
      assert.equal(res.statusCode, status);
      assert.equal(res.headers['content-type'], 'text/plain');
      assert.equal(await text(res), answer);
    });
  }

  test('a trailing slash makes no difference, in a request or in an option', async () => {
    const { url } = await serve({ ssePath: '/mcp/sse/', messagesPath: '/mcp/messages/' });
    for (const path of ['/mcp/sse', '/mcp/sse/?a=b']) {
      const { endpoint } = await open(url, path);
      assert.equal(await post(url + endpoint.replace('?', '/?')), 202);
    }
  });

  const letIn = [
    'Host LOCALHOST:3000',
    'Host [::1]:3000',
    'Host mcp.example:3000',
    'Host [fd00::2]:3000',
    'Origin https://mcp.example',
  ];
  const refused = [
    'Host evil.example',
    'Host localhost.evil.example',
    'Host localhost:port',
    'Origin https://evil.example',
    'Origin null',
    'Origin file://',
  ];
  for (const header of [...letIn, ...refused]) {
    const isLetIn = letIn.includes(header);
    test(`${header} is ${isLetIn ? 'let in' : 'refused'}`, async () => {
      const { url } = await serve({ allowedHosts: ['MCP.example', 'fd00::2'] });
      const headers = Object.fromEntries([header.split(' ')]);
      const { statusCode } = await send('GET', `${url}/sse`, headers);
      const status = await post(`${url}/messages?sessionId=1`, headers);
      assert.deepEqual([statusCode, status], isLetIn ? [200, 404] : [403, 403]);
    });
  }

  test('with a token, each request must carry it', async () => {
    const { url } = await serve({ token: 's3cret' });
    for (const headers of [{}, { authorization: 's3cret' }]) {
      const res = await send('GET', `${url}/sse`, headers);
      assert.equal(res.headers['www-authenticate'], 'Bearer');
      assert.match(await text(res), /^Token missing or wrong: send .* Bearer <token>\n$/);
      assert.deepEqual([res.statusCode, await post(url, headers)], [401, 401]);
    }
    const client = await connectClient(url, { authorization: 'Bearer s3cret' });
    await client.ping();
  });
});

// ---- Start -----------------------------------------------------------------------------------

/** Starts a server.ts as `npm start` does, but in a folder of its own, and collects its output. */
function runServer(env: Record<string, string> = {}, envFile = '') {
  const cwd = mkdtempSync(join(tmpdir(), 'server-'));
  writeFileSync(join(cwd, '.env'), envFile);
  symlinkSync(import.meta.dirname, join(cwd, 'current'));
  // The child ends when this process does, even if that is killed: its standard input ends then.
  const guard = 'data:text/javascript,process.stdin.on("end",()=>process.exit()).resume().unref()';
  const options = ['--import', import.meta.resolve('tsx'), '--import', guard];
  const child = spawn(process.execPath, [...options, join(cwd, 'current/server.ts')], {
    cwd,
    env: { PATH: process.env.PATH, ...START, ...env },
  });
  cleanups.push(() => {
    child.kill('SIGKILL');
    rmSync(cwd, { recursive: true });
  });
  const output = new Transcript();
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => output.add(chunk));
  }
  child.on('close', (code) => output.add(`[ended with ${code}]`));
  /** The address that the server prints. */
  const address = async () => {
    const [, url = ''] = await output.match(/^MCP over HTTP\+SSE: (http:\S+)\/\w+ \(/m);
    return url;
  };
  return { child, output, address };
}

describe('Start', SUITE, () => {
  const mustBeHost = 'must be a name or address, no http:// or port';
  const faults = [
    ['PORT=secret', 'expected number'],
    ['HOST=127.0.0.1:3000', mustBeHost],
    ['ALLOWED_HOSTS=mcp.example, http://secret.example', mustBeHost],
    ['SSE_PATH=secret', 'must be a path such as /mcp/sse'],
    ['MESSAGES_PATH=/secret messages', 'must be a path such as /mcp/sse'],
    ['MCP_TOKEN=secret token', 'must be ASCII without spaces'],
  ] as const;
  for (const [setting, fault] of faults) {
    test(`${setting} is refused, with a reason that does not show it`, () => {
      const [name = '', value] = setting.split('=');
      const message = new RegExp(`^(?![^]*secret)[^]*${fault}.*\n.* at ${name}`);
      assert.throws(() => readSettings({ ...START, [name]: value }), { message });
    });
  }

  test('an address that others can reach needs a token', () => {
    const read = () => readSettings({ ...START, HOST: '0.0.0.0' });
    assert.throws(read, /HOST lets others in: set MCP_TOKEN/);
  });

  test('a setting that is unset or blank takes its default', () => {
    const { HOST, ALLOWED_HOSTS } = readSettings({ ...START, HOST: ' ' });
    assert.deepEqual([HOST, ALLOWED_HOSTS], ['127.0.0.1', []]);
  });

  test('it says where it listens and how to try it, and logs each session', async () => {
    const { output, address } = runServer();
    const url = await address();
    const [, tried] = await output.match(/\(token not required\)\nTry: curl -N (.*)\n/);
    assert.equal(tried, `${url}/sse`);
    const { id, res } = await open(url);
    const name = `Session ${id.slice(0, 8)}`;
    await output.match(new RegExp(`^${name} started from 127.0.0.1$`, 'm'));
    res.destroy();
    await output.match(new RegExp(`^${name} ended after \\d+ ms$`, 'm'));
  });

  test('.env is read, the environment wins, and neither token nor 0.0.0.0 is shown', async () => {
    const file = 'MCP_TOKEN=t0ken\nSSE_PATH=/file\nMESSAGES_PATH=/post\nALLOWED_HOSTS=a.example, b';
    const { output, address } = runServer({ HOST: '0.0.0.0', SSE_PATH: '/events' }, file);
    const url = await address();
    await output.match(/\(token required\)\nTry: curl -N -H "Authorization: Bearer <MCP_TOKEN>" h/);
    const headers = { host: 'b', authorization: 'Bearer t0ken' };
    const { endpoint } = await open(url, '/events', headers);
    assert.match(endpoint, /^\/post\?/);
    assert.doesNotMatch(output.text, /t0ken|0\.0\.0\.0/);
  });

  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    test(`${signal}, also twice, ends the sessions, then half-sent requests, then the process`, async () => {
      const { child, output, address } = runServer();
      const url = await address();
      const socket = net.connect(Number(new URL(url).port), '127.0.0.1');
      socket.on('error', () => undefined).write('GET /half-a-request');
      const { stream } = await open(url);
      await output.match(/ started /);
      child.kill(signal);
      await stream.match(/\[ended\]/);
      child.kill(signal);
      await output.match(/ ended after \d+ ms\n\[ended with 0\]$/);
    });
  }

  test('a port in use ends the start with one line', async () => {
    const { url } = await serve();
    const { output } = runServer({ PORT: new URL(url).port });
    await output.match(/^Cannot start: listen EADDRINUSE: .*\n\[ended with 1\]$/);
  });
});

// ---- The tool and its firewall ---------------------------------------------------------------

describe('The tool and its firewall', SUITE, () => {
  const { connectFirewall, getServer } = subject;
  const PANOS_API_KEY = 'LUFRPT1-secret+key/==';

  /** A stand-in for a firewall, the settings that lead to it, and the calls that it gets. */
  async function startFirewall(answer: (res: http.ServerResponse) => unknown) {
    const calls: { req: http.IncomingMessage; body: string }[] = [];
    const arrivals = new Transcript();
    const firewall = http.createServer(async (req, res) => {
      calls.push({ req, body: await text(req) });
      arrivals.add('call\n');
      answer(res);
    });
    return { calls, arrivals, env: { PANOS_HOSTNAME: await listen(firewall), PANOS_API_KEY } };
  }

  /** A client of the tool with these settings. */
  async function connectTool(env: Record<string, string>) {
    const firewall = connectFirewall(readSettings(env));
    const { url } = await serve({ getServer: () => getServer(firewall) });
    return connectClient(url);
  }

  /** Calls the tool, and returns its text, with `isError` before that of an error. */
  async function ask(client: Client, target?: string, options = {}) {
    const call = { name: 'show_system_info', arguments: { target } };
    const { content, isError } = await client.callTool(call, undefined, options);
    const [{ text: answer }] = content as [{ text: string }];
    return isError ? `isError: ${answer}` : answer;
  }

  const success = '<response status="success"><result> <system/></result></response>';

  test('without a firewall, sample data comes and says so', async () => {
    const client = await connectTool({});
    const answer = await ask(client);
    assert.match(answer, /^<response[^]*Sample data: to ask a real firewall, set PANOS_H/);
  });

  test('the firewall is asked as PAN-OS wants it, with the key in a header alone', async () => {
    const { calls, env } = await startFirewall((res) => res.end(success));
    const client = await connectTool(env);
    for (const target of [undefined, '', '007951000000013']) await ask(client, target);
    const form = { type: 'op', cmd: '<show><system><info></info></system></show>' };
    const forms = calls.map(({ body }) => Object.fromEntries(new URLSearchParams(body)));
    assert.deepEqual(forms, [form, form, { ...form, target: '007951000000013' }]);
    const { method, url, headers } = calls[0]!.req;
    const asked = [method, url, headers['content-type'], headers['x-pan-key']];
    const type = 'application/x-www-form-urlencoded';
    assert.deepEqual(asked, ['POST', '/api/', type, PANOS_API_KEY]);
  });

  test('a success comes as it was sent, whatever its quotes and blanks are', async () => {
    const replies = [
      success,
      `\n<?xml version="1.0" encoding='UTF-8'?>\n${success}\n`,
      success.replace('status="success"', "code = '19' status = 'success'"),
    ];
    const { calls, env } = await startFirewall((res) => res.end(replies[calls.length - 1]));
    const client = await connectTool(env);
    for (const reply of replies) assert.equal(await ask(client), reply);
  });

  const refusal = "<response status = 'error' code = '403'><msg>No</msg></response>";
  const cut = success.slice(0, -3);
  const failures = [
    ['a refusal', 403, refusal, `HTTP 403: ${refusal}`],
    ['a page', 503, `<p>\n${refusal}</p>`, `HTTP 503: <p> ${refusal}</p>`],
    ['a reply that repeats the key', 200, `key=${PANOS_API_KEY}`, 'HTTP 200: key=***'],
    ['a long reply', 200, '-'.repeat(501), `HTTP 200: ${'-'.repeat(490)}`],
    ['a success without its end', 200, cut, `HTTP 200: ${cut}`],
    ['more than 1 MiB', 200, '-'.repeat(1024 ** 2 + 1), 'Response content exceeded max size'],
  ] as const;
  for (const [what, status, reply, reason] of failures) {
    test(`${what} is told in one sentence with advice`, async () => {
      const { env } = await startFirewall((res) => res.writeHead(status).end(reply));
      const answer = await ask(await connectTool(env));
      const { host } = new URL(env.PANOS_HOSTNAME);
      const advice = 'check PANOS_HOSTNAME, PANOS_API_KEY and its rights, and the certificate';
      assert.equal(answer, `isError: Asking ${host} failed (${reason}): ${advice}.`);
    });
  }

  test('a firewall that is not there is an error that says so', async () => {
    const env = { PANOS_HOSTNAME: 'http://localhost:1', PANOS_API_KEY };
    const answer = await ask(await connectTool(env));
    assert.match(answer, /^isError: Asking localhost:1 failed \(.*ECONNREFUSED.*\): check/);
  });

  test('a call ends when the client cancels it, and with its session', async () => {
    const { arrivals, env } = await startFirewall((res) => {
      res.on('close', () => arrivals.add('end\n'));
    });
    const client = await connectTool(env);
    const controller = new AbortController();
    const cancelled = assert.rejects(ask(client, '', controller), /AbortError/);
    await arrivals.match(/call/);
    controller.abort();
    await arrivals.match(/call\nend/);
    const closed = assert.rejects(ask(client), /Connection closed/);
    await arrivals.match(/end\ncall/);
    await client.close();
    await arrivals.match(/end\ncall\nend/);
    await Promise.all([cancelled, closed]);
  });

  test('five calls at a time reach the firewall, and the others wait', async () => {
    const waiting: http.ServerResponse[] = [];
    const { calls, env } = await startFirewall((res) => {
      if (waiting.push(res) === 5) waiting.splice(0).forEach((each) => each.end(success));
    });
    const client = await connectTool(env);
    await Promise.all(Array.from({ length: 20 }, () => ask(client)));
    assert.equal(new Set(calls.map(({ req }) => req.socket)).size, 5);
  });

  test('the settings of the firewall are checked', () => {
    const read = (PANOS_HOSTNAME: string) => readSettings({ PANOS_HOSTNAME, PANOS_API_KEY });
    assert.equal(read('fw.example').PANOS_HOSTNAME, 'https://fw.example');
    assert.throws(
      () => read('ftp://fw.example'),
      /must be like fw.example .*\n.* at PANOS_HOSTNAME/,
    );
    assert.throws(() => read(''), /PANOS_HOSTNAME and PANOS_API_KEY need each other/);
  });
});
