// SPDX-License-Identifier: MIT
/**
 * What server.ts promises, each promise tried over real sockets: the SDK's own client (or a bare
 * socket for what no client would send), the real server, and a stand-in firewall on loopback.
 * Then the checks of the workshop's exercises, and at last the README, held against both.
 *
 * `npm test` runs all of it but the exercises; `npm run exercise 3` runs the check of exercise 3.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { copyFile, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import http from 'node:http';
import https from 'node:https';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type TestContext, test as nodeTest } from 'node:test';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import type { CallToolResult } from '@modelcontextprotocol/sdk/types.js';
import { createMcpHttpServer, readSettings, type Session, type SessionHooks } from './server.ts';

// `3` is the check of exercise 3; `3 and-server` adds the server's tests; `load 1000` is a load.
const [, , exercise, andServer] = process.argv;
const test = (name: string, run: (t: TestContext) => unknown) => {
  if (!exercise || andServer === 'and-server') void nodeTest(name, run as (t: TestContext) => Promise<void>);
};

// ---- Helpers ---------------------------------------------------------------------------------

const API_KEY = 'LUFRPT1-secret-key==';
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

/** Starts the server on a free port; `events` emits 'start' and 'end' with the session. */
async function startServer(t: TestContext, env: Record<string, string> = {}, hooks?: SessionHooks) {
  const events = new EventEmitter();
  const recordingHooks: SessionHooks = {
    onSessionStart: (session) => void events.emit('start', session),
    onSessionEnd: (session) => void events.emit('end', session),
  };
  const settings = readSettings(env);
  const server = createMcpHttpServer({ settings, hooks: hooks ?? recordingHooks });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  t.after(async () => {
    if (!server.listening) return;
    server.close().closeAllConnections();
    await once(server, 'close');
  });
  const { port } = server.address() as AddressInfo;
  return { server, port, url: `http://127.0.0.1:${port}`, events };
}

/** Connects the SDK's own client. */
async function connectClient(t: TestContext, url: string) {
  const client = new Client({ name: 'test', version: '1.0.0' });
  await client.connect(new SSEClientTransport(new URL('/sse', url)));
  t.after(() => client.close());
  return client;
}

/** Calls the tool; `text` is the first text of its result. */
async function callTool(client: Client, args = {}, signal?: AbortSignal) {
  const params = { name: 'show_system_info', arguments: args };
  const result = (await client.callTool(params, undefined, { signal })) as CallToolResult;
  const [first] = result.content;
  return { ...result, text: first?.type === 'text' ? first.text : '' };
}

/** Opens a stream with fetch; `next()` reads the next event or comment from it. */
async function openStream(t: TestContext, url: string, headers = {}) {
  const aborter = new AbortController();
  t.after(() => aborter.abort());
  const response = await fetch(`${url}/sse`, { headers, signal: aborter.signal });
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  async function next() {
    while (!text.includes('\n\n')) {
      const { value, done } = await reader.read();
      if (done) return undefined;
      text += value;
    }
    const [event = ''] = text.split('\n\n');
    text = text.slice(event.length + 2);
    return event;
  }
  const endpoint = (await next())!.replace('event: endpoint\ndata: ', '');
  const post = (body: unknown, init: RequestInit = {}) =>
    fetch(new URL(endpoint, url), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: typeof body === 'string' ? body : JSON.stringify(body),
      ...init,
    });
  return { response, endpoint, next, post, close: () => aborter.abort() };
}

/** Makes the timers of one length short; all others stay as they are. */
function shorten(t: TestContext, name: 'setTimeout' | 'setInterval', from: number, to: number) {
  const start = globalThis[name] as typeof setTimeout;
  t.mock.method(globalThis, name, (run: () => void, ms?: number, ...args: []) =>
    start(run, ms === from ? to : ms, ...args),
  );
}

const ping = (id: number) => ({ jsonrpc: '2.0', id, method: 'ping' });

/** Sends bytes as they are, and returns all that comes back until the server ends the connection. */
async function sendRaw(port: number, request: string) {
  const socket = net.connect(port, '127.0.0.1').setEncoding('latin1');
  socket.write(request, 'latin1');
  let answer = '';
  for await (const chunk of socket) answer += chunk;
  return answer;
}

/** A stand-in firewall that answers with `reply`; `requests` are those that it got. */
async function startFirewall(t: TestContext, reply: string | http.RequestListener, status = 200) {
  const requests: { req: http.IncomingMessage; body: string }[] = [];
  const events = new EventEmitter();
  const firewall = http.createServer(async (req, res) => {
    let body = '';
    for await (const chunk of req) body += chunk;
    requests.push({ req, body });
    events.emit('request', req, res);
    if (typeof reply === 'string') res.writeHead(status).end(reply);
    else reply(req, res);
  });
  await once(firewall.listen(0, '127.0.0.1'), 'listening');
  t.after(() => void firewall.close().closeAllConnections());
  const origin = `http://127.0.0.1:${(firewall.address() as AddressInfo).port}`;
  const env = { PANOS_HOSTNAME: origin, PANOS_API_KEY: API_KEY };
  return { firewall, requests, events, env };
}

/** The text of the tool's error when the firewall answers so. */
async function toolError(t: TestContext, reply: string | http.RequestListener, status = 200) {
  const { env } = await startFirewall(t, reply, status);
  const client = await connectClient(t, (await startServer(t, env)).url);
  const { isError, text } = await callTool(client);
  assert.equal(isError, true, text);
  assert.match(text, /^Asking 127\.0\.0\.1:\d+ failed \(.+\): .+\.$/s);
  assert.ok(!text.includes(API_KEY), text);
  return text;
}

const systemInfo = (fields: string) =>
  `<response status="success"><result><system>${fields}</system></result></response>`;

/** Copies the project into a folder of its own, to change it there. */
async function copyProject(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'server-'));
  t.after(() => rm(folder, { recursive: true }));
  const here = import.meta.dirname;
  for (const file of ['server.ts', 'server.test.ts', 'package.json']) {
    await copyFile(join(here, file), join(folder, file));
  }
  await symlink(join(here, 'node_modules'), join(folder, 'node_modules'), 'junction');
  return folder;
}

/** Runs server.ts as `npm start` does; `lines` are those that it prints. */
function runServer(
  t: TestContext,
  env: Record<string, string>,
  folder = import.meta.dirname,
  options: string[] = [],
) {
  // Node 22.18 and later run TypeScript by themselves.
  const loader = Reflect.get(process.features, 'typescript') ? [] : ['--import', 'tsx'];
  const child = spawn(process.execPath, [...options, ...loader, 'server.ts'], {
    cwd: folder,
    env: { PATH: process.env.PATH, ...env },
  });
  t.after(() => child.kill('SIGKILL'));
  const lines: string[] = [];
  const output = new EventEmitter();
  for (const stream of [child.stdout, child.stderr]) {
    createInterface(stream).on('line', (line) => {
      lines.push(line);
      output.emit('line');
    });
  }
  /** The first line that matches, or the one with this number, once it is there. */
  async function line(pattern: RegExp, number = 1) {
    let [read, found] = [0, 0];
    for (;;) {
      while (read < lines.length) if (pattern.test(lines[read++]!) && ++found === number) return lines[read - 1]!;
      await once(output, 'line');
    }
  }
  const exit = once(child, 'close').then(([code]) => code as number | null);
  return { child, lines, line, exit };
}

// ---- Starting, settings and stopping ---------------------------------------------------------

for (const signal of ['SIGTERM', 'SIGINT'] as const) {
  test(`npm start serves the sample, and ${signal} ends it with a stream open`, async (t) => {
    // Something else that still runs, as a slow hook would, does not hold the end up.
    const busy = ['--import', 'data:text/javascript,setInterval(() => {}, 1e6)'];
    const { child, lines, line, exit } = runServer(t, { PORT: '0' }, import.meta.dirname, busy);
    const url = /GET (http:\/\/127\.0\.0\.1:\d+)\/sse, POST \1\/messages$/.exec(await line(/GET/))![1]!;
    assert.match(await line(/^Firewall/), /sample data/);
    assert.equal(await line(/^Try/), `Try: curl -N ${url}/sse`);

    const client = await connectClient(t, url);
    assert.equal((await client.listTools()).tools[0]!.name, 'show_system_info');
    assert.equal((await callTool(client)).structuredContent?.hostname, 'sample-firewall');

    const stopped = performance.now();
    child.kill(signal);
    assert.equal(await exit, 0);
    assert.ok(performance.now() - stopped < 1000);
    const sessions = lines.filter((line) => line.startsWith('Session'));
    assert.match(sessions[0]!, /^Session [0-9a-f]{8} started from 127\.0\.0\.1$/);
    assert.match(sessions[1]!, /^Session [0-9a-f]{8} ended after \d+ ms$/);
    assert.equal(sessions.length, 2);
  });
}

test('a start that cannot be ends with one line and exit code 1', async (t) => {
  const { port } = await startServer(t);
  const inUse = runServer(t, { PORT: String(port) });
  const wrong = runServer(t, { PORT: '0', PANOS_HOSTNAME: 'fw.example.com' });
  assert.deepEqual([await inUse.exit, await wrong.exit], [1, 1]);
  assert.deepEqual([inUse.lines.length, wrong.lines.length], [1, 1]);
  assert.match(inUse.lines[0]!, new RegExp(`^Cannot start: .*address already in use.*:${port}$`));
  assert.match(wrong.lines[0]!, /^Cannot start: .*PANOS_API_KEY/);
});

test('a server that is closed closes its connections to the firewall', async (t) => {
  const { env, requests } = await startFirewall(t, systemInfo('<hostname>fw</hostname>'));
  const { server, url } = await startServer(t, env);
  await callTool(await connectClient(t, url));
  const { socket } = requests[0]!.req;
  const closed = performance.now();
  server.close().closeAllConnections();
  if (!socket.destroyed) await once(socket, 'close');
  assert.ok(performance.now() - closed < 2000); // undici alone would keep it for 4 s
});

test('the settings have their defaults, also where a variable is empty', () => {
  const defaults = {
    HOST: '127.0.0.1',
    PORT: 3000,
    SSE_PATH: '/sse',
    MESSAGES_PATH: '/messages',
    ALLOWED_HOSTS: [],
    PANOS_SKIP_VERIFY_CERTIFICATE: false,
  };
  assert.deepEqual(readSettings({}), defaults);
  assert.deepEqual(readSettings({ PORT: ' ', HOST: '', MCP_TOKEN: ' ', ALLOWED_HOSTS: '' }), defaults);
});

test('a wrong setting is named, and its value kept out of the message', () => {
  const wrong: [Record<string, string>, RegExp][] = [
    [{ PORT: 'http' }, /^PORT must be 0 to 65535$/],
    [{ PORT: '65536' }, /^PORT must be/],
    [{ PORT: '-1' }, /^PORT must be/],
    [{ PORT: '80.5' }, /^PORT must be/],
    [{ SSE_PATH: 'sse' }, /^SSE_PATH must be a path/],
    [{ MESSAGES_PATH: '//evil.example' }, /^MESSAGES_PATH must be a path/],
    [{ MESSAGES_PATH: '/messages?x=1' }, /^MESSAGES_PATH must be a path/],
    [{ MESSAGES_PATH: '/a/../b' }, /^MESSAGES_PATH must be a path/],
    [{ MESSAGES_PATH: '/sse' }, /^SSE_PATH and MESSAGES_PATH must differ/],
    [{ PORT: 'x', SSE_PATH: 'x' }, /^PORT must be .*,SSE_PATH must be /],
    [{ ALLOWED_HOSTS: 'a.example, http://b.example' }, /^ALLOWED_HOSTS must be host names/],
    [{ PANOS_HOSTNAME: 'fw.example.com' }, /PANOS_API_KEY/],
    [{ PANOS_API_KEY: API_KEY }, /PANOS_HOSTNAME/],
    [{ PANOS_HOSTNAME: 'fw/api', PANOS_API_KEY: API_KEY }, /^PANOS_HOSTNAME must be/],
    [{ PANOS_HOSTNAME: 'https://me:pw@fw', PANOS_API_KEY: API_KEY }, /^PANOS_HOSTNAME must be/],
    [{ PANOS_HOSTNAME: 'fw:99999', PANOS_API_KEY: API_KEY }, /^PANOS_HOSTNAME must be/],
    [{ PANOS_HOSTNAME: 'fw', PANOS_API_KEY: `${API_KEY}\n` }, /^PANOS_API_KEY must be/],
    [{ PANOS_SKIP_VERIFY_CERTIFICATE: 'maybe' }, /^PANOS_SKIP_VERIFY_CERTIFICATE must be/],
    [{ HOST: '0.0.0.0' }, /HOST .*MCP_TOKEN/],
    [{ HOST: '::' }, /HOST .*MCP_TOKEN/],
    [{ HOST: 'mcp.example.com' }, /HOST .*MCP_TOKEN/],
  ];
  for (const [env, message] of wrong) {
    assert.throws(() => readSettings(env), (error: Error) => {
      assert.match(error.message, message);
      assert.doesNotMatch(error.message, /\n|pw@|secret/);
      return true;
    });
  }
});

test('a right setting is taken', () => {
  for (const HOST of ['localhost', '127.0.0.2', '::1']) assert.equal(readSettings({ HOST }).HOST, HOST);
  assert.equal(readSettings({ HOST: '0.0.0.0', MCP_TOKEN: 't' }).HOST, '0.0.0.0');
  assert.deepEqual(readSettings({ ALLOWED_HOSTS: 'A.example:80, [fd00::1]' }).ALLOWED_HOSTS, [
    'a.example',
    '[fd00::1]',
  ]);
  const origins = { fw: 'https://fw', 'fw:8443': 'https://fw:8443', 'http://[::1]:8': 'http://[::1]:8' };
  for (const [PANOS_HOSTNAME, origin] of Object.entries(origins)) {
    assert.equal(readSettings({ PANOS_HOSTNAME, PANOS_API_KEY: API_KEY }).PANOS_HOSTNAME, origin);
  }
});

test('a .env file beside server.ts is read, and the environment goes before it', async (t) => {
  const folder = await copyProject(t);
  const env = `PORT=0\nSSE_PATH=/from/file\nMESSAGES_PATH=/ignored\nMCP_TOKEN=t0ken\n` +
    `PANOS_HOSTNAME=fw.example.com\nPANOS_API_KEY=${API_KEY}\nPANOS_SKIP_VERIFY_CERTIFICATE=true\n`;
  await writeFile(join(folder, '.env'), env);
  const { lines, line } = runServer(t, { MESSAGES_PATH: '/from/env' }, folder);
  await line(/^Try: curl -N -H "Authorization: Bearer <MCP_TOKEN>" http:.*\/from\/file$/);
  await line(/POST http:.*\/from\/env$/);
  await line(/^Firewall: https:\/\/fw\.example\.com$/);
  await line(/^Warning: certificates are not checked/);
  assert.doesNotMatch(lines.join('\n'), /t0ken|secret/);
});

// ---- Sessions --------------------------------------------------------------------------------

test('GET opens a stream whose first event is the path to post to, with the id the SDK made', async (t) => {
  const { url } = await startServer(t, { MESSAGES_PATH: '/prefix/messages' });
  const { response, endpoint } = await openStream(t, url);
  assert.equal(response.status, 200);
  assert.equal(response.headers.get('content-type'), 'text/event-stream');
  assert.equal(response.headers.get('x-accel-buffering'), 'no');
  const [path, sessionId] = endpoint.split('?sessionId=');
  assert.equal(path, '/prefix/messages');
  assert.match(sessionId!, UUID);
});

test('POST answers 202, and the reply comes on the stream', async (t) => {
  const { url } = await startServer(t);
  const { post, next } = await openStream(t, url);
  assert.equal((await post(ping(7))).status, 202);
  assert.equal(await next(), 'event: message\ndata: {"result":{},"jsonrpc":"2.0","id":7}');
});

test('a trailing slash changes nothing on either path', async (t) => {
  const { url } = await startServer(t);
  const { endpoint, next } = await openStream(t, url);
  const withSlash = await fetch(`${url}/sse/`);
  assert.equal(withSlash.headers.get('content-type'), 'text/event-stream');
  await withSlash.body!.cancel();
  const response = await fetch(url + endpoint.replace('?', '/?'), {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(ping(1)),
  });
  assert.equal(response.status, 202);
  assert.match((await next())!, /"id":1/);
});

test('a call needs no initialize and no Accept, and unknown mcp headers do no harm', async (t) => {
  const { url } = await startServer(t);
  const { post, next } = await openStream(t, url, { accept: 'text/html' });
  const call = { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'show_system_info' } };
  const headers = { 'content-type': 'application/json', accept: 'image/png', 'mcp-session-id': 'x', 'mcp-protocol-version': '1900-01-01' };
  assert.equal((await post(call, { headers })).status, 202);
  assert.match((await next())!, /sample-firewall/);
});

test('each session has a server of its own, and all share one JSON Schema validator', async (t) => {
  const connect = t.mock.method(McpServer.prototype, 'connect');
  const { url } = await startServer(t);
  const [one, two] = await Promise.all([openStream(t, url), openStream(t, url)]);
  const [first, second] = connect.mock.calls.map((call) => (call.this as McpServer).server);
  assert.notEqual(first, second);
  assert.ok(Reflect.get(first!, '_jsonSchemaValidator'));
  assert.equal(Reflect.get(first!, '_jsonSchemaValidator'), Reflect.get(second!, '_jsonSchemaValidator'));
  await Promise.all([one.post(ping(5)), two.post({ ...ping(5), method: 'tools/list' })]);
  assert.match((await one.next())!, /"result":\{\}/);
  assert.match((await two.next())!, /show_system_info/);
});

test('the hooks get the start once the stream is open, and the end once the client is gone', async (t) => {
  const { url, events } = await startServer(t);
  const started = once(events, 'start');
  const { endpoint, close } = await openStream(t, url);
  const [session] = (await started) as [Session];
  assert.ok(endpoint.endsWith(session.id));
  assert.equal(session.address, '127.0.0.1');
  assert.ok(Math.abs(Date.now() - session.startedAt.getTime()) < 5000);
  const ended = once(events, 'end');
  close();
  assert.equal((await ended)[0], session);
});

test('a session that this side closes ends once too, and is not found any more', async (t) => {
  const start = t.mock.method(SSEServerTransport.prototype, 'start');
  const { url, events } = await startServer(t);
  const ends = t.mock.fn();
  events.on('end', ends);
  const { post, next } = await openStream(t, url);
  const transport = start.mock.calls[0]!.this as SSEServerTransport;
  await transport.close(); // calls onclose itself, and the end of the response calls it again
  assert.equal(await next(), undefined);
  assert.equal((await post(ping(1))).status, 404);
  assert.equal(ends.mock.callCount(), 1);
});

test('a hook that throws or rejects is logged and harms no session', async (t) => {
  const error = t.mock.method(console, 'error', () => {});
  const ended = new EventEmitter();
  const { url } = await startServer(t, {}, {
    onSessionStart: () => {
      throw new Error('hook broke');
    },
    onSessionEnd: async () => {
      ended.emit('end');
      throw new Error('hook rejected');
    },
  });
  const { post, next, close } = await openStream(t, url);
  await post(ping(1));
  assert.match((await next())!, /"id":1/);
  const end = once(ended, 'end');
  close();
  await end;
  await openStream(t, url);
  const logged = error.mock.calls.map(({ arguments: [what, why] }) => `${what} ${why}`);
  assert.ok(logged.includes('onSessionStart failed: Error: hook broke'), logged.join());
  assert.ok(logged.includes('onSessionEnd failed: Error: hook rejected'), logged.join());
});

test('a stream that fails or ends while it opens leaves no session behind, and calls no hook', async (t) => {
  t.mock.method(console, 'error', () => {});
  const { url, events } = await startServer(t);
  const called = t.mock.fn();
  events.on('start', called).on('end', called);
  const { connect } = McpServer.prototype;
  const opening = t.mock.method(McpServer.prototype, 'connect');
  opening.mock.mockImplementation(async () => {
    throw new Error('connect broke');
  });
  assert.equal((await fetch(`${url}/sse`)).status, 500);
  opening.mock.mockImplementation(async function (this: McpServer, transport) {
    await connect.call(this, transport);
    await transport.close();
  });
  await (await fetch(`${url}/sse`)).text();
  for (const { arguments: [transport] } of opening.mock.calls) {
    const gone = await fetch(`${url}/messages?sessionId=${transport.sessionId}`, { method: 'POST' });
    assert.equal(gone.status, 404);
  }
  assert.equal(called.mock.callCount(), 0);
});

test('a client that is gone before its stream starts is never a session', async (t) => {
  const { server, port, events } = await startServer(t);
  const seen: string[] = [];
  events.on('start', () => seen.push('start')).on('end', () => seen.push('end'));
  server.prependOnceListener('request', (req) => req.socket.destroy());
  assert.equal(await sendRaw(port, 'GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n'), '');
  assert.deepEqual(seen, []);
  // A GET behind another one on the same connection can't start before that one's stream is over.
  const both = net.connect(port, '127.0.0.1');
  both.write('GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(2));
  await once(both, 'data');
  const ended = once(events, 'end');
  both.destroy();
  await ended;
  assert.deepEqual(seen, ['start', 'end']);
});

test('after kill -9 and a new start the client reconnects by itself, and its next call succeeds', async (t) => {
  const first = runServer(t, { PORT: '0' });
  const url = /http:\/\/[^/]+/.exec(await first.line(/^MCP/))![0];
  const client = await connectClient(t, url);
  shorten(t, 'setTimeout', 3000, 100); // the client waits so long before it reconnects
  const lost = new Promise((resolve) => (client.onerror = resolve));
  first.child.kill('SIGKILL');
  await Promise.all([lost, first.exit]);
  const second = runServer(t, { PORT: new URL(url).port });
  await second.line(/^Session \w+ started/);
  // The endpoint event is out, but the client may still have to read it.
  await eventually(() => client.ping().then(() => true, () => false), 'no ping after the restart');
  assert.equal((await callTool(client)).structuredContent?.hostname, 'sample-firewall');
});

test('a comment goes out on each stream every 15 s', async (t) => {
  shorten(t, 'setInterval', 15_000, 50);
  const { url } = await startServer(t);
  for (const { next } of [await openStream(t, url), await openStream(t, url)]) {
    for (const _ of [1, 2]) assert.equal(await next(), ': keep-alive');
  }
});

test('a reader that has let more than 1 MiB pile up is cut off at the next tick', async (t) => {
  shorten(t, 'setInterval', 15_000, 50);
  const { port, url, events } = await startServer(t);
  const reader = net.connect(port, '127.0.0.1').setEncoding('utf8');
  reader.write('GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n');
  const [session] = (await once(events, 'start')) as [Session];
  reader.pause(); // never reads: the kernel takes some megabytes, the rest stays with the server
  const call = { jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'x'.repeat(3_000_000) } };
  const ended = once(events, 'end');
  for (let status = 202; status === 202; ) {
    ({ status } = await fetch(`${url}/messages?sessionId=${session.id}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(call),
    }));
  }
  assert.equal((await ended)[0], session);
  reader.destroy();
});

// ---- Requests --------------------------------------------------------------------------------

test('a POST without a session is told what to do', async (t) => {
  const { url } = await startServer(t);
  const missing = await fetch(`${url}/messages`, { method: 'POST' });
  assert.equal(missing.status, 400);
  assert.match(await missing.text(), /^Missing sessionId parameter/);
  const { endpoint, post, close } = await openStream(t, url);
  close();
  for (const sessionId of ['nothing', '__proto__', endpoint.split('=')[1]]) {
    let response = await fetch(`${url}/messages?sessionId=${sessionId}`, { method: 'POST' });
    while (response.status !== 404) response = await post(ping(1)); // the end may still be on its way
    const text = await response.text();
    assert.match(text, /^Session not found: reconnect to \/sse/);
    assert.ok(!text.includes(sessionId!));
  }
});

test('a bad body gets 400, and the session goes on', async (t) => {
  const { url } = await startServer(t);
  const { post, next } = await openStream(t, url);
  const json = { 'content-type': 'application/json' };
  const bad: [string, Record<string, string>][] = [
    ['{', json],
    ['', json],
    ['{"jsonrpc":"1.0"}', json],
    ['[]', json],
    [JSON.stringify(ping(1)), { 'content-type': 'text/plain' }],
    [JSON.stringify(ping(1)), { 'content-type': 'application/json; charset=nonsense' }],
    [`"${'x'.repeat(4 * 1024 * 1024)}"`, json],
  ];
  for (const [body, headers] of bad) {
    assert.equal((await post(body, { headers })).status, 400, body.slice(0, 20));
  }
  await post(ping(2));
  assert.match((await next())!, /"id":2/);
});

test('another method gets 405 with the one that is allowed', async (t) => {
  const { url } = await startServer(t);
  for (const [path, allowed] of [['/sse', 'GET'], ['/messages', 'POST'], ['/sse/', 'GET']]) {
    for (const method of ['GET', 'POST', 'PUT', 'DELETE', 'OPTIONS', 'HEAD']) {
      if (method === allowed) continue;
      const response = await fetch(url + path, { method });
      assert.equal(response.status, 405, `${method} ${path}`);
      assert.equal(response.headers.get('allow'), allowed);
    }
  }
});

test('any other path gets 404 that names the two paths', async (t) => {
  const { url, port } = await startServer(t, { SSE_PATH: '/a/sse', MESSAGES_PATH: '/b/messages' });
  for (const path of ['/', '/sse', '/a/sse//', '/.well-known/oauth-authorization-server']) {
    const response = await fetch(url + path);
    assert.equal(response.status, 404, path);
    assert.match(await response.text(), /GET \/a\/sse .*POST \/b\/messages/);
  }
  for (const target of ['//', '//a/sse', '///', 'http://localhost/x', '*', '/%', '/?', '/\\']) {
    const answer = await sendRaw(port, `GET ${target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`);
    assert.match(answer, /^HTTP\/1\.1 404 /, target);
    assert.match(answer, /\/a\/sse/);
  }
});

test('a Host or Origin that is not allowed gets 403 on every path and method', async (t) => {
  const { port } = await startServer(t, { ALLOWED_HOSTS: 'mcp.example.com', MCP_TOKEN: 't0ken' });
  const status = async (method: string, path: string, headers: string) => {
    const answer = await sendRaw(port, `${method} ${path} HTTP/1.1\r\n${headers}Connection: close\r\n\r\n`);
    return Number(answer.split(' ')[1]);
  };
  const bad = [
    'evil.example', 'localhost.evil.example', '127.evil.example', 'example.com', '[', '[::1', ']', '',
    '127.0.0.1:99999', '127.0.0.1:3000/../', 'localhost/', 'me@localhost', 'localhost?', 'localhost#',
    'http://localhost', 'local host', 'localhost:x', '::1', '%6cocalhost', 'mcp.example.com.',
  ];
  for (const host of bad) {
    assert.equal(await status('GET', '/sse', `Host: ${host}\r\n`), 403, `GET ${host}`);
    assert.equal(await status('POST', '/messages', `Host: ${host}\r\n`), 403, `POST ${host}`);
    if (!host) continue;
    const origin = `Host: localhost\r\nOrigin: http://${host}\r\n`;
    assert.equal(await status('POST', '/messages', origin), 403, `Origin ${host}`);
  }
  for (const origin of ['null', 'https://evil.example', 'app://x', 'http://localhost/']) {
    assert.equal(await status('PUT', '/x', `Host: localhost\r\nOrigin: ${origin}\r\n`), 403, origin);
  }
  const good = ['localhost', 'LOCALHOST:1', '127.0.0.1:3000', '127.0.0.9', '[::1]:80', 'mcp.example.com:443'];
  for (const host of good) {
    const headers = `Host: ${host}\r\nOrigin: https://${host}\r\n`;
    assert.equal(await status('GET', '/sse', headers), 401, host); // the next check, not this one
  }
});

test('with MCP_TOKEN set, each request must bring it', async (t) => {
  const { url } = await startServer(t, { MCP_TOKEN: 't0ken' });
  for (const authorization of ['', 'Bearer', 'Bearer wrong', 'Bearer t0ken2', 't0ken', 'Basic t0ken']) {
    for (const [method, path] of [['GET', '/sse'], ['POST', '/messages?sessionId=x']] as const) {
      const response = await fetch(url + path, { method, headers: { authorization } });
      assert.equal(response.status, 401, authorization);
      assert.equal(response.headers.get('www-authenticate'), 'Bearer');
      assert.doesNotMatch(await response.text(), /t0ken/);
    }
  }
  const { post } = await openStream(t, url, { authorization: 'bearer t0ken' });
  const headers = { 'content-type': 'application/json', authorization: 'Bearer t0ken' };
  assert.equal((await post(ping(1), { headers })).status, 202);
});

test('a request that stalls gets 408, and an open stream is left alone', async (t) => {
  const { server, port, url } = await startServer(t);
  assert.ok(server.requestTimeout <= 39_000 && server.headersTimeout <= 39_000);
  const { post, next } = await openStream(t, url);
  server.requestTimeout = server.headersTimeout = 100;
  const head = 'POST /messages?sessionId=x HTTP/1.1\r\nHost: localhost\r\n';
  const body = (await openStream(t, url)).endpoint;
  const answers = await Promise.all([
    sendRaw(port, head),
    sendRaw(port, `POST ${body} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{`),
  ]);
  for (const answer of answers) assert.match(answer, /^HTTP\/1\.1 408 /);
  await post(ping(3));
  assert.match((await next())!, /"id":3/);
});

test('requests that are no HTTP or nearly none leave the server serving', async (t) => {
  const { server, port, url } = await startServer(t);
  const { endpoint, post, next } = await openStream(t, url);
  server.requestTimeout = server.headersTimeout = 100;
  const close = 'Connection: close\r\n\r\n';
  const bad = [
    '\r\n\r\n', 'nonsense\r\n\r\n', 'GET\r\n\r\n', `GET /sse HTTP/9.9\r\n${close}`, `GET /sse HTTP/1.1\r\n${close}`,
    `GET /sse HTTP/1.0\r\n${close}`, `POST ${endpoint} HTTP/1.1\r\nHost: [\r\n${close}`,
    `POST ${endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 6\r\n${close}`,
    `POST ${endpoint} HTTP/1.1\r\nHost: localhost\r\nExpect: nothing\r\n${close}`,
    `GET /sse?${'x'.repeat(20_000)} HTTP/1.1\r\nHost: localhost\r\n${close}`,
    `POST /messages?sessionId=%ff%00&sessionId=x HTTP/1.1\r\nHost: localhost\r\n${close}`,
    'CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n',
  ];
  for (const request of bad) {
    const answer = await sendRaw(port, request);
    assert.match(answer, /^(HTTP\/1\.1 4\d\d |$)/, request.slice(0, 60));
  }
  await post(ping(4));
  assert.match((await next())!, /"id":4/);
});

test('an error of the SDK while it handles a message is answered, not thrown', async (t) => {
  t.mock.method(console, 'error', () => {});
  const { url } = await startServer(t);
  const { post } = await openStream(t, url);
  t.mock.method(SSEServerTransport.prototype, 'handlePostMessage', async () => {
    throw new Error('a bug');
  });
  assert.equal((await post(ping(1))).status, 500);
});

// ---- The tool --------------------------------------------------------------------------------

test('the tool is described for models and for people', async (t) => {
  const client = await connectClient(t, (await startServer(t)).url);
  const [tool] = (await client.listTools()).tools;
  assert.equal(tool!.title, 'Show system info');
  assert.match(tool!.description!, /Palo Alto/);
  assert.deepEqual(tool!.annotations, { readOnlyHint: true, destructiveHint: false, openWorldHint: false });
  assert.match(JSON.stringify(tool!.inputSchema.properties!.target), /[Ss]erial number.*Panorama/);
  assert.deepEqual(Object.keys(tool!.outputSchema!.properties!).sort(), [
    'app-version', 'av-version', 'default-gateway', 'devicename', 'family', 'hostname', 'ip-address',
    'mac-address', 'model', 'netmask', 'operational-mode', 'platform-family', 'serial', 'sw-version',
    'time', 'uptime',
  ]);
});

test('without a firewall, a sample answers and says so', async (t) => {
  const client = await connectClient(t, (await startServer(t)).url);
  await client.listTools(); // from now on the client checks results against the output schema
  const { content, structuredContent, text } = await callTool(client);
  assert.deepEqual(JSON.parse(text), structuredContent);
  assert.match(JSON.stringify(content[1]), /[Ss]ample data.*PANOS_HOSTNAME.*PANOS_API_KEY/);
});

test('the firewall is asked as its documentation says, with the key in a header only', async (t) => {
  const { requests, env } = await startFirewall(t, systemInfo('<hostname>fw</hostname>'));
  const client = await connectClient(t, (await startServer(t, env)).url);
  await callTool(client);
  await callTool(client, { target: '007951000000013' });
  const [{ req, body }, through] = requests as [(typeof requests)[0], (typeof requests)[0]];
  assert.equal(`${req.method} ${req.url}`, 'POST /api/');
  assert.equal(req.headers['content-type'], 'application/x-www-form-urlencoded');
  assert.equal(req.headers['x-pan-key'], API_KEY);
  const cmd = '<show><system><info></info></system></show>';
  assert.deepEqual(Object.fromEntries(new URLSearchParams(body)), { type: 'op', cmd });
  assert.equal(new URLSearchParams(through.body).get('target'), '007951000000013');
});

test('every field comes back as the text that PAN-OS sent', async (t) => {
  const reply = systemInfo(`
    <hostname>caf&#233; &amp; &#x62;ar</hostname><serial>007951000000013</serial>
    <url-filtering-version>20231012.20140</url-filtering-version>
    <time>Tue Aug 15 18:02:11 2023\n</time><uptime>\n  0 days\n  </uptime>
    <ipv6-default-gateway/><app-release-date></app-release-date><ZTP>Disabled</ZTP><ZTP>Disabled</ZTP>
    <note><![CDATA[ <a> & b \n]]></note>
    <plugin_versions><entry name='dlp' version='1.0'><pkginfo>dlp-1.0.4</pkginfo></entry></plugin_versions>
  `);
  const { env } = await startFirewall(t, `\n<?xml version="1.0"?>\n${reply}`);
  const client = await connectClient(t, (await startServer(t, env)).url);
  await client.listTools();
  const { content, structuredContent, text } = await callTool(client);
  assert.deepEqual(structuredContent, {
    hostname: 'café & bar',
    serial: '007951000000013',
    'url-filtering-version': '20231012.20140',
    time: 'Tue Aug 15 18:02:11 2023',
    uptime: '0 days',
    'ipv6-default-gateway': '',
    'app-release-date': '',
    ZTP: ['Disabled', 'Disabled'],
    note: '<a> & b',
    plugin_versions: { entry: { name: 'dlp', version: '1.0', pkginfo: 'dlp-1.0.4' } },
  });
  assert.deepEqual(JSON.parse(text), structuredContent);
  assert.equal(content.length, 1);
});

test('entities that a reply declares itself are not expanded', async (t) => {
  const doctype = '<!DOCTYPE r [<!ENTITY a "boom"><!ENTITY b "&a;&a;&a;">]>';
  const text = await toolError(t, doctype + systemInfo('<hostname>&a;&b;</hostname>'));
  assert.doesNotMatch(text, /boom/);
});

const RIGHTS = /check PANOS_API_KEY/;
const TARGET = /check the target/;
const ADDRESS = /check PANOS_HOSTNAME/;
const refusals: [what: string, status: number, reply: string, says: RegExp, cure: RegExp][] = [
  ['a refused key', 403, `<response status = 'error' code = '403'><result><msg>Invalid Credential</msg></result></response>`, /403: Invalid Credential/, RIGHTS],
  ['a missing right', 200, '<response status="unauth" code="16"><msg><line>Unauthorized request</line></msg></response>', /unauth.*16: Unauthorized request/, RIGHTS],
  ['a refusal with no code but HTTP 403', 403, '<response status="error"><msg>No</msg></response>', /HTTP 403: No/, RIGHTS],
  ['an unknown target', 200, '<response status="error" code="13"><msg><line>0079 not connected</line></msg></response>', /13: 0079 not connected/, TARGET],
  ['an error in several lines', 200, '<response status="error" code="17"><msg><line><![CDATA[ a]]></line><line><![CDATA[b ]]></line></msg></response>', /17: +a b/, TARGET],
  ['an error in nested lines', 200, '<response status="error" code=""><msg><line><line>No such node</line></line></msg></response>', /HTTP 200: No such node/, TARGET],
  ['an error in the result', 200, '<response status="failed"><result><msg><line>Cannot</line></msg></result></response>', /failed.*: Cannot/, TARGET],
  ['a bad parameter', 400, `<response status = 'error' code = '400'><result><msg>Illegal parameter [x]</msg></result></response>`, /400: Illegal parameter \[x\]/, TARGET],
  ['an error that repeats the key', 400, `<response status="error" code="400"><msg>Key ${API_KEY}</msg></response>`, /Key \*\*\*/, TARGET],
  ['an HTML page', 503, '<html><body><h1>502 Bad Gateway</h1><hr></body></html>', /HTTP 503 without PAN-OS XML/, ADDRESS],
  ['a well-formed HTML page', 200, '<html><body/></html>', /HTTP 200 without PAN-OS XML/, ADDRESS],
  ['an empty reply', 500, '', /HTTP 500 without PAN-OS XML/, ADDRESS],
  ['a redirect', 302, '', /HTTP 302 without PAN-OS XML/, ADDRESS],
  ['a JSON reply', 200, '{"response":{"status":"success"}}', /HTTP 200 without PAN-OS XML/, ADDRESS],
  ['XML that ends too early', 200, '<response status="success"><result><system><host', /without PAN-OS XML/, ADDRESS],
  ['a reply over 1 MiB', 200, systemInfo(`<hostname>${'x'.repeat(1024 * 1024)}</hostname>`), /exceeded max size/, ADDRESS],
];
for (const [what, status, reply, says, cure] of refusals) {
  test(`${what} comes back as one sentence: what happened and what to do`, async (t) => {
    const text = await toolError(t, reply, status);
    assert.match(text, says);
    assert.match(text, cure);
  });
}

test('a success without system information is an error too', async (t) => {
  for (const reply of ['<response status="success"/>', '<response status="success"><result/></response>', systemInfo('')]) {
    const { env } = await startFirewall(t, reply);
    const client = await connectClient(t, (await startServer(t, env)).url);
    const { isError, text } = await callTool(client);
    assert.equal(isError, true);
    assert.match(text, /No system information.*check PANOS_HOSTNAME/);
  }
});

test('a reply that is cut off is an error, and the next call succeeds', async (t) => {
  let calls = 0;
  const { env } = await startFirewall(t, (_req, res) => {
    if (++calls > 2) return void res.end(systemInfo('<hostname>fw</hostname>'));
    if (calls === 2) return void res.socket!.destroy();
    res.writeHead(200, { 'content-length': 1000 }).write('<response');
    res.socket!.end();
  });
  const client = await connectClient(t, (await startServer(t, env)).url);
  for (const _ of [1, 2]) {
    const { isError, text } = await callTool(client);
    assert.equal(isError, true);
    assert.match(text, /closed|reset|hang up/i);
  }
  assert.equal((await callTool(client)).structuredContent?.hostname, 'fw');
});

test('a firewall that is not there, or has an unknown name, is an error', async (t) => {
  const { firewall, env } = await startFirewall(t, '');
  await new Promise((resolve) => firewall.close(resolve));
  for (const PANOS_HOSTNAME of [env.PANOS_HOSTNAME, 'firewall.invalid']) {
    const client = await connectClient(t, (await startServer(t, { ...env, PANOS_HOSTNAME })).url);
    const { isError, text } = await callTool(client);
    assert.equal(isError, true);
    assert.match(text, /(ECONNREFUSED|ENOTFOUND|EAI_AGAIN).*check PANOS_HOSTNAME/);
  }
});

// For 127.0.0.1, until 2126. It is worth nothing: no one trusts it.
const SELF_SIGNED = {
  key: `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgZADtxbXU09V28C+O
gILwPv8zdusSx48MlzpSDnMYwFmhRANCAAQI4ZKq7hKo4mJJ2phb3g42q7VniEEG
c8l3NDskLIc3f5PK23Hoin23hNs+2Krst1XWIRWbL1y51gszzxBMsnal
-----END PRIVATE KEY-----`,
  cert: `-----BEGIN CERTIFICATE-----
MIIBmDCCAT6gAwIBAgIUMVFf5TfmXkosIM0HcjhEIaRb9nswCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNZmlyZXdhbGwudGVzdDAgFw0yNjExMjIxNDUyMzBaGA8yMTI2
MTAyOTE0NTIzMFowGDEWMBQGA1UEAwwNZmlyZXdhbGwudGVzdDBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABAjhkqruEqjiYknamFveDjartWeIQQZzyXc0OyQshzd/
k8rbceiKfbeE2z7Yquy3VdYhFZsvXLnWCzPPEEyydqWjZDBiMB0GA1UdDgQWBBQ8
+A6J3og0e5OZg1JuDcEtg1UfSDAfBgNVHSMEGDAWgBQ8+A6J3og0e5OZg1JuDcEt
g1UfSDAPBgNVHRMBAf8EBTADAQH/MA8GA1UdEQQIMAaHBH8AAAEwCgYIKoZIzj0E
AwIDSAAwRQIgAeYNjyeJFgKfaMnnOMQwjamdTj50P/Oz5Jz9b2aZKhQCIQDHV057
/IYNaKimdnGTdF/fvyrOxCQ3OFB+/QTTlvDlDg==
-----END CERTIFICATE-----`,
};

test('a certificate that is not trusted is an error, until its check is switched off', async (t) => {
  const firewall = https.createServer(SELF_SIGNED, (_req, res) => res.end(systemInfo('<hostname>fw</hostname>')));
  await once(firewall.listen(0, '127.0.0.1'), 'listening');
  t.after(() => void firewall.close().closeAllConnections());
  const PANOS_HOSTNAME = `127.0.0.1:${(firewall.address() as AddressInfo).port}`;
  const env = { PANOS_HOSTNAME, PANOS_API_KEY: API_KEY };
  const { port } = firewall.address() as AddressInfo;
  /** Node reads NODE_EXTRA_CA_CERTS only as it starts: asks from a process of its own. */
  async function trusting(name: string) {
    const NODE_EXTRA_CA_CERTS = join(await copyProject(t), 'ca.pem');
    await writeFile(NODE_EXTRA_CA_CERTS, SELF_SIGNED.cert);
    const trust = { ...env, PORT: '0', PANOS_HOSTNAME: `${name}:${port}`, NODE_EXTRA_CA_CERTS };
    const [url = ''] = /http:\/\/[^/]+/.exec(await runServer(t, trust).line(/^MCP/))!;
    return (await callTool(await connectClient(t, url))).text;
  }
  const { text } = await callTool(await connectClient(t, (await startServer(t, env)).url));
  assert.match(text, /self-signed certificate.*NODE_EXTRA_CA_CERTS.*PANOS_SKIP_VERIFY_CERTIFICATE/);
  assert.match(await trusting('localhost'), /altnames.*set PANOS_HOSTNAME to a name that its certificate holds/);
  const skip = { ...env, PANOS_SKIP_VERIFY_CERTIFICATE: 'true' };
  const { structuredContent } = await callTool(await connectClient(t, (await startServer(t, skip)).url));
  assert.equal(structuredContent?.hostname, 'fw');
});

test('a firewall that does not answer, or drips, is given up after 30 s', async (t) => {
  shorten(t, 'setTimeout', 30_000, 300);
  for (const reply of ['', '<response']) {
    const { env, events } = await startFirewall(t, (_req, res) => void res.write(`${reply} `));
    const client = await connectClient(t, (await startServer(t, env)).url);
    const asked = once(events, 'request');
    const result = callTool(client);
    const [req] = (await asked) as [http.IncomingMessage];
    const gone = once(req.socket, 'close');
    const { isError, text } = await result;
    assert.equal(isError, true);
    assert.match(text, /no reply within 30 s.*check PANOS_HOSTNAME/);
    await gone;
  }
});

test('a call that waits for its turn is given up after 30 s too', async (t) => {
  // It accepts connections and never answers, so that no TLS connection is ever made.
  const silent = net.createServer().listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const sockets: net.Socket[] = [];
  silent.on('connection', (socket) => sockets.push(socket.on('error', () => {})));
  t.after(() => {
    silent.close();
    for (const socket of sockets) socket.destroy();
  });
  const PANOS_HOSTNAME = `127.0.0.1:${(silent.address() as AddressInfo).port}`;
  const { url } = await startServer(t, { PANOS_HOSTNAME, PANOS_API_KEY: API_KEY });
  const client = await connectClient(t, url);
  shorten(t, 'setTimeout', 30_000, 300);
  const results = Array.from({ length: 12 }, () => callTool(client));
  for (const { isError } of await Promise.all(results)) assert.equal(isError, true);
});

test('a call ends upstream when its client cancels it or goes away', async (t) => {
  const { env, events } = await startFirewall(t, () => {});
  const { url } = await startServer(t, env);
  for (const leave of ['cancel', 'disconnect']) {
    const client = await connectClient(t, url);
    const cancel = new AbortController();
    const asked = once(events, 'request');
    const result = callTool(client, {}, cancel.signal).catch(() => {});
    const [req] = (await asked) as [http.IncomingMessage];
    const gone = once(req.socket, 'close');
    if (leave === 'cancel') cancel.abort();
    else await client.close();
    await gone;
    await result;
  }
});

test('five calls at a time go to the firewall, and a cancelled one leaves the queue', async (t) => {
  const waiting: http.ServerResponse[] = [];
  const { env, events, requests } = await startFirewall(t, (_req, res) => void waiting.push(res));
  const client = await connectClient(t, (await startServer(t, env)).url);
  const cancel = new AbortController();
  const reached = async (count: number) => {
    while (requests.length < count) await once(events, 'request');
  };
  const firstFive = [1, 2, 3, 4, 5].map((target) => callTool(client, { target: `${target}` }));
  await reached(5);
  const cancelled = callTool(client, { target: 'cancelled' }, cancel.signal).catch(() => 'cancelled');
  const sixth = callTool(client, { target: '6' });
  await client.ping(); // both calls are on the server now
  cancel.abort();
  assert.equal(await cancelled, 'cancelled');
  await client.ping();
  assert.equal(requests.length, 5);
  const answer = systemInfo('<hostname>fw</hostname>');
  waiting.shift()!.end(answer);
  await reached(6);
  for (const res of waiting) res.end(answer);
  await Promise.all([...firstFive, sixth]);
  assert.equal(new URLSearchParams(requests[5]!.body).get('target'), '6');
  assert.equal(requests.length, 6);
});

test('an argument that is no serial number is refused with the reason', async (t) => {
  const { requests, env } = await startFirewall(t, '');
  const client = await connectClient(t, (await startServer(t, env)).url);
  for (const args of [{ target: 'a b' }, { target: '' }, { target: 5 }, { serial: '1' }]) {
    const { isError, text } = await callTool(client, args);
    assert.equal(isError, true);
    assert.match(text, /Invalid arguments for tool show_system_info/);
  }
  assert.equal(requests.length, 0);
});

// ---- Load and faults -------------------------------------------------------------------------

const wholeTest = exercise ? () => {} : test; // not again for each solution of an exercise

/** Opens a stream with little cost to the client; `call` posts a request and awaits its reply. */
async function openLean(url: string, agent: http.Agent) {
  const request = http.get(`${url}/sse`, { agent: false });
  const [stream] = (await once(request, 'response')) as [http.IncomingMessage];
  const events = new EventEmitter();
  let text = '';
  stream.setEncoding('utf8').on('data', (chunk) => {
    text += chunk;
    const parts = text.split('\n\n');
    text = parts.pop()!;
    for (const part of parts) events.emit(...(part.split('\ndata: ') as [string]));
  });
  const [endpoint] = (await once(events, 'event: endpoint')) as [string];
  async function call(method: string, params = {}) {
    const replied = once(events, 'event: message');
    const headers = { 'content-type': 'application/json' };
    const post = http.request(url + endpoint, { method: 'POST', agent, headers });
    post.end(JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }));
    const [response] = (await once(post, 'response')) as [http.IncomingMessage];
    response.resume();
    return JSON.parse((await replied)[0] as string).result;
  }
  return { call, close: () => request.destroy(), stream };
}

/** Opens so many sessions on a server of its own, calls the tool on each, and closes them all. */
async function runLoad(t: TestContext, count: number) {
  const { child, line, lines, exit } = runServer(t, { PORT: '0' });
  const url = /http:\/\/[^/]+/.exec(await line(/^Try/))![0];
  const used = async () => {
    const [status, stat] = await Promise.all(
      ['status', 'stat'].map((file) => readFile(`/proc/${child.pid}/${file}`, 'utf8').catch(() => '')),
    );
    const ticks = stat!.split(') ')[1]?.split(' ') ?? [];
    return { kb: Number(/VmRSS:\s+(\d+)/.exec(status!)?.[1]), ms: 10 * (Number(ticks[11]) + Number(ticks[12])) };
  };
  const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
  const clientInfo = { name: 'load', version: '1.0.0' };
  const params = { protocolVersion: '2024-11-05', capabilities: {}, clientInfo };
  const inTurn = async <T>(each: (i: number) => Promise<T>) => {
    const results: T[] = [];
    for (let i = 0; i < count; i += 50) {
      results.push(...(await Promise.all(Array.from({ length: Math.min(50, count - i) }, (_, j) => each(i + j)))));
    }
    return results;
  };
  const start = await used();
  const sessions = await inTurn(async () => {
    const session = await openLean(url, agent);
    await session.call('initialize', params);
    return session;
  });
  const open = await used();
  const answers = await inTurn((i) => sessions[i]!.call('tools/call', { name: 'show_system_info' }));
  const called = await used();
  for (const session of sessions) session.close();
  await line(/ended/, count);
  agent.destroy();
  child.kill('SIGTERM');
  const failed = answers.filter((result) => result?.structuredContent?.hostname !== 'sample-firewall').length;
  return {
    sessions: count,
    failed,
    'KB a session': Math.round((open.kb - start.kb) / count),
    'µs of processor a call': Math.round(((called.ms - open.ms) * 1000) / count),
    'exit code': await exit,
    'lines on stderr': lines.filter((line) => !/^(MCP|Firewall|Try|Session)/.test(line)).length,
  };
}

wholeTest('200 sessions open, call and close, and nothing fails', async (t) => {
  const { failed, 'exit code': code, 'lines on stderr': complaints } = await runLoad(t, 200);
  assert.deepEqual({ failed, code, complaints }, { failed: 0, code: 0, complaints: 0 });
});

wholeTest('10,000 random and malformed requests leave the server serving and the session alive', async (t) => {
  t.mock.method(console, 'error', () => assert.fail('an error was logged'));
  const { server, port, url, events } = await startServer(t);
  const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
  const session = await openLean(url, agent);
  let ends = 0;
  events.on('end', () => (ends += 1));
  let seed = 1;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0; // the same requests in each run
    return Math.floor((seed / 2 ** 32) * below);
  };
  const pick = <T>(list: T[]) => list[random(list.length)]!;
  const noise = () => String.fromCharCode(...Array.from({ length: random(30) }, () => random(256)));
  const statuses = new Set<number>();
  server.on('request', (_req, res) => res.on('finish', () => statuses.add(res.statusCode)));

  const raw = () =>
    `${pick(['GET', 'POST', 'PUT', 'G T', '', noise()])} ${pick(['/sse', '/messages', '//', '*', `/${noise()}`, noise()])}` +
    `${pick(['', '?sessionId=', '?sessionId=__proto__', `?${noise()}`])} ${pick(['HTTP/1.1', 'HTTP/1.0', 'HTTP/9', ''])}\r\n` +
    `Host: ${pick(['localhost', '127.0.0.1', '[', '', `${noise()}`])}\r\n` +
    `${pick(['', 'Content-Length: 5\r\n', 'Content-Length: x\r\n', 'Transfer-Encoding: chunked\r\n', `${noise()}\r\n`])}\r\n` +
    pick(['', '{}', noise(), '5\r\nhello\r\n0\r\n\r\n']);
  const sendNoise = async () => {
    const socket = net.connect(port, '127.0.0.1').on('error', () => {});
    socket.end(raw(), 'latin1').resume();
    await once(socket, 'close');
  };
  const value = (depth = 0): unknown =>
    pick<() => unknown>([
      () => null, () => random(9), () => noise(), () => true, () => -1e99,
      () => (depth > 3 ? 1 : Array.from({ length: random(4) }, () => value(depth + 1))),
      () => (depth > 3 ? 1 : Object.fromEntries(Array.from({ length: random(4) }, () => [
        pick(['jsonrpc', 'id', 'method', 'params', 'name', '__proto__', 'arguments', noise()]), value(depth + 1),
      ]))),
    ])();
  const method = () => pick(['initialize', 'ping', 'tools/call', 'tools/list', 'notifications/cancelled', noise()]);
  const body = () => pick([noise(), JSON.stringify(value()), JSON.stringify({ jsonrpc: '2.0', id: value(), method: method(), params: value() })]);
  const endpoint = await new Promise<string>((resolve) => {
    server.once('request', ({ url = '' }) => resolve(url));
    void session.call('ping');
  });
  const sendBody = async () => {
    const headers = { 'content-type': pick(['application/json', 'application/json', 'text/plain', '']) };
    const request = http.request(url + endpoint, { method: 'POST', agent, headers }).end(body(), 'latin1');
    const [response] = (await once(request, 'response')) as [http.IncomingMessage];
    await once(response.resume(), 'end');
  };
  for (let i = 0; i < 5000; i += 25) {
    await Promise.all(Array.from({ length: 25 }, () => [sendNoise(), sendBody()]).flat());
  }
  assert.deepEqual([...statuses].filter((status) => status >= 500), []);
  assert.ok(statuses.has(202) && statuses.has(400) && statuses.has(403) && statuses.has(404), [...statuses].join());
  assert.equal(session.stream.closed, false);
  await (await connectClient(t, url)).ping();
  session.close();
  agent.destroy();
});

// ---- The exercises ---------------------------------------------------------------------------

interface Workshop {
  port: number;
  seconds: number;
  /** Told where the server is; the tests of the README play the learner here. */
  learner: (url: string) => unknown;
}

/** Serves until the learner has done all the steps, and fails with those that are still missing. */
async function watchSteps(t: TestContext, steps: string[], workshop: Partial<Workshop>) {
  const { port = Number(process.env.PORT ?? 3000), seconds = 1800, learner } = workshop;
  const todo = new Set(steps);
  const events = new EventEmitter();
  const see = (step: string) => {
    if (todo.delete(step) && !learner) console.log(`  done: ${step}`);
    if (todo.size === 0) events.emit('done');
  };
  const server = createMcpHttpServer({
    hooks: {
      onSessionStart: (session) => void events.emit('start', session),
      onSessionEnd: (session) => void events.emit('end', session),
    },
  });
  await once(server.listen(port, '127.0.0.1'), 'listening');
  t.after(() => void server.close().closeAllConnections());
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  if (!learner) console.log(`Serving on ${url}/sse; to do:\n  ${steps.join('\n  ')}`);
  const done = once(events, 'done', { signal: AbortSignal.timeout(seconds * 1000) });
  const finished = done.catch(() => assert.fail(`Still missing: ${[...todo].join('; ')}`));
  return { server, events, see, finished, start: () => learner?.(url) };
}

/** Asks again until it is so, for things that take a moment. */
async function eventually(isSo: () => Promise<boolean>, message: string) {
  for (let tries = 0; tries < 200; tries++) if (await isSo()) return;
  assert.fail(message);
}

const exercises: Record<string, (t: TestContext, workshop?: Partial<Workshop>) => Promise<void>> = {
  async 1(t, workshop = {}) {
    const steps = ['open a stream', 'POST initialize', 'POST tools/call for the tool', 'end the stream'];
    const [open = '', initialize = '', call = '', end = ''] = steps;
    const { events, see, finished, start } = await watchSteps(t, steps, workshop);
    events.on('start', () => see(open)).on('end', () => see(end));
    const { handleMessage } = SSEServerTransport.prototype;
    t.mock.method(SSEServerTransport.prototype, 'handleMessage', function (
      this: SSEServerTransport,
      message: { method?: string },
    ) {
      if (message?.method === 'initialize') see(initialize);
      if (message?.method === 'tools/call') see(call);
      return handleMessage.call(this, message);
    });
    start();
    await finished;
  },

  async 2(t, workshop = {}) {
    const steps = [
      'POST to /messages without an id',
      'POST with an id that you made up',
      'POST to a path that is not there',
      'POST to a session whose stream has ended',
    ];
    const [noId = '', madeUp = '', noPath = '', ended = ''] = steps;
    const { server, events, see, finished, start } = await watchSteps(t, steps, workshop);
    const gone = new Set<string>();
    events.on('end', ({ id }: Session) => gone.add(id));
    server.on('request', ({ method, url = '' }, res) => {
      res.on('finish', () => {
        const sessionId = new URLSearchParams(url.split('?')[1]).get('sessionId');
        if (method !== 'POST') return;
        if (res.statusCode === 400 && !sessionId) see(noId);
        if (res.statusCode === 404 && !/^\/messages\/?(\?|$)/.test(url)) see(noPath);
        else if (res.statusCode === 404) see(gone.has(sessionId ?? '') ? ended : madeUp);
      });
    });
    start();
    await finished;
  },

  async 3(t) {
    const { line } = runServer(t, { PORT: '0' });
    const [url = ''] = /http:\/\/[^/]+/.exec(await line(/^MCP/))!;
    const count = async () => {
      const response = await fetch(`${url}/healthz`);
      const hint = 'answer it in handleRequest, before the 404';
      assert.equal(response.status, 200, `GET /healthz answers ${response.status}, not 200: ${hint}`);
      const { sessions } = JSON.parse(await response.text());
      return sessions;
    };
    assert.equal(await count(), 0, 'GET /healthz must say {"sessions":0} when no stream is open');
    const { close } = await openStream(t, url);
    await openStream(t, url);
    await eventually(async () => (await count()) === 2, 'Two open streams, but not {"sessions":2}: count up in onSessionStart');
    close();
    await eventually(async () => (await count()) === 1, 'One of two streams has ended, but not {"sessions":1}: count down in onSessionEnd');
  },

  async 4(t) {
    const name = 'show_address_objects';
    const list = async (env: Record<string, string>) => {
      const client = await connectClient(t, (await startServer(t, env)).url);
      const tool = (await client.listTools()).tools.find((tool) => tool.name === name);
      assert.ok(tool, `There is no tool ${name}: register it in getServer`);
      assert.ok(tool.annotations?.readOnlyHint, 'Its annotations must have readOnlyHint: true');
      const result = (await client.callTool({ name })) as CallToolResult;
      const addresses = result.structuredContent?.addresses as { name: string }[] | undefined;
      assert.ok(Array.isArray(addresses), `It must return {"addresses": […]}, not ${JSON.stringify(result)}`);
      return { addresses, result };
    };
    const sample = await list({});
    assert.ok(sample.addresses[0]?.name, 'Without a firewall, it must return a sample address with a name');
    assert.match(JSON.stringify(sample.result.content), /[Ss]ample data/, 'The sample must say that it is one');
    for (const names of [['web', 'mail'], ['web'], []]) {
      const entries = names.map((name) => `<entry name="${name}"><fqdn>${name}.example</fqdn></entry>`);
      const reply = `<response status="success"><result><address>${entries.join('')}</address></result></response>`;
      const { env, requests } = await startFirewall(t, reply);
      const { addresses } = await list(env);
      const asked = Object.fromEntries(new URLSearchParams(requests[0]!.body));
      assert.equal(asked.type, 'config', 'It must ask with type=config');
      assert.equal(asked.action, 'show', 'action=show is the running configuration, action=get the candidate');
      assert.match(asked.xpath ?? '', /\/address$/, 'Its xpath must end in /address');
      assert.deepEqual(addresses.map(({ name }) => name), names, `It must return ${names.length} of them as a list`);
    }
  },

  async 5(t) {
    let answer = () => {};
    const { env } = await startFirewall(t, (_req, res) => {
      answer = () => void res.end(systemInfo('<hostname>fw</hostname>'));
    });
    const client = await connectClient(t, (await startServer(t, env)).url);
    const seen: number[] = [];
    const enough = new EventEmitter();
    const onprogress = ({ progress }: { progress: number }) => {
      if (seen.push(progress) === 2) enough.emit('enough');
    };
    const result = client.callTool({ name: 'show_system_info' }, undefined, { onprogress });
    result.catch(() => {}); // if the check fails first, the client goes while it waits
    await once(enough, 'enough', { signal: AbortSignal.timeout(4000) }).catch(() =>
      assert.fail(`${seen.length} of 2 progress notifications came in 4 s of a slow call: send one each second`),
    );
    answer();
    assert.equal((await result).isError, undefined, 'The call must still succeed');
    assert.ok(seen[1]! > seen[0]!, 'Each notification must carry a higher progress than the one before');
  },

  async 6(t) {
    const { url, events } = await startServer(t);
    const client = new Client({ name: 'exercise', version: '1.0.0' });
    const transport = new StreamableHTTPClientTransport(new URL('/mcp', url));
    await client.connect(transport).catch((error) => {
      assert.fail(`A Streamable HTTP client can't connect to /mcp: ${error.message}`);
    });
    const { structuredContent } = (await client.callTool({ name: 'show_system_info' })) as CallToolResult;
    assert.equal(structuredContent?.hostname, 'sample-firewall', 'The tool must answer on /mcp as well');
    await client.close();
    const rebound = await fetch(`${url}/mcp`, { method: 'POST', headers: { origin: 'http://evil.example' } });
    assert.equal(rebound.status, 403, 'The check of Host and Origin must come before /mcp too');
    const started = once(events, 'start');
    await callTool(await connectClient(t, url));
    await started;
  },
};

if (exercise === 'load') {
  nodeTest('load', async (t) => console.log(await runLoad(t, Number(andServer ?? 1000))));
} else if (exercise) {
  nodeTest(`exercise ${exercise}`, async (t) => {
    const check = exercises[exercise];
    assert.ok(check, `There is no exercise ${exercise}, only ${Object.keys(exercises).join(', ')}`);
    await check(t).catch(({ message }: Error) => {
      throw Object.assign(new Error(), { stack: `Not yet: ${message}` });
    });
  });
}

// ---- The README ------------------------------------------------------------------------------

const readme = exercise ? '' : await readFile(join(import.meta.dirname, 'README.md'), 'utf8');
const source = await readFile(join(import.meta.dirname, 'server.ts'), 'utf8');
const readmeTest = exercise ? () => {} : test;

/** The text under a heading, up to the next one of the same level. */
function section(heading: string) {
  const [, text] = readme.split(new RegExp(`^${heading}\\n`, 'm'));
  assert.ok(text, `README has no heading ${heading}`);
  const [level = ''] = heading.split(' ');
  return text.split(new RegExp(`^${level} `, 'm'))[0]!;
}

/** The code blocks of a text, in their order. */
function blocks(text: string) {
  const found = text.matchAll(/^```(\w+)\n([^]*?)\n```$/gm);
  return [...found].map(([, language = '', code = '']) => ({ language, code }));
}

/** Ids, ports and the places where they make no difference. */
const mask = (text: string) =>
  text.replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, 'ID').replace(/127\.0\.0\.1:\d+/g, 'HOST').trim();

/** Makes of the source what a diff says; each hunk must fit in exactly one place. */
function applyDiff(text: string, diff: string) {
  for (const hunk of diff.split(/^@@.*@@.*\n/m).slice(1)) {
    const lines = hunk.replace(/\n$/, '').split('\n');
    const side = (sign: string) =>
      lines.filter((line) => !line.startsWith(sign)).map((line) => `${line.slice(1)}\n`).join('');
    const parts = text.split(side('+'));
    assert.equal(parts.length, 2, `This hunk fits in ${parts.length - 1} places:\n${hunk}`);
    text = parts.join(side('-'));
  }
  return text;
}

readmeTest('README: the walk shows lines of server.ts, word for word', () => {
  const excerpts = blocks(section('## A walk through `server.ts`'));
  assert.ok(excerpts.length >= 5);
  for (const { code } of excerpts) assert.ok(source.includes(`${code}\n`), `not in server.ts:\n${code}`);
});

readmeTest('README: the settings are those that server.ts reads, with their defaults', () => {
  const rows = [...section('## Settings').matchAll(/^\| `([A-Z_]+)` \| (?:`(.*?)`)? *\|/gm)];
  const documented = Object.fromEntries(rows.map(([, name, value = '']) => [name, value]));
  const [, schema = ''] = /const settingsSchema = z\.object\(\{\n([^]*?)\n\}\)/.exec(source)!;
  const names = [...schema.matchAll(/^  ([A-Z_]+): /gm)].map(([, name]) => name!);
  assert.equal(source.match(/process\.env/g)?.length, 1);
  const defaults: Record<string, unknown> = readSettings({});
  assert.deepEqual(documented, Object.fromEntries(names.map((name) => [name, String(defaults[name] ?? '')])));
});

readmeTest('README: each command exists', async () => {
  const { scripts } = JSON.parse(await readFile(join(import.meta.dirname, 'package.json'), 'utf8'));
  const commands = [...readme.matchAll(/npm (?:run )?(start|test|\w+ \d+)/g)].map(([, command]) => command!);
  assert.ok(commands.includes('start') && commands.includes('test'));
  for (const command of commands) {
    const [script = '', number] = command.split(' ');
    assert.ok(scripts[script], `npm run ${script}`);
    if (script === 'exercise') assert.ok(exercises[number!], `exercise ${number}`);
  }
});

readmeTest('README: the start prints what is shown', async (t) => {
  const [, output] = blocks(section('## What this is'));
  const { lines, line } = runServer(t, { PORT: '0' });
  await line(/^Try/);
  assert.equal(mask(lines.join('\n')), mask(output!.code));
});

readmeTest('README: the client runs as printed and prints what is shown', async (t) => {
  const { url } = await startServer(t);
  const [client, output] = blocks(section('## Connect a client'));
  const folder = await copyProject(t);
  await writeFile(join(folder, 'client.ts'), client!.code.replace('http://127.0.0.1:3000', url));
  const child = spawn(process.execPath, ['--import', 'tsx', 'client.ts'], { cwd: folder });
  let printed = '';
  for await (const chunk of child.stdout) printed += chunk;
  assert.equal(printed.trim(), output!.code);
  assert.equal(child.exitCode ?? (await once(child, 'close'))[0], 0);
});

readmeTest('README: the session by hand with curl goes as shown', async (t) => {
  if (process.platform === 'win32') return t.skip('needs a POSIX shell');
  const { url, events } = await startServer(t);
  /** A shell; `printed` waits until the last that it printed is this, but for ids and blank lines. */
  const openShell = (...args: string[]) => {
    const child = spawn('sh', args);
    t.after(() => child.kill('SIGKILL'));
    let output = '';
    child.stdout.on('data', (chunk) => void (output += chunk));
    const plain = (text: string) => mask(text.replace(/\n+/g, '\n'));
    async function printed(text: string) {
      while (!plain(output).endsWith(plain(text))) await once(child.stdout, 'data');
      return output;
    }
    return { child, printed, run: (line: string) => void ((output = ''), child.stdin.write(`${line}\n`)) };
  };
  const [open, posts, stream, last] = blocks(section('## By hand with curl'));
  const [command = '', ...event] = open!.code.slice(2).split('\n');
  const first = openShell('-c', `exec ${command.replace('http://127.0.0.1:3000', url)}`);
  const [endpoint = ''] = /\/messages.*/.exec(await first.printed(event.join('\n')))!;

  const second = openShell();
  const runAll = async (code: string) => {
    for (const step of code.split(/^\$ /m).slice(1)) {
      const [command = '', ...output] = step.split('\n');
      second.run(command.replace(/http:.*sessionId=[-\w]+/, url + endpoint));
      await second.printed(output.join('\n'));
    }
  };
  await runAll(posts!.code);
  await first.printed(stream!.code);
  const ended = once(events, 'end');
  first.child.kill('SIGINT'); // Ctrl-C
  await ended;
  await runAll(last!.code);
});

readmeTest('README: the checks of exercises 1 and 2 wait for each step and see it', async (t) => {
  const steps: Record<string, RegExp> = { 1: /open a stream; .*initialize; .*end the stream/, 2: /without an id; .*made up; .*not there; .*ended/ };
  for (const [number, missing] of Object.entries(steps)) {
    await assert.rejects(exercises[number]!(t, { port: 0, seconds: 0.1, learner: () => {} }), (error: Error) => {
      assert.match(error.message, missing);
      return true;
    });
    const learner = async (url: string) => {
      const { post, next, close } = await openStream(t, url);
      const params = { protocolVersion: '2024-11-05', capabilities: {}, clientInfo: { name: 'x', version: '1' } };
      await post({ jsonrpc: '2.0', id: 1, method: 'initialize', params });
      await post({ jsonrpc: '2.0', id: 2, method: 'tools/call', params: { name: 'show_system_info' } });
      await next();
      for (const path of ['/messages', '/messages?sessionId=mine', '/message']) await fetch(url + path, { method: 'POST' });
      close();
      await eventually(async () => (await post(ping(3))).status === 404, 'the session must end');
    };
    await exercises[number]!(t, { port: 0, seconds: 10, learner });
  }
});

readmeTest('README: each check fails at first, and its solution passes it and all other tests', async (t) => {
  const coding = ['3', '4', '5', '6'];
  const missing = [/healthz answers 404/, /no tool show_address_objects/, /0 of 2 progress/, /can't connect to \/mcp/];
  const unsolved = coding.map((number, i) => assert.rejects(exercises[number]!(t), missing[i]!));
  const { scripts } = JSON.parse(await readFile(join(import.meta.dirname, 'package.json'), 'utf8'));
  const folders = await Promise.all(coding.map(async (number) => {
    const [diff] = blocks(section(`### Exercise ${number}.*`));
    const folder = await copyProject(t);
    await writeFile(join(folder, 'server.ts'), applyDiff(source, diff!.code));
    const changed = diff!.code.match(/^[-+]/gm)!.length;
    assert.ok(changed >= 5 && changed <= 40, `exercise ${number} changes ${changed} lines`);
    return folder;
  }));
  const run = async (command: string, args: string[], cwd: string) => {
    const child = spawn(command, args, { cwd, env: { ...process.env, NODE_TEST_CONTEXT: undefined } });
    let output = '';
    for await (const chunk of child.stdout) output += chunk;
    return { output, code: child.exitCode ?? (await once(child, 'close'))[0] };
  };
  const tsc = scripts.typecheck.replace(/^tsc|server\S*\.ts/g, '').trim().split(/ +/);
  const files = folders.map((folder) => join(folder, 'server.ts'));
  const types = run(process.execPath, [join(import.meta.dirname, 'node_modules/typescript/bin/tsc'), ...tsc, ...files], import.meta.dirname);
  const tests = folders.map((folder, i) =>
    run(process.execPath, ['--import', 'tsx', '--test-reporter=spec', 'server.test.ts', coding[i]!, 'and-server'], folder));
  await Promise.all(unsolved);
  const { output, code } = await types;
  assert.equal(code, 0, output);
  for (const { output, code } of await Promise.all(tests)) assert.equal(code, 0, output);
});
