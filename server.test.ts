// SPDX-License-Identifier: MIT
/**
 * What server.ts promises, each promise tried over real sockets: the real server, with the SDK's
 * own client, or with a bare socket for what no client would send.
 *
 * The suites are in the order of server.ts: sessions, requests, start and settings. Whoever copies
 * the file keeps these and writes tests of a tool of their own. What follows them can go, from the
 * banner of the tool on: the tool and its firewall, the exercises, the README.
 *
 * `npm test` runs everything, `npm test -- --test-name-pattern=Sessions` one suite.
 */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { copyFile, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, test as nodeTest, type TestContext, type TestOptions } from 'node:test';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import { createParser } from 'eventsource-parser';
import * as z from 'zod';
import { createMcpHttpServer, type McpHttpServerOptions, readSettings, type Session } from './server.ts';

// ---- Helpers ---------------------------------------------------------------------------------

/** The settings that every start needs. Add those that your own `main()` can't do without. */
const START = { PORT: '0' };

/** What is to be done instead of the tests, if an argument says so: an exercise, or a load. */
const [, , task] = process.argv;

/** Each test has a limit of its own, wide enough for a busy machine. */
function test(name: string, run: (t: TestContext) => unknown, options: TestOptions = {}) {
  void nodeTest(name, { timeout: 60_000, ...options }, async (t) => {
    await run(t);
  });
}

/** A server with tools for the tests: `echo` answers, and `wait` waits until it is told to end. */
function createTestServer(events: EventEmitter) {
  const server = new McpServer({ name: 'test', version: '1.0.0' });
  server.registerTool('echo', { inputSchema: { text: z.string() } }, ({ text }) => {
    events.emit('echo', text);
    return { content: [{ type: 'text', text }] };
  });
  server.registerTool('wait', {}, async ({ signal }) => {
    events.emit('wait');
    await once(signal, 'abort');
    events.emit('aborted');
    return { content: [] };
  });
  return server;
}

/** Starts a server on a free port. `events` tells `start` and `end` of sessions, and tool calls. */
async function startServer(t: TestContext, options: Partial<McpHttpServerOptions> = {}) {
  const events = new EventEmitter();
  const hooks = {
    onSessionStart: (session: Session) => void events.emit('start', session),
    onSessionEnd: (session: Session) => void events.emit('end', session),
  };
  const getServer = () => createTestServer(events);
  const { server, shutdown } = createMcpHttpServer({ getServer, hooks, ...options });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(shutdown);
  const { port } = server.address() as AddressInfo;
  return { server, shutdown, port, url: `http://127.0.0.1:${port}`, events };
}

/** Connects the SDK's own client. */
async function connectClient(t: TestContext, url: string) {
  const client = new Client({ name: 'test', version: '1.0.0' });
  await client.connect(new SSEClientTransport(new URL('/sse', url)));
  t.after(() => client.close());
  return client;
}

/** Opens a stream as no client library would show it: `next()` is the next event or comment. */
async function openStream(t: TestContext, url: string, headers = {}, path = '/sse') {
  const aborter = new AbortController();
  t.after(() => aborter.abort());
  const response = await fetch(url + path, { headers, signal: aborter.signal });
  const events = readEvents(response);
  const next = async () => (await events.next()).value;
  const endpoint = (await next())?.data ?? '';
  const sessionId = endpoint.split('=')[1] ?? '';
  function post(body: unknown, init: RequestInit = {}) {
    const text = typeof body === 'string' ? body : JSON.stringify(body);
    const json = { 'content-type': 'application/json' };
    return fetch(url + endpoint, { method: 'POST', headers: json, body: text, ...init });
  }
  return { response, endpoint, sessionId, next, post, close: () => aborter.abort() };
}

/** Reads the events and the comments of a stream; ends when the stream ends. */
async function* readEvents(response: Response) {
  const found: { event?: string; data?: string; comment?: string }[] = [];
  const parser = createParser({
    onEvent: ({ event = '', data }) => found.push({ event, data }),
    onComment: (comment) => found.push({ comment: comment.trim() }),
  });
  const decoder = new TextDecoder();
  for await (const chunk of response.body ?? []) {
    parser.feed(decoder.decode(chunk, { stream: true }));
    yield* found.splice(0);
  }
}

/** A request that asks for a reply and for nothing else. */
const ping = (id: number | string) => ({ jsonrpc: '2.0', id, method: 'ping' });

const callTool = (id: number, name: string, args = {}) => {
  return { jsonrpc: '2.0', id, method: 'tools/call', params: { name, arguments: args } };
};

/** The reply that the server sends to a request with this id. */
const replyTo = (id: number) => ({ event: 'message', data: `{"result":{},"jsonrpc":"2.0","id":${id}}` });

/** Sends bytes as they are, and returns what comes back until the server ends the connection. */
async function sendRaw(port: number, request: string) {
  const socket = net.connect(port, '127.0.0.1').setEncoding('latin1');
  socket.write(request, 'latin1');
  let answer = '';
  for await (const chunk of socket) answer += chunk;
  return answer;
}

/** Makes the timers of one length short; all others stay as they are. */
function shorten(t: TestContext, name: 'setTimeout' | 'setInterval', from: number, to: number) {
  const start = globalThis[name] as typeof setTimeout;
  t.mock.method(globalThis, name, (run: () => void, ms?: number, ...args: []) => {
    return start(run, ms === from ? to : ms, ...args);
  });
}

/** Copies the project into a folder of its own, with changes to server.ts. */
async function copyProject(t: TestContext, changes: Record<string, string> = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'server-'));
  t.after(() => rm(folder, { recursive: true }));
  const here = import.meta.dirname;
  let source = await readFile(join(here, 'server.ts'), 'utf8');
  for (const [from, to] of Object.entries(changes)) {
    assert.equal(source.split(from).length, 2, `server.ts has to hold this once: ${from}`);
    source = source.replace(from, () => to);
  }
  await writeFile(join(folder, 'server.ts'), source);
  await copyFile(join(here, 'package.json'), join(folder, 'package.json'));
  await symlink(join(here, 'node_modules'), join(folder, 'node_modules'), 'junction');
  return folder;
}

/** Ends a child when this process ends, even if it is killed: the child's input ends then. */
const END_WITH_PARENT =
  'data:text/javascript,process.stdin.on("end",()=>process.exit()).resume().unref()';

/** Runs Node on a file as `npm start` does; `line()` waits for a line that it prints. */
function runNode(t: TestContext, args: string[], env: Record<string, string>, folder: string) {
  const options = ['--import', END_WITH_PARENT, '--import', import.meta.resolve('tsx')];
  const child = spawn(process.execPath, [...options, ...args], {
    cwd: folder,
    env: { PATH: process.env['PATH'], ...env },
  });
  t.after(() => child.kill('SIGKILL'));
  const lines: string[] = [];
  const output = new EventEmitter();
  for (const stream of [child.stdout, child.stderr]) {
    createInterface(stream).on('line', (line) => {
      lines.push(line);
      output.emit('change');
    });
  }
  const exit = once(child, 'close').then(([code, signal]) => {
    output.emit('change');
    return (code ?? signal) as number | string;
  });
  /** The nth line that matches, once it is there; fails if the process ends without it. */
  async function line(pattern: RegExp, nth = 1) {
    for (;;) {
      const found = lines.filter((line) => pattern.test(line))[nth - 1];
      if (found !== undefined) return found;
      const printed = lines.join('\n');
      assert.ok(child.exitCode === null && child.signalCode === null, `it ended without a line ${pattern}, having printed:\n${printed}`);
      await once(output, 'change');
    }
  }
  return { child, lines, line, exit };
}

/** Starts server.ts as `npm start` does, and waits until it serves. */
async function runServer(
  t: TestContext,
  env = {},
  folder = import.meta.dirname,
  options: string[] = [],
) {
  const run = runNode(t, [...options, 'server.ts'], { ...START, ...env }, folder);
  const [, url = ''] = /GET (http:\/\/[^/]+)/.exec(await run.line(/^MCP over/)) ?? [];
  await run.line(/^Try/);
  return { ...run, url };
}

// ---- Sessions --------------------------------------------------------------------------------

describe('Sessions', { skip: task !== undefined }, () => {
  test('a GET opens a stream, whose endpoint event names the path and the SDK\'s session id', async (t) => {
    const { url } = await startServer(t, { messagesPath: '/prefix/messages' });
    const { response, endpoint } = await openStream(t, url);
    assert.equal(response.status, 200);
    assert.equal(response.headers.get('content-type'), 'text/event-stream');
    assert.equal(response.headers.get('x-accel-buffering'), 'no');
    const uuid = '[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}';
    assert.match(endpoint, new RegExp(`^/prefix/messages\\?sessionId=${uuid}$`));
  });

  test('a POST is answered by 202, and the reply comes on the stream', async (t) => {
    const { url } = await startServer(t);
    const { post, next } = await openStream(t, url);
    assert.equal((await post(ping(7))).status, 202);
    assert.deepEqual(await next(), replyTo(7));
  });

  test('a call needs no initialize: a client that reconnects can go on', async (t) => {
    const { url } = await startServer(t);
    const { post, next } = await openStream(t, url);
    await post(callTool(1, 'echo', { text: 'hello' }));
    assert.match((await next())?.data ?? '', /"text":"hello"/);
  });

  test('each session has a server of its own, and its replies go to it alone', async (t) => {
    const servers: McpServer[] = [];
    const getServer = () => {
      const server = createTestServer(new EventEmitter());
      servers.push(server);
      return server;
    };
    const { url } = await startServer(t, { getServer });
    const one = await openStream(t, url);
    const two = await openStream(t, url);
    assert.equal(servers.length, 2);
    assert.notEqual(servers[0], servers[1]);
    await one.post(callTool(5, 'echo', { text: 'one' }));
    await two.post(callTool(5, 'echo', { text: 'two' }));
    assert.match((await one.next())?.data ?? '', /"text":"one"/);
    assert.match((await two.next())?.data ?? '', /"text":"two"/);
  });

  test('the hooks are told the start when the stream is open, and the end when it has ended', async (t) => {
    const { url, events } = await startServer(t);
    const started = once(events, 'start');
    const { sessionId, close } = await openStream(t, url);
    const [session] = (await started) as [Session];
    assert.equal(session.id, sessionId);
    assert.equal(session.address, '127.0.0.1');
    assert.ok(Date.now() - session.startedAt.getTime() < 60_000);
    const ended = once(events, 'end');
    close();
    assert.equal((await ended)[0], session);
  });

  test('the end hook waits until the start hook has settled', async (t) => {
    const gate = new EventEmitter();
    const order: string[] = [];
    const hooks = {
      async onSessionStart() {
        order.push('start begins');
        await once(gate, 'open');
        order.push('start is over');
      },
      onSessionEnd() {
        order.push('end');
        gate.emit('ended');
      },
    };
    const { url, server } = await startServer(t, { hooks });
    const opened = once(server, 'request');
    const { close } = await openStream(t, url);
    const [, res] = (await opened) as [unknown, http.ServerResponse];
    const closed = once(res, 'close');
    close();
    await closed;
    const ended = once(gate, 'ended');
    gate.emit('open');
    await ended;
    assert.deepEqual(order, ['start begins', 'start is over', 'end']);
  });

  test('a hook that throws or rejects is logged, and harms no session', async (t) => {
    const error = t.mock.method(console, 'error', () => {});
    const ended = new EventEmitter();
    const hooks = {
      onSessionStart() {
        throw new Error('start broke');
      },
      async onSessionEnd() {
        ended.emit('end');
        throw new Error('end broke');
      },
    };
    const { url, shutdown } = await startServer(t, { hooks });
    const { post, next } = await openStream(t, url);
    await post(ping(1));
    assert.deepEqual(await next(), replyTo(1));
    await shutdown();
    const logged = error.mock.calls.map((call) => call.arguments.join(' '));
    assert.deepEqual(logged, [
      'onSessionStart failed: Error: start broke',
      'onSessionEnd failed: Error: end broke',
    ]);
  });

  test('a session whose server can\'t be made gets 500', async (t) => {
    const error = t.mock.method(console, 'error', () => {});
    const getServer = () => {
      throw new Error('no server today');
    };
    const { url, events } = await startServer(t, { getServer });
    events.on('start', () => assert.fail('a session that failed has started'));
    const response = await fetch(`${url}/sse`);
    assert.equal(response.status, 500);
    assert.equal(await response.text(), 'Error handling request\n');
    assert.match(String(error.mock.calls[0]?.arguments[1]), /no server today/);
  });

  test('a server that two sessions share gives the second one 500, and it is forgotten', async (t) => {
    t.mock.method(console, 'error', () => {});
    const shared = createTestServer(new EventEmitter());
    const connect = t.mock.method(shared, 'connect');
    const { url } = await startServer(t, { getServer: () => shared });
    const { post, next } = await openStream(t, url);
    assert.equal((await fetch(`${url}/sse`)).status, 500);
    const { sessionId } = connect.mock.calls[1]?.arguments[0] as SSEServerTransport;
    assert.equal((await postTo(url, sessionId)).status, 404);
    await post(ping(1));
    assert.deepEqual(await next(), replyTo(1));
  });

  test('connect() failing after the stream has begun ends the stream and the session', async (t) => {
    t.mock.method(console, 'error', () => {});
    const { url, events } = await startServer(t);
    events.on('start', () => assert.fail('a session that failed has started'));
    const { connect } = McpServer.prototype;
    t.mock.method(McpServer.prototype, 'connect', async function (this: McpServer, transport: SSEServerTransport) {
      await connect.call(this, transport);
      throw new Error('connect broke');
    });
    const { response, sessionId, next } = await openStream(t, url);
    assert.equal(response.status, 200);
    assert.equal(await next(), undefined); // The stream ends, and cleanly: next() does not reject.
    assert.equal((await postTo(url, sessionId)).status, 404);
  });

  test('a stream that ends while it opens leaves no session, and no hook is called', async (t) => {
    const { url, events } = await startServer(t);
    events.on('start', () => assert.fail('a session that has ended has started'));
    events.on('end', () => assert.fail('a session that never started has ended'));
    const { connect } = McpServer.prototype;
    t.mock.method(McpServer.prototype, 'connect', async function (this: McpServer, transport: SSEServerTransport) {
      await connect.call(this, transport);
      await transport.close();
    });
    const { sessionId, next } = await openStream(t, url);
    assert.equal(await next(), undefined);
    assert.equal((await postTo(url, sessionId)).status, 404);
  });

  test('a client that has gone before its stream begins is never a session', async (t) => {
    const { server, port, events } = await startServer(t);
    events.on('start', () => assert.fail('a session without a client has started'));
    server.prependOnceListener('request', (req) => req.socket.destroy());
    assert.equal(await sendRaw(port, 'GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n'), '');
  });

  test('a stream that is pipelined behind another request gets 400, and is no session', async (t) => {
    const { port, events } = await startServer(t);
    events.on('start', () => assert.fail('a pipelined stream has become a session'));
    const first = 'GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n';
    const answer = await sendRaw(port, first + requestLine('GET', '/sse'));
    assert.match(answer, /^HTTP\/1\.1 404 .*HTTP\/1\.1 400 .*Pipelined request: wait/s);
  });

  test('a message that has come in only after its stream has ended is refused, and no tool runs', async (t) => {
    const { server, port, url, events } = await startServer(t);
    events.on('echo', () => assert.fail('the tool has run'));
    const { endpoint, close } = await openStream(t, url);
    const body = JSON.stringify(callTool(1, 'echo', { text: 'late' }));
    const posted = once(server, 'request');
    const socket = net.connect(port, '127.0.0.1').setEncoding('latin1');
    socket.write(`POST ${endpoint} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n`);
    socket.write(`Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n{`);
    await posted;
    const ended = once(events, 'end');
    close();
    await ended;
    socket.write(body.slice(1));
    let answer = '';
    for await (const chunk of socket) answer += chunk;
    assert.match(answer, /^HTTP\/1\.1 400 /);
  });

  test('a comment goes out on each stream every 15 s', async (t) => {
    shorten(t, 'setInterval', 15_000, 50);
    const { url } = await startServer(t);
    for (const { next } of [await openStream(t, url), await openStream(t, url)]) {
      assert.deepEqual(await next(), { comment: 'keep-alive' });
      assert.deepEqual(await next(), { comment: 'keep-alive' });
    }
  });

  test('the timer of a session ends with it', async (t) => {
    const start = t.mock.method(globalThis, 'setInterval');
    const clear = t.mock.method(globalThis, 'clearInterval');
    const { url, shutdown } = await startServer(t);
    await openStream(t, url);
    const { result } = start.mock.calls.find((call) => call.arguments[1] === 15_000) ?? {};
    await shutdown();
    assert.ok(clear.mock.calls.some((call) => call.arguments[0] === result && result !== undefined));
  });

  test('a client that has stopped reading is cut off at the next keep-alive', async (t) => {
    shorten(t, 'setInterval', 15_000, 50);
    const { url, port, events } = await startServer(t);
    const { session } = await openUnread(t, port, events);
    const ended = once(events, 'end');
    // The kernel takes some megabytes of these replies, and the rest stays with the server.
    for (const id of [1, 2, 3]) await postTo(url, session.id, ping(String(id).repeat(3_900_000)));
    assert.equal((await ended)[0], session);
  });

  test('a client that has stopped reading is cut off at its next message', async (t) => {
    const { url, port, events } = await startServer(t);
    const { session } = await openUnread(t, port, events);
    const ended = once(events, 'end');
    let answer = await postTo(url, session.id);
    for (let posts = 0; posts < 20 && answer.status === 202; posts += 1) {
      answer = await postTo(url, session.id, ping('1'.repeat(3_900_000)));
    }
    assert.equal(answer.status, 400);
    assert.equal((await ended)[0], session);
  });

  test('one session more than the limit gets 503, and its place is free again when one ends', async (t) => {
    const folder = await copyProject(t, { 'MAX_SESSIONS = 10_000': 'MAX_SESSIONS = 2' });
    const { url, line } = await runServer(t, {}, folder);
    const first = await openStream(t, url);
    await openStream(t, url);
    const refused = await fetch(`${url}/sse`);
    assert.equal(refused.status, 503);
    assert.equal(await refused.text(), 'All 2 sessions are in use: try again later\n');
    first.close();
    await line(/^Session .* ended/);
    assert.equal((await openStream(t, url)).response.status, 200);
  });

  test('more than 64 MiB of messages at once get 503, until some are through', async (t) => {
    const { server, port, url } = await startServer(t);
    const { endpoint, post } = await openStream(t, url);
    const head = `POST ${endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n`;
    const sockets: net.Socket[] = [];
    for (let i = 0; i < 16; i += 1) {
      const posted = once(server, 'request');
      const socket = net.connect(port, '127.0.0.1').on('error', () => {});
      socket.write(`${head}Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n`);
      sockets.push(socket);
      await posted;
    }
    const refused = await post(ping(1));
    assert.equal(refused.status, 503);
    assert.match(await refused.text(), /^Too much is being posted/);
    for (const socket of sockets) socket.destroy();
    await eventually(async () => (await post(ping(2))).status === 202);
  });

  test('an answer that its client leaves unread is given up after 30 s', async (t) => {
    const wait = http.ServerResponse.prototype.setTimeout;
    const limits: number[] = [];
    t.mock.method(http.ServerResponse.prototype, 'setTimeout', function (
      this: http.ServerResponse,
      limit: number,
      run: () => void,
    ) {
      limits.push(limit);
      return wait.call(this, 50, run);
    });
    const { server, port, url } = await startServer(t);
    const { sessionId } = await openStream(t, url);
    const socket = net.connect(port, '127.0.0.1').pause();
    socket.on('error', () => {});
    // The SDK's answer repeats a body that is no JSON. The kernel takes some of these answers.
    const body = `[${'1,'.repeat(2_000_000)}`;
    for (let isOpen = true; isOpen; ) {
      const { req, res } = await postUnread(server, socket, sessionId, body);
      await once(res, 'close');
      isOpen = !req.socket.destroyed;
    }
    assert.ok(limits.length > 0 && limits.every((limit) => limit === 30_000));
  });

  test('shutdown() ends streams cleanly, waits for the end hooks, and frees the port', async (t) => {
    const gate = new EventEmitter();
    const ended: string[] = [];
    const hooks = {
      async onSessionEnd(session: Session) {
        gate.emit('ending');
        await once(gate, 'open');
        ended.push(session.id);
      },
    };
    const { url, port, shutdown } = await startServer(t, { hooks });
    const { next, sessionId } = await openStream(t, url);
    const ending = once(gate, 'ending');
    const done = shutdown();
    await ending;
    assert.equal(await next(), undefined); // The stream has ended: next() would reject otherwise.
    gate.emit('open');
    await done;
    assert.deepEqual(ended, [sessionId]);
    const again = http.createServer().listen(port, '127.0.0.1');
    await once(again, 'listening');
    again.close();
  });

  test('shutdown() takes no more sessions, not even on a connection that is open', async (t) => {
    const gate = new EventEmitter();
    const hooks = { onSessionEnd: async () => void (await once(gate, 'open')) };
    t.after(() => gate.emit('open'));
    const { url, port, server, shutdown } = await startServer(t, { hooks });
    const { endpoint } = await openStream(t, url);
    const posted = once(server, 'request');
    const socket = net.connect(port, '127.0.0.1').setEncoding('latin1');
    socket.write(`POST ${endpoint} HTTP/1.1\r\nHost: localhost\r\n`);
    socket.write('Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{');
    await posted;
    const done = shutdown();
    socket.write('}');
    let answer = '';
    for await (const chunk of socket) {
      answer += chunk;
      if (answer.endsWith('Invalid message: {}\r\n0\r\n\r\n')) {
        socket.write('GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n');
      }
      if (answer.includes('shutting down')) gate.emit('open');
    }
    assert.match(answer, /HTTP\/1\.1 503 .*This server is shutting down/s);
    await done;
  });

  test('after kill -9 and a new start, the SDK\'s client reconnects and goes on', async (t) => {
    const first = await runServer(t);
    const client = await connectClient(t, first.url);
    shorten(t, 'setTimeout', 3000, 100); // The client waits so long before it tries again.
    const lost = new Promise((resolve) => {
      client.onerror = resolve;
    });
    first.child.kill('SIGKILL');
    await Promise.all([lost, first.exit]);
    const second = await runServer(t, { PORT: new URL(first.url).port });
    await second.line(/^Session \w+ started/);
    // The endpoint event has been sent, but the client may still have to read it.
    await eventually(() => client.ping().then(() => true, () => false));
    assert.ok((await client.listTools()).tools.length > 0);
  });
});

/** Opens a stream and reads nothing of it. */
async function openUnread(t: TestContext, port: number, events: EventEmitter) {
  const started = once(events, 'start');
  const reader = net.connect(port, '127.0.0.1').pause();
  t.after(() => reader.destroy());
  reader.write('GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n');
  const [session] = (await started) as [Session];
  return { session };
}

/** Posts a message on a connection from which nothing is read, and returns the server's answer. */
async function postUnread(server: http.Server, socket: net.Socket, sessionId: string, body: string) {
  const posted = once(server, 'request');
  socket.write(`POST /messages?sessionId=${sessionId} HTTP/1.1\r\nHost: localhost\r\n`);
  socket.write(`Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
  const [req, res] = (await posted) as [http.IncomingMessage, http.ServerResponse];
  return { req, res };
}

function postTo(url: string, sessionId = '', body: unknown = ping(1)) {
  const headers = { 'content-type': 'application/json' };
  const target = `${url}/messages?sessionId=${sessionId}`;
  return fetch(target, { method: 'POST', headers, body: JSON.stringify(body) });
}

/** Asks again until it is so, for what no event tells. */
async function eventually(isSo: () => Promise<boolean>, message = `never true: ${isSo}`) {
  for (let tries = 0; tries < 500; tries += 1) {
    if (await isSo()) return;
  }
  assert.fail(message);
}

// ---- Requests --------------------------------------------------------------------------------

describe('Requests', { skip: task !== undefined }, () => {
  test('a trailing slash makes no difference, neither in a path nor in a setting', async (t) => {
    const { url } = await startServer(t, { ssePath: '/a/sse/', messagesPath: '/a/messages' });
    for (const path of ['/a/sse', '/a/sse/']) {
      const { endpoint, next } = await openStream(t, url, {}, path);
      const headers = { 'content-type': 'application/json' };
      const target = url + endpoint.replace('?', '/?');
      const response = await fetch(target, { method: 'POST', headers, body: JSON.stringify(ping(1)) });
      assert.equal(response.status, 202);
      assert.deepEqual(await next(), replyTo(1));
    }
  });

  test('a POST without a sessionId is told where to get one', async (t) => {
    const { url } = await startServer(t);
    for (const path of ['/messages', '/messages?sessionId=', '/messages?session_id=1']) {
      const response = await fetch(url + path, { method: 'POST' });
      assert.equal(response.status, 400);
      assert.match(await response.text(), /^Missing sessionId parameter: .*\/sse/);
    }
  });

  test('a POST to a session that is not open gets 404, and is told to reconnect', async (t) => {
    const { url, events } = await startServer(t);
    const { sessionId, close } = await openStream(t, url);
    const ended = once(events, 'end');
    close();
    await ended;
    for (const id of ['made-up', '__proto__', sessionId]) {
      const response = await postTo(url, id);
      assert.equal(response.status, 404, id);
      assert.equal(await response.text(), 'Session not found: reconnect to /sse\n');
    }
  });

  test('a bad body gets 400, and the session goes on', async (t) => {
    const { url } = await startServer(t);
    const { post, next } = await openStream(t, url);
    const json = 'application/json';
    const bad: [body: string, type: string][] = [
      ['{', json],
      ['', json],
      ['{"jsonrpc":"1.0"}', json],
      ['[]', json],
      ['null', json],
      [JSON.stringify(ping(1)), 'text/plain'],
      [JSON.stringify(ping(1)), 'application/json; charset=nonsense'],
      [`"${'x'.repeat(4 * 1024 * 1024)}"`, json],
    ];
    for (const [body, type] of bad) {
      const { status } = await post(body, { headers: { 'content-type': type } });
      assert.equal(status, 400, `${type} ${body.slice(0, 20)}`);
    }
    await post(ping(2));
    assert.deepEqual(await next(), replyTo(2));
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

  test('any other path gets 404, which names the two paths', async (t) => {
    const { port } = await startServer(t, { ssePath: '/a/sse', messagesPath: '/b/messages' });
    const targets = ['/', '/sse', '/a/sse//', '//', '//a/sse', '///', '*', '/%', '/?', '/\\', '/a%2Fsse'];
    for (const target of [...targets, '/.well-known/oauth-authorization-server']) {
      const answer = await sendRaw(port, requestLine('GET', target));
      assert.match(answer, /^HTTP\/1\.1 404 .*GET \/a\/sse or POST \/b\/messages/s, target);
    }
  });

  test('a target in absolute form is served, if its host is allowed (RFC 9112)', async (t) => {
    const { port, url } = await startServer(t);
    const { endpoint, next } = await openStream(t, url);
    const body = JSON.stringify(ping(1));
    const answer = await sendRaw(
      port,
      `POST http://127.0.0.1:3000${endpoint} HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nConnection: close\r\n` +
        `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    assert.match(answer, /^HTTP\/1\.1 202 /);
    assert.deepEqual(await next(), replyTo(1));
    const statuses = {
      'http://localhost/x': 404,
      'http://localhost:3000/messages': 405,
      'http://evil.example/sse': 403,
      'http://me@evil.example/sse': 403,
    };
    for (const [target, status] of Object.entries(statuses)) {
      assert.equal(statusOf(await sendRaw(port, requestLine('GET', target))), status, target);
    }
  });

  test('a Host that is not allowed gets 403 on every path', async (t) => {
    const { port } = await startServer(t, { allowedHosts: ['MCP.example.com'], token: 't0ken' });
    const bad = [
      'evil.example', 'localhost.evil.example', '127.evil.example', 'example.com', '[', '[::1', ']', '',
      '127.0.0.1:99999', '127.0.0.1:3000/../', 'localhost/', 'me@localhost', 'localhost?', 'localhost#',
      'http://localhost', 'local host', 'localhost:x', '::1', '%6cocalhost', 'mcp.example.com.', 'undefined',
    ];
    for (const host of bad) {
      for (const [method, path] of [['GET', '/sse'], ['POST', '/messages'], ['PUT', '/x']] as const) {
        const answer = await sendRaw(port, requestLine(method, path, host));
        assert.match(answer, /^HTTP\/1\.1 403 .*Host or Origin not allowed/s, `${method} ${host}`);
      }
    }
    const good = ['localhost', 'LOCALHOST:1', '127.0.0.1:3000', '127.0.0.9', '[::1]:80', 'mcp.example.com:443'];
    for (const host of good) {
      // What answers now is the check of the token, which comes next.
      assert.equal(statusOf(await sendRaw(port, requestLine('GET', '/sse', host))), 401, host);
    }
  });

  test('an Origin that is not allowed gets 403', async (t) => {
    const { port } = await startServer(t, { allowedHosts: ['mcp.example.com'] });
    const statuses: [origin: string, status: number][] = [
      ['null', 403],
      ['https://evil.example', 403],
      ['https://localhost.evil.example', 403],
      ['app://x', 403],
      ['http://localhost/', 403],
      ['http://me@localhost', 403],
      ['', 403],
      ['http://localhost:8080', 404],
      ['https://mcp.example.com', 404],
      ['http://[::1]:80', 404],
    ];
    for (const [origin, status] of statuses) {
      const request = requestLine('GET', '/x', 'localhost', `Origin: ${origin}\r\n`);
      assert.equal(statusOf(await sendRaw(port, request)), status, origin);
    }
  });

  test('a GET that a page of another site makes without an Origin gets 403', async (t) => {
    const { port } = await startServer(t);
    const statuses = { 'cross-site': 403, 'same-site': 404, 'same-origin': 404, none: 404 };
    for (const [site, status] of Object.entries(statuses)) {
      const request = requestLine('GET', '/x', 'localhost', `Sec-Fetch-Site: ${site}\r\n`);
      assert.equal(statusOf(await sendRaw(port, request)), status, site);
    }
  });

  test('with a token set, each request must bring it', async (t) => {
    const { url } = await startServer(t, { token: 't0ken' });
    const wrong = ['', 'Bearer', 'Bearer ', 'Bearer wrong', 'Bearer t0ken2', 't0ken', 'Basic t0ken'];
    for (const authorization of wrong) {
      for (const [method, path] of [['GET', '/sse'], ['POST', '/messages?sessionId=x']] as const) {
        const response = await fetch(url + path, { method, headers: { authorization } });
        assert.equal(response.status, 401, authorization);
        assert.equal(response.headers.get('www-authenticate'), 'Bearer');
        assert.doesNotMatch(await response.text(), /t0ken/);
      }
    }
    for (const authorization of ['Bearer t0ken', 'bearer t0ken', 'Bearer  t0ken']) {
      const { post } = await openStream(t, url, { authorization });
      const headers = { 'content-type': 'application/json', authorization };
      assert.equal((await post(ping(1), { headers })).status, 202, authorization);
    }
  });

  test('an empty token lets nobody in', async (t) => {
    const { url } = await startServer(t, { token: '' });
    for (const authorization of ['', 'Bearer', 'Bearer ']) {
      assert.equal((await fetch(`${url}/sse`, { headers: { authorization } })).status, 401);
    }
  });

  test('a request that stalls gets 408, and an open stream is left alone', async (t) => {
    const { server, port, url } = await startServer(t);
    assert.equal(server.requestTimeout, 30_000);
    const { endpoint, post, next } = await openStream(t, url);
    server.requestTimeout = 100;
    server.headersTimeout = 100;
    const head = `POST ${endpoint} HTTP/1.1\r\nHost: localhost\r\n`;
    const stalled = [head, `${head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{`];
    for (const answer of await Promise.all(stalled.map((text) => sendRaw(port, text)))) {
      assert.match(answer, /^HTTP\/1\.1 408 /);
    }
    await post(ping(3));
    assert.deepEqual(await next(), replyTo(3));
  });

  test('requests that are hardly HTTP get an answer of 4xx or none, and the session goes on', async (t) => {
    const { server, port, url } = await startServer(t);
    const { endpoint, post, next } = await openStream(t, url);
    server.requestTimeout = 100;
    server.headersTimeout = 100;
    const close = 'Connection: close\r\n\r\n';
    const bad = [
      '\r\n\r\n', 'nonsense\r\n\r\n', 'GET\r\n\r\n', `GET /sse HTTP/9.9\r\n${close}`,
      `GET /sse HTTP/1.1\r\n${close}`, `GET /sse HTTP/1.0\r\n${close}`,
      `POST ${endpoint} HTTP/1.1\r\nHost: [\r\n${close}`,
      `POST ${endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 6\r\n${close}`,
      `POST ${endpoint} HTTP/1.1\r\nHost: localhost\r\nExpect: nothing\r\n${close}`,
      `GET /sse?${'x'.repeat(20_000)} HTTP/1.1\r\nHost: localhost\r\n${close}`,
      `POST /messages?sessionId=%ff%00&sessionId=x HTTP/1.1\r\nHost: localhost\r\n${close}`,
      'CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n',
    ];
    for (const request of bad) {
      assert.match(await sendRaw(port, request), /^(HTTP\/1\.1 4\d\d |$)/, request.slice(0, 60));
    }
    await post(ping(4));
    assert.deepEqual(await next(), replyTo(4));
  });

  test('an error of the SDK is logged, and answered by 500', async (t) => {
    const error = t.mock.method(console, 'error', () => {});
    const { url } = await startServer(t);
    const { post } = await openStream(t, url);
    t.mock.method(SSEServerTransport.prototype, 'handlePostMessage', async () => {
      throw new Error('a bug');
    });
    const response = await post(ping(1));
    assert.equal(response.status, 500);
    assert.equal(await response.text(), 'Error handling request\n');
    assert.match(error.mock.calls[0]?.arguments.join(' ') ?? '', /^Error handling request: Error: a bug/);
  });

  test('an error of the SDK after the head of an answer ends the answer', async (t) => {
    t.mock.method(console, 'error', () => {});
    const { url } = await startServer(t);
    const { post } = await openStream(t, url);
    type Response = http.ServerResponse;
    t.mock.method(SSEServerTransport.prototype, 'handlePostMessage', async (_req: unknown, res: Response) => {
      res.writeHead(202);
      res.write('begun');
      throw new Error('a bug');
    });
    assert.equal(await (await post(ping(1))).text(), 'begun');
  });
});

/** A whole request without a body, after which the server closes the connection. */
function requestLine(method: string, target: string, host = 'localhost', headers = '') {
  return `${method} ${target} HTTP/1.1\r\nHost: ${host}\r\n${headers}Connection: close\r\n\r\n`;
}

function statusOf(answer: string) {
  return Number(answer.split(' ')[1]);
}

// ---- Start and settings ----------------------------------------------------------------------

describe('Start and settings', { skip: task !== undefined }, () => {
  test('`npm start` runs the command that these tests run', async () => {
    const file = join(import.meta.dirname, 'package.json');
    const { scripts } = JSON.parse(await readFile(file, 'utf8'));
    assert.equal(scripts.start, 'node --import tsx server.ts');
  });

  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    test(`a start serves and logs its sessions, and ${signal} ends them cleanly`, async (t) => {
      const { child, url, lines, exit } = await runServer(t);
      const client = await connectClient(t, url);
      assert.ok((await client.listTools()).tools.length > 0);
      const { next } = await openStream(t, url);
      child.kill(signal);
      assert.equal(await next(), undefined); // The stream has ended: next() would reject otherwise.
      assert.equal(await exit, 0);
      const sessions = lines.filter((line) => line.startsWith('Session '));
      assert.equal(sessions.length, 4);
      assert.match(sessions[0] ?? '', /^Session [0-9a-f]{8} started from 127\.0\.0\.1$/);
      assert.match(sessions[2] ?? '', /^Session [0-9a-f]{8} ended after \d+ ms$/);
    });
  }

  test('end hooks are awaited, also when npm repeats the signal of a Ctrl-C', async (t) => {
    const { child, line, lines, exit } = await runSlowHook(t, 'await new Promise((r) => setTimeout(r, 300));');
    child.kill('SIGINT');
    child.kill('SIGINT');
    await line(/^hook has begun/);
    assert.equal(await exit, 0);
    assert.ok(lines.includes('hook is over'), lines.join('\n'));
  });

  test('an end hook that never settles is given up after 5 s', async (t) => {
    const { child, exit } = await runSlowHook(t, 'await new Promise(() => {});');
    child.kill('SIGTERM');
    assert.equal(await exit, 0);
  });

  test('a second signal ends the process at once', async (t) => {
    const never = 'await new Promise(() => {});';
    const { child, line, exit } = await runSlowHook(t, never, { 'SHUTDOWN_MS = 5_000': 'SHUTDOWN_MS = 1e9' });
    child.kill('SIGTERM');
    await line(/^hook has begun/);
    const again = setInterval(() => child.kill('SIGTERM'), 50);
    t.after(() => clearInterval(again));
    assert.equal(await exit, 1);
  });

  test('a log reader that goes away does not end the sessions', async (t) => {
    const { child, url } = await runServer(t);
    child.stdout.destroy();
    child.stderr.destroy();
    for (const id of [1, 2, 3]) {
      const { post, next, close } = await openStream(t, url);
      await post(ping(id));
      assert.deepEqual(await next(), replyTo(id));
      close();
    }
    assert.equal(child.exitCode, null);
  });

  test('the start says where it serves, and whether a token is required', async (t) => {
    const open = await runServer(t);
    const { port } = new URL(open.url);
    assert.ok(open.lines.includes(`MCP over HTTP+SSE: GET ${open.url}/sse, POST ${open.url}/messages`));
    assert.ok(open.lines.includes('Token: not required'));
    assert.ok(open.lines.includes(`Try: curl -N http://127.0.0.1:${port}/sse`));
    const shut = await runServer(t, { HOST: '0.0.0.0', MCP_TOKEN: 't0ken', SSE_PATH: '/a/sse' });
    assert.match(shut.url, /^http:\/\/localhost:/);
    assert.ok(shut.lines.includes('Token: required'));
    await shut.line(/^Try: curl -N -H "Authorization: Bearer <MCP_TOKEN>" http:.*\/a\/sse$/);
    assert.doesNotMatch(shut.lines.join('\n'), /t0ken/);
  });

  const badStarts: [what: string, env: Record<string, string>, line: RegExp][] = [
    ['a PORT that is no number', { PORT: 'http' }, /^Cannot start: PORT is "http"\. It must be a whole number/],
    ['a HOST of another machine', { HOST: '192.0.2.1', MCP_TOKEN: 't' }, /^Cannot start: HOST 192\.0\.2\.1 .*EADDRNOTAVAIL/],
    ['a HOST that is no name', { HOST: 'no.such.invalid', MCP_TOKEN: 't' }, /^Cannot start: HOST no\.such\.invalid /],
  ];
  for (const [what, env, line] of badStarts) {
    test(`${what} ends the start with one line and exit code 1`, async (t) => {
      const { lines, exit } = runNode(t, ['server.ts'], { ...START, ...env }, import.meta.dirname);
      assert.equal(await exit, 1);
      assert.equal(lines.length, 1, lines.join('\n'));
      assert.match(lines[0] ?? '', line);
    });
  }

  test('a PORT in use ends the start, even if something else keeps the process running', async (t) => {
    const { port } = await startServer(t);
    const busy = ['--import', 'data:text/javascript,setInterval(() => {}, 1e6)', 'server.ts'];
    const { lines, exit } = runNode(t, busy, { ...START, PORT: String(port) }, import.meta.dirname);
    assert.equal(await exit, 1);
    assert.match(lines.join(), new RegExp(`^Cannot start: .*PORT ${port} .*address already in use`));
  });

  test('the file knows that it is started, however it is named', async (t) => {
    const folder = await copyProject(t);
    const pack = { type: 'module', main: 'server.ts' };
    await writeFile(join(folder, 'package.json'), JSON.stringify(pack));
    for (const args of [['server'], ['.'], ['./server.ts'], [join(folder, 'server.ts')]]) {
      const run = runNode(t, args, START, folder);
      await run.line(/^Try/);
      run.child.kill();
    }
  });

  test('importing the file starts nothing, and main() starts it', async (t) => {
    const folder = await copyProject(t);
    await writeFile(join(folder, 'quiet.ts'), "import './server.ts'; console.log('imported');\n");
    const quiet = runNode(t, ['quiet.ts'], START, folder);
    assert.equal(await quiet.exit, 0);
    assert.deepEqual(quiet.lines, ['imported']);
    await writeFile(join(folder, 'wrapper.ts'), "import { main } from './server.ts';\nawait main();\n");
    await runNode(t, ['wrapper.ts'], START, folder).line(/^Try/);
    const evaluated = ['--eval', "import('./server.ts').then(() => console.log('imported'))"];
    assert.equal(await runNode(t, evaluated, START, folder).exit, 0);
  });

  test('.env is read from the working directory, after the environment, and named', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'env-'));
    t.after(() => rm(folder, { recursive: true }));
    const env = 'PORT=0\nSSE_PATH=/from/file\nMESSAGES_PATH=/ignored\nMCP_TOKEN=t0ken\nOTHER=x\n';
    await writeFile(join(folder, '.env'), env);
    const file = join(import.meta.dirname, 'server.ts');
    const { line, lines } = runNode(t, [file], { MESSAGES_PATH: '/from/env' }, folder);
    await line(/^Settings from \.env: PORT, SSE_PATH, MCP_TOKEN$/);
    await line(/^Try: .*\/from\/file$/);
    await line(/POST http:.*\/from\/env$/);
    assert.doesNotMatch(lines.join('\n'), /t0ken/);
  });

  test('a .env in UTF-16 or with a byte order mark is refused', async (t) => {
    const folder = await copyProject(t);
    const utf16 = Buffer.from('\uFEFFMCP_TOKEN=t0ken\n', 'utf16le');
    for (const content of [utf16, utf16.subarray(2), Buffer.from('\uFEFFMCP_TOKEN=t0ken\n')]) {
      await writeFile(join(folder, '.env'), content);
      const { lines, exit } = runNode(t, ['server.ts'], START, folder);
      assert.equal(await exit, 1);
      const [line] = lines;
      assert.equal(line, 'Cannot start: .env is UTF-16 or has a byte order mark. Save it as UTF-8 without one.');
    }
  });

  test('the settings have their defaults, also where a variable is blank', () => {
    const expected = {
      HOST: '127.0.0.1',
      PORT: 3000,
      SSE_PATH: '/sse',
      MESSAGES_PATH: '/messages',
      ALLOWED_HOSTS: [],
    };
    const blank = { HOST: '', PORT: ' ', MCP_TOKEN: ' ', ALLOWED_HOSTS: '' };
    for (const env of [{ ...START, PORT: '' }, { ...START, ...blank }]) {
      const settings: Record<string, unknown> = readSettings(env);
      for (const [name, value] of Object.entries(expected)) assert.deepEqual(settings[name], value);
      assert.equal(readSettings(env).MCP_TOKEN, undefined);
    }
  });

  const wrongSettings: [env: Record<string, string>, message: RegExp][] = [
    [{ PORT: '65536' }, /^PORT is "65536"\. It must be a whole number from 0 to 65535\.$/],
    [{ PORT: '-1' }, /^PORT is "-1"\./],
    [{ PORT: '80.5' }, /^PORT is "80\.5"\./],
    [{ PORT: '0x50' }, /^PORT is "0x50"\./],
    [{ PORT: '1e3' }, /^PORT is "1e3"\./],
    [{ SSE_PATH: 'sse' }, /^SSE_PATH is "sse"\. It must be a path such as/],
    [{ MESSAGES_PATH: '//evil.example' }, /^MESSAGES_PATH is "\/\/evil/],
    [{ MESSAGES_PATH: '/messages?x=1' }, /^MESSAGES_PATH is /],
    [{ MESSAGES_PATH: '/a/../b' }, /^MESSAGES_PATH is /],
    [{ MESSAGES_PATH: '/sse' }, /^SSE_PATH and MESSAGES_PATH are both \/sse\. They must differ\.$/],
    [{ PORT: 'x', SSE_PATH: 'y' }, /^PORT is "x"\. It .*\. SSE_PATH is "y"\. It .*\.$/],
    [{ ALLOWED_HOSTS: 'a.example, http://b.example' }, /^ALLOWED_HOSTS is "a\.example, http:\/\/b\.example"\. It/],
    [{ MCP_TOKEN: 'hush hush' }, /^MCP_TOKEN is wrong\. It must be printable ASCII without spaces\.$/],
    [{ HOST: '0.0.0.0' }, /^HOST is "0\.0\.0\.0", which lets other machines in\. Set MCP_TOKEN as well\.$/],
    [{ HOST: '::' }, /^HOST is "::".*MCP_TOKEN/],
    [{ HOST: '127.evil.example' }, /^HOST is "127\.evil\.example".*MCP_TOKEN/],
  ];
  for (const [env, message] of wrongSettings) {
    test(`${JSON.stringify(env)} is refused with a sentence that says what it must be`, () => {
      assert.throws(() => readSettings({ ...START, ...env }), (error: Error) => {
        assert.match(error.message, message);
        assert.doesNotMatch(error.message, /\n|hush/);
        return true;
      });
    });
  }

  test('right settings are taken', () => {
    const token = { ...START, MCP_TOKEN: 't' };
    for (const HOST of ['localhost', 'LocalHost', '127.0.0.2', '::1']) {
      assert.equal(readSettings({ ...START, HOST }).HOST, HOST);
    }
    assert.equal(readSettings({ ...token, HOST: '0.0.0.0' }).HOST, '0.0.0.0');
    assert.equal(readSettings({ ...START, PORT: '8080' }).PORT, 8080);
    const { ALLOWED_HOSTS } = readSettings({ ...START, ALLOWED_HOSTS: 'A.example:80, [fd00::1]' });
    assert.deepEqual(ALLOWED_HOSTS, ['a.example', '[fd00::1]']);
  });
});

/** Starts a copy whose end hook does this, and opens a session that the end of the copy will end. */
async function runSlowHook(t: TestContext, code: string, changes: Record<string, string> = {}) {
  const folder = await copyProject(t, {
    '  onSessionEnd(session) {\n': `  async onSessionEnd(session) {
    console.log('hook has begun');
    ${code}
    console.log('hook is over');\n`,
    ...changes,
  });
  const run = await runServer(t, {}, folder);
  await openStream(t, run.url);
  return run;
}

// ==== From here on, delete what you do not need: the tool and its firewall ====================

import https from 'node:https';
import type { CallToolResult } from '@modelcontextprotocol/sdk/types.js';
import { connectFirewall, getServer } from './server.ts';

const API_KEY = 'LUFRPT1-secret+key/==';
const RIGHTS = /: check PANOS_API_KEY and the XML API rights of its role\.$/;
const TARGET = /: check the target if you gave one, or try again later\.$/;
const ADDRESS = /: check PANOS_HOSTNAME and the way to its management interface, or try again later\.$/;

describe('The tool and its firewall', { skip: task !== undefined }, () => {
  test('the tool is described for models and for people', async (t) => {
    const client = await connectClient(t, (await startTool(t)).url);
    const [tool] = (await client.listTools()).tools;
    assert.equal(tool?.name, 'show_system_info');
    assert.equal(tool.title, 'Show system info');
    assert.match(tool.description ?? '', /Palo Alto/);
    assert.deepEqual(tool.annotations, { readOnlyHint: true, destructiveHint: false, openWorldHint: false });
    assert.match(JSON.stringify(tool.inputSchema.properties?.['target']), /[Ss]erial number.*Panorama/);
    assert.deepEqual(Object.keys(tool.outputSchema?.properties ?? {}).sort(), [
      'app-version', 'av-version', 'default-gateway', 'devicename', 'family', 'hostname', 'ip-address',
      'mac-address', 'model', 'netmask', 'operational-mode', 'platform-family', 'serial', 'sw-version',
      'time', 'uptime',
    ]);
  });

  test('without a firewall, a sample answers and says so', async (t) => {
    const client = await connectClient(t, (await startTool(t)).url);
    await client.listTools(); // From now on the client checks results against the output schema.
    const { content, structuredContent, text } = await showSystemInfo(client);
    assert.equal(structuredContent?.['hostname'], 'sample-firewall');
    assert.deepEqual(JSON.parse(text), structuredContent);
    assert.match(JSON.stringify(content[1]), /Sample data: .*PANOS_HOSTNAME and PANOS_API_KEY/);
  });

  test('the firewall is asked as its documentation says, with the key in a header only', async (t) => {
    const { requests, env } = await startFirewall(t, systemInfo('<hostname>fw</hostname>'));
    const client = await connectClient(t, (await startTool(t, env)).url);
    await showSystemInfo(client);
    await showSystemInfo(client, { target: '007951000000013' });
    await showSystemInfo(client, { target: '' });
    const cmd = '<show><system><info></info></system></show>';
    const expected = [{ type: 'op', cmd }, { type: 'op', cmd, target: '007951000000013' }, { type: 'op', cmd }];
    for (const [i, { req, body }] of requests.entries()) {
      assert.equal(`${req.method} ${req.url}`, 'POST /api/');
      assert.equal(req.headers['content-type'], 'application/x-www-form-urlencoded');
      assert.equal(req.headers['x-pan-key'], API_KEY);
      assert.deepEqual(Object.fromEntries(new URLSearchParams(body)), expected[i]);
    }
    assert.equal(requests.length, 3);
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
    const client = await connectClient(t, (await startTool(t, env)).url);
    await client.listTools();
    const { content, structuredContent, text } = await showSystemInfo(client);
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

  test('thousands of character references are decoded', async (t) => {
    const { env } = await startFirewall(t, systemInfo('<note>&#233;&amp;</note>'.repeat(5000)));
    const client = await connectClient(t, (await startTool(t, env)).url);
    const { structuredContent } = await showSystemInfo(client);
    assert.deepEqual(new Set(structuredContent?.['note'] as string[]), new Set(['é&']));
  });

  test('entities that a reply declares itself are not expanded', async (t) => {
    const doctype = '<!DOCTYPE r [<!ENTITY a "boom"><!ENTITY b "&a;&a;&a;">]>';
    const text = await toolError(t, doctype + systemInfo('<hostname>&a;&b;</hostname>'));
    assert.doesNotMatch(text, /boom/);
  });

  const line = (text: string) => `<msg><line>${text}</line></msg>`;
  const refusals: [what: string, status: number, reply: string, says: RegExp, hint: RegExp][] = [
    ['a refused key', 403, `<response status = 'error' code = '403'><result><msg>Invalid Credential</msg></result></response>`, /code 403: Invalid Credential\)/, RIGHTS],
    ['a missing right', 200, `<response status="unauth" code="16">${line('Unauthorized request')}</response>`, /status unauth, code 16: Unauthorized request\)/, RIGHTS],
    ['a refusal with no code but HTTP 403', 403, '<response status="error"><msg>No</msg></response>', /code 403: No\)/, RIGHTS],
    ['a 401 with a page', 401, '<html><body/></html>', /\(HTTP 401 without PAN-OS XML\)/, RIGHTS],
    ['a 403 with nothing', 403, '', /\(HTTP 403 without PAN-OS XML\)/, RIGHTS],
    ['an unknown target', 200, `<response status="error" code="13">${line('0079 not connected')}</response>`, /code 13: 0079 not connected\)/, TARGET],
    ['an error in several lines', 200, '<response status="error" code="17"><msg><line><![CDATA[ a]]></line><line><![CDATA[b ]]></line></msg></response>', /code 17: a b\)/, TARGET],
    ['an error in nested lines', 200, '<response status="error" code=""><msg><line><line>No such node</line></line></msg></response>', /code 200: No such node\)/, TARGET],
    ['an error in the result', 200, `<response status="failed"><result>${line('Cannot')}</result></response>`, /status failed, .*: Cannot\)/, TARGET],
    ['a bad parameter', 400, `<response status = 'error' code = '400'><result><msg>Illegal parameter [x]</msg></result></response>`, /code 400: Illegal parameter \[x\]\)/, TARGET],
    ['a page of a proxy', 503, '<html><body><h1>502 Bad Gateway</h1><hr></body></html>', /\(HTTP 503 without PAN-OS XML\)/, ADDRESS],
    ['a well-formed page', 200, '<html><body/></html>', /\(HTTP 200 without PAN-OS XML\)/, ADDRESS],
    ['an empty reply', 500, '', /\(HTTP 500 without PAN-OS XML\)/, ADDRESS],
    ['a redirect', 302, '', /\(HTTP 302 without PAN-OS XML\)/, ADDRESS],
    ['a JSON reply', 200, '{"response":{"status":"success"}}', /\(HTTP 200 without PAN-OS XML\)/, ADDRESS],
    ['a response without a status', 200, '<response><result/></response>', /without PAN-OS XML\)/, ADDRESS],
    ['XML that ends too early', 200, '<response status="success"><result><system><host', /without PAN-OS XML\)/, ADDRESS],
    ['a reply over 1 MiB', 200, systemInfo(`<hostname>${'x'.repeat(1024 * 1024)}</hostname>`), /exceeded max size/, ADDRESS],
  ];
  for (const [what, status, reply, says, hint] of refusals) {
    test(`${what} comes back as one sentence: what happened and what to do`, async (t) => {
      const text = await toolError(t, reply, status);
      assert.match(text, says);
      assert.match(text, hint);
    });
  }

  test('the API key is taken out of whatever the device repeats', async (t) => {
    const encoded = encodeURIComponent(API_KEY);
    const references = [...API_KEY].map((letter) => `&#${letter.charCodeAt(0)};`).join('');
    for (const key of [API_KEY, encoded, encoded.toLowerCase().replace('lufrpt', 'LUFRPT'), references]) {
      const inError = `<response status="${key}" code="${key}"><msg><line>key=${key}</line></msg></response>`;
      const text = await toolError(t, inError, 400);
      assert.match(text, /status \*\*\*, code \*\*\*: key=\*\*\*/);
      const { env } = await startFirewall(t, systemInfo(`<hostname>${key}</hostname><a b="${key}"/>`));
      const { structuredContent } = await showSystemInfo(await connectClient(t, (await startTool(t, env)).url));
      assert.deepEqual(structuredContent, { hostname: '***', a: { b: '***' } });
    }
  });

  test('the texts of a device are cut at 500 characters, its code and status too', async (t) => {
    const long = 'x'.repeat(501);
    const text = await toolError(t, `<response status="${long}" code="${long}"><msg>${long}</msg></response>`);
    assert.ok(!text.includes(long));
    assert.equal(text.split('x'.repeat(500)).length, 4);
  });

  test('a success without system information is an error too', async (t) => {
    const replies = ['<response status="success"/>', '<response status="success"><result/></response>', systemInfo('')];
    for (const reply of replies) {
      const { env } = await startFirewall(t, reply);
      const { isError, text } = await showSystemInfo(await connectClient(t, (await startTool(t, env)).url));
      assert.equal(isError, true);
      assert.equal(text, 'No system information came back: check PANOS_HOSTNAME.');
    }
  });

  test('a call whose connection is lost is sent once more, on a new connection', async (t) => {
    let calls = 0;
    const { env, requests } = await startFirewall(t, (req, res) => {
      calls += 1;
      if (calls === 2) req.socket.destroy();
      else res.end(systemInfo('<hostname>fw</hostname>'));
    });
    const client = await connectClient(t, (await startTool(t, env)).url);
    await showSystemInfo(client);
    assert.equal((await showSystemInfo(client)).structuredContent?.['hostname'], 'fw');
    assert.equal(requests.length, 3);
    assert.equal(requests[0]?.req.socket, requests[1]?.req.socket);
    assert.notEqual(requests[1]?.req.socket, requests[2]?.req.socket);
  });

  test('a connection that is lost twice, or in the middle of a reply, is an error', async (t) => {
    const always = await startFirewall(t, (req) => req.socket.destroy());
    const client = await connectClient(t, (await startTool(t, always.env)).url);
    assert.match((await showSystemInfo(client)).text, /^Asking .* failed \(other side closed\): check PANOS_HOSTNAME/);
    assert.equal(always.requests.length, 2);
    const cut = await startFirewall(t, (_req, res) => {
      res.writeHead(200, { 'content-length': 1000 });
      res.write('<response');
      setImmediate(() => res.destroy());
    });
    const second = await connectClient(t, (await startTool(t, cut.env)).url);
    assert.match((await showSystemInfo(second)).text, /failed \(the reply was cut off\): check PANOS_HOSTNAME/);
  });

  test('a firewall that is not there, or has an unknown name, is an error', async (t) => {
    const { firewall, env } = await startFirewall(t, '');
    await new Promise((resolve) => firewall.close(resolve));
    for (const PANOS_HOSTNAME of [env.PANOS_HOSTNAME, 'firewall.invalid']) {
      const client = await connectClient(t, (await startTool(t, { ...env, PANOS_HOSTNAME })).url);
      const { isError, text } = await showSystemInfo(client);
      assert.equal(isError, true);
      assert.match(text, /\(.*(ECONNREFUSED|ENOTFOUND|EAI_AGAIN).*\)/);
      assert.match(text, ADDRESS);
    }
  });

  test('a certificate that is not trusted is an error, until its check is switched off', async (t) => {
    const { env } = await startTlsFirewall(t);
    const strict = await connectClient(t, (await startTool(t, env)).url);
    const { text } = await showSystemInfo(strict);
    assert.match(text, /self-signed certificate.*: renew it, or use NODE_EXTRA_CA_CERTS or PANOS_SKIP_VERIFY/);
    const skip = { ...env, PANOS_SKIP_VERIFY_CERTIFICATE: 'true' };
    const { structuredContent } = await showSystemInfo(await connectClient(t, (await startTool(t, skip)).url));
    assert.equal(structuredContent?.['hostname'], 'fw');
  });

  test('a certificate that holds another name is an error that says so', async (t) => {
    const { env, port } = await startTlsFirewall(t);
    const folder = await copyProject(t);
    await writeFile(join(folder, 'ca.pem'), SELF_SIGNED.cert);
    // Node reads this variable only as it starts, so the server is a process of its own.
    const trust = { NODE_EXTRA_CA_CERTS: join(folder, 'ca.pem') };
    const { url } = await runServer(t, { ...env, ...trust, PANOS_HOSTNAME: `localhost:${port}` }, folder);
    const { text } = await showSystemInfo(await connectClient(t, url));
    assert.match(text, /altnames.*: set PANOS_HOSTNAME to a name that its certificate holds\.$/);
  });

  test('a firewall that does not answer, or drips, is given up after 30 s', async (t) => {
    shorten(t, 'setTimeout', 30_000, 300);
    for (const begin of ['', '<response']) {
      const { env, events } = await startFirewall(t, (_req, res) => void res.write(`${begin} `));
      const client = await connectClient(t, (await startTool(t, env)).url);
      const asked = once(events, 'request');
      const result = showSystemInfo(client);
      const [req] = (await asked) as [http.IncomingMessage];
      const gone = once(req.socket, 'close');
      assert.match((await result).text, /failed \(no reply within 30 s\): check PANOS_HOSTNAME/);
      await gone;
    }
  });

  test('a call that waits for its turn is given up after 30 s too', async (t) => {
    shorten(t, 'setTimeout', 30_000, 300);
    const env = await startSilentFirewall(t);
    const client = await connectClient(t, (await startTool(t, env)).url);
    const results = Array.from({ length: 12 }, () => showSystemInfo(client));
    for (const { text } of await Promise.all(results)) assert.match(text, /no reply within 30 s/);
  });

  test('the timer of a call ends with it', async (t) => {
    const { env } = await startFirewall(t, systemInfo('<hostname>fw</hostname>'));
    const client = await connectClient(t, (await startTool(t, env)).url);
    const start = t.mock.method(globalThis, 'setTimeout');
    const clear = t.mock.method(globalThis, 'clearTimeout');
    await showSystemInfo(client);
    const timers = start.mock.calls.filter((call) => call.arguments[1] === 30_000).map((call) => call.result);
    const cleared = clear.mock.calls.map((call) => call.arguments[0]);
    assert.ok(timers.length > 0 && timers.every((timer) => cleared.includes(timer)));
  });

  test('a call ends upstream when its client cancels it or goes away', async (t) => {
    const { env, events } = await startFirewall(t, () => {});
    const { url } = await startTool(t, env);
    for (const leave of ['cancel', 'disconnect']) {
      const client = await connectClient(t, url);
      const cancel = new AbortController();
      const asked = once(events, 'request');
      const result = showSystemInfo(client, {}, cancel.signal).catch(() => {});
      const [req] = (await asked) as [http.IncomingMessage];
      const gone = once(req.socket, 'close');
      if (leave === 'cancel') cancel.abort();
      else await client.close();
      await gone;
      await result;
    }
  });

  test('calls with the same id all end upstream when their client goes away', async (t) => {
    const { env, events, requests } = await startFirewall(t, () => {});
    const { url } = await startTool(t, env);
    const { post, close } = await openStream(t, url);
    for (let i = 0; i < 5; i += 1) {
      const asked = once(events, 'request');
      await post(callTool(1, 'show_system_info'));
      await asked;
    }
    const gone = requests.map(({ req }) => once(req.socket, 'close'));
    close();
    await Promise.all(gone);
  });

  test('many calls of one session at a time give no warning of a leak', async (t) => {
    const warnings: Error[] = [];
    const onWarning = (warning: Error) => void warnings.push(warning);
    process.on('warning', onWarning);
    t.after(() => process.off('warning', onWarning));
    const { env } = await startFirewall(t, systemInfo('<hostname>fw</hostname>'));
    const client = await connectClient(t, (await startTool(t, env)).url);
    await Promise.all(Array.from({ length: 40 }, () => showSystemInfo(client)));
    await showSystemInfo(client);
    assert.deepEqual(warnings, []);
  });

  test('five calls at a time go to the firewall, and a cancelled one leaves the queue', async (t) => {
    const waiting: http.ServerResponse[] = [];
    const { env, events, requests } = await startFirewall(t, (_req, res) => void waiting.push(res));
    const client = await connectClient(t, (await startTool(t, env)).url);
    const reached = async (count: number) => {
      while (requests.length < count) await once(events, 'request');
    };
    const firstFive = [1, 2, 3, 4, 5].map((target) => showSystemInfo(client, { target: `${target}` }));
    await reached(5);
    const cancel = new AbortController();
    const cancelled = showSystemInfo(client, { target: 'cancelled' }, cancel.signal).catch(() => 'cancelled');
    const sixth = showSystemInfo(client, { target: '6' });
    await client.ping(); // Both calls are on the server now.
    cancel.abort();
    assert.equal(await cancelled, 'cancelled');
    await client.ping();
    assert.equal(requests.length, 5);
    const answer = systemInfo('<hostname>fw</hostname>');
    waiting[0]?.end(answer);
    await reached(6);
    for (const res of waiting.slice(1)) res.end(answer);
    await Promise.all([...firstFive, sixth]);
    assert.equal(new URLSearchParams(requests[5]?.body).get('target'), '6');
  });

  test('a call that finds 50 calls waiting is told so at once', async (t) => {
    const { env } = await startFirewall(t, () => {});
    const client = await connectClient(t, (await startTool(t, env)).url);
    const calls = Array.from({ length: 55 }, () => showSystemInfo(client).catch(() => {}));
    const { isError, text } = await showSystemInfo(client);
    assert.equal(isError, true);
    assert.match(text, /^127\.0\.0\.1:\d+ is busy: 50 calls wait for it\. Try again later\.$/);
    await client.close();
    await Promise.all(calls);
  });

  test('an argument that is no serial number is refused with the reason', async (t) => {
    const { requests, env } = await startFirewall(t, '');
    const client = await connectClient(t, (await startTool(t, env)).url);
    for (const args of [{ target: 'a b' }, { target: 'x'.repeat(33) }, { target: 5 }, { serial: '1' }]) {
      const { isError, text } = await showSystemInfo(client, args);
      assert.equal(isError, true);
      assert.match(text, /Invalid arguments for tool show_system_info/);
    }
    assert.equal(requests.length, 0);
  });

  const wrongSettings: [env: Record<string, string>, message: RegExp][] = [
    [{ PANOS_HOSTNAME: 'fw/api', PANOS_API_KEY: API_KEY }, /^PANOS_HOSTNAME is "fw\/api"\. It must be a host/],
    [{ PANOS_HOSTNAME: 'https://me:pw@fw', PANOS_API_KEY: API_KEY }, /^PANOS_HOSTNAME is wrong\. It must be/],
    [{ PANOS_HOSTNAME: 'fw:99999', PANOS_API_KEY: API_KEY }, /^PANOS_HOSTNAME is "fw:99999"\./],
    [{ PANOS_HOSTNAME: 'fw', PANOS_API_KEY: `${API_KEY}\n` }, /^PANOS_API_KEY is wrong\. It must be printable/],
    [{ PANOS_SKIP_VERIFY_CERTIFICATE: 'maybe' }, /^PANOS_SKIP_VERIFY_CERTIFICATE is "maybe"\. It must be true or false\.$/],
    [{ PANOS_HOSTNAME: 'fw.example.com' }, /^PANOS_API_KEY is not set\. Set it, or unset PANOS_HOSTNAME\.$/],
    [{ PANOS_API_KEY: API_KEY }, /^PANOS_HOSTNAME is not set\. Set it, or unset PANOS_API_KEY\.$/],
  ];
  for (const [i, [env, message]] of wrongSettings.entries()) {
    test(`wrong firewall settings (${i + 1}) are refused, and no secret is shown`, () => {
      assert.throws(() => connectFirewall(readSettings({ ...START, ...env })), (error: Error) => {
        assert.match(error.message, message);
        assert.doesNotMatch(error.message, /\n|pw@|secret/);
        return true;
      });
    });
  }

  test('PANOS_HOSTNAME is a host, a host and port, or an origin', (t) => {
    const names = { fw: 'fw', 'fw:8443': 'fw:8443', 'http://[::1]:8': '[::1]:8', 'https://fw': 'fw' };
    for (const [PANOS_HOSTNAME, name] of Object.entries(names)) {
      const env = { ...START, PANOS_HOSTNAME, PANOS_API_KEY: API_KEY };
      const firewall = connectFirewall(readSettings(env));
      t.after(() => firewall?.pool.destroy());
      assert.equal(firewall?.name, name);
    }
  });

  test('the start names the firewall, and warns if its certificate is not checked', async (t) => {
    const sample = await runServer(t);
    assert.ok(sample.lines.includes('Firewall: none, so the tool answers with sample data'));
    const env = { PANOS_HOSTNAME: 'fw.example.com', PANOS_API_KEY: API_KEY };
    const real = await runServer(t, { ...env, PANOS_SKIP_VERIFY_CERTIFICATE: 'true' });
    assert.ok(real.lines.includes('Firewall: fw.example.com (warning: its certificate is not checked)'));
    assert.doesNotMatch(real.lines.join('\n'), /secret/);
  });
});

/** Starts the server with the project's own tool. */
async function startTool(t: TestContext, env: Record<string, string> = {}) {
  const firewall = connectFirewall(readSettings({ ...START, ...env }));
  t.after(() => firewall?.pool.destroy());
  return await startServer(t, { getServer: () => getServer(firewall) });
}

/** Calls the tool; `text` is the first text of its result. */
async function showSystemInfo(client: Client, args = {}, signal?: AbortSignal) {
  const params = { name: 'show_system_info', arguments: args };
  const options = signal ? { signal } : {};
  const result = (await client.callTool(params, undefined, options)) as CallToolResult;
  const [first] = result.content;
  return { ...result, text: first?.type === 'text' ? first.text : '' };
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
    if (typeof reply === 'function') return reply(req, res);
    res.writeHead(status);
    res.end(reply);
  });
  firewall.listen(0, '127.0.0.1');
  await once(firewall, 'listening');
  t.after(() => {
    firewall.close();
    firewall.closeAllConnections();
  });
  const PANOS_HOSTNAME = `http://127.0.0.1:${(firewall.address() as AddressInfo).port}`;
  return { firewall, requests, events, env: { PANOS_HOSTNAME, PANOS_API_KEY: API_KEY } };
}

/** A firewall that takes connections and never answers, so that no TLS connection is ever made. */
async function startSilentFirewall(t: TestContext) {
  const silent = net.createServer().listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const sockets: net.Socket[] = [];
  silent.on('connection', (socket) => sockets.push(socket.on('error', () => {})));
  t.after(() => {
    silent.close();
    for (const socket of sockets) socket.destroy();
  });
  const PANOS_HOSTNAME = `127.0.0.1:${(silent.address() as AddressInfo).port}`;
  return { PANOS_HOSTNAME, PANOS_API_KEY: API_KEY };
}

async function startTlsFirewall(t: TestContext) {
  const firewall = https.createServer(SELF_SIGNED, (_req, res) => {
    res.end(systemInfo('<hostname>fw</hostname>'));
  });
  firewall.listen(0, '127.0.0.1');
  await once(firewall, 'listening');
  t.after(() => {
    firewall.close();
    firewall.closeAllConnections();
  });
  const { port } = firewall.address() as AddressInfo;
  return { port, env: { PANOS_HOSTNAME: `127.0.0.1:${port}`, PANOS_API_KEY: API_KEY } };
}

/** The text of the tool's error when the firewall answers so. */
async function toolError(t: TestContext, reply: string, status = 200) {
  const { env } = await startFirewall(t, reply, status);
  const { isError, text } = await showSystemInfo(await connectClient(t, (await startTool(t, env)).url));
  assert.equal(isError, true, text);
  assert.match(text, /^Asking 127\.0\.0\.1:\d+ failed \(.+\): .+\.$/s);
  assert.ok(!text.includes(API_KEY), text);
  return text;
}

function systemInfo(fields: string) {
  return `<response status="success"><result><system>${fields}</system></result></response>`;
}

// A certificate for 127.0.0.1, valid until 2126. Nobody trusts it.
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

// ==== From here on, delete what you do not need: the exercises ================================

import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

interface Workshop {
  port: number;
  seconds: number;
  /** Told where the server is; the tests of the README play the learner here. */
  learner: (url: string) => unknown;
}

/** Serves until the learner has done all the steps, and fails with those that are still missing. */
async function watchSteps(t: TestContext, steps: string[], workshop: Partial<Workshop>) {
  const { port = Number(process.env['PORT'] ?? 3000), seconds = 1800, learner } = workshop;
  const todo = new Set(steps);
  const events = new EventEmitter();
  const see = (step: string) => {
    if (todo.delete(step) && !learner) console.log(`  done: ${step}`);
    if (todo.size === 0) events.emit('done');
  };
  const { server } = createMcpHttpServer({
    getServer: () => getServer(undefined),
    hooks: {
      onSessionStart: (session) => void events.emit('start', session),
      onSessionEnd: (session) => void events.emit('end', session),
    },
  });
  await once(server.listen(port, '127.0.0.1'), 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  if (!learner) console.log(`Serving on ${url}/sse; to do:\n  ${steps.join('\n  ')}`);
  const done = once(events, 'done', { signal: AbortSignal.timeout(seconds * 1000) });
  const finished = done.catch(() => assert.fail(`Still missing: ${[...todo].join('; ')}`));
  return { server, events, see, finished, start: () => learner?.(url) };
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
    const { url } = await runServer(t);
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
      const client = await connectClient(t, (await startTool(t, env)).url);
      const tool = (await client.listTools()).tools.find((tool) => tool.name === name);
      assert.ok(tool, `There is no tool ${name}: register it in getServer`);
      assert.ok(tool.annotations?.readOnlyHint, 'Its annotations must have readOnlyHint: true');
      const result = (await client.callTool({ name })) as CallToolResult;
      const addresses = result.structuredContent?.['addresses'] as { name: string }[] | undefined;
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
      assert.equal(asked['type'], 'config', 'It must ask with type=config');
      assert.equal(asked['action'], 'show', 'action=show is the running configuration, action=get the candidate');
      assert.match(asked['xpath'] ?? '', /\/address$/, 'Its xpath must end in /address');
      assert.deepEqual(addresses.map(({ name }) => name), names, `It must return ${names.length} of them as a list`);
    }
  },

  async 5(t) {
    let answer = () => {};
    const { env } = await startFirewall(t, (_req, res) => {
      answer = () => void res.end(systemInfo('<hostname>fw</hostname>'));
    });
    const client = await connectClient(t, (await startTool(t, env)).url);
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
    const { url, events } = await startTool(t);
    const client = new Client({ name: 'exercise', version: '1.0.0' });
    const transport = new StreamableHTTPClientTransport(new URL('/mcp', url));
    await client.connect(transport).catch((error) => {
      assert.fail(`A Streamable HTTP client can't connect to /mcp: ${error.message}`);
    });
    const { structuredContent } = (await client.callTool({ name: 'show_system_info' })) as CallToolResult;
    assert.equal(structuredContent?.['hostname'], 'sample-firewall', 'The tool must answer on /mcp as well');
    await client.close();
    const rebound = await fetch(`${url}/mcp`, { method: 'POST', headers: { origin: 'http://evil.example' } });
    assert.equal(rebound.status, 403, 'The check of Host and Origin must come before /mcp too');
    const started = once(events, 'start');
    await showSystemInfo(await connectClient(t, url));
    await started;
  },
};

if (task) {
  const check = exercises[task];
  void nodeTest(`exercise ${task}`, async (t) => {
    assert.ok(check, `There is no exercise ${task}, only ${Object.keys(exercises).join(', ')}`);
    await check(t).catch(({ message }: Error) => {
      const error = new Error();
      error.stack = `Not yet: ${message}`;
      throw error;
    });
  });
}

// ==== From here on, delete what you do not need: the load and the README ======================

/** Opens a stream at little cost; `call` posts a request and waits for its reply. */
async function openLean(url: string, agent: http.Agent) {
  const request = http.get(`${url}/sse`, { agent: false });
  const [stream] = (await once(request, 'response')) as [http.IncomingMessage];
  const events = new EventEmitter();
  const parser = createParser({ onEvent: ({ event = '', data }) => void events.emit(event, data) });
  stream.setEncoding('utf8').on('data', (chunk: string) => parser.feed(chunk));
  const [endpoint] = (await once(events, 'endpoint')) as [string];
  async function call(method: string, params = {}) {
    const replied = once(events, 'message');
    const headers = { 'content-type': 'application/json' };
    const post = http.request(url + endpoint, { method: 'POST', agent, headers });
    post.end(JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }));
    const [response] = (await once(post, 'response')) as [http.IncomingMessage];
    response.resume();
    const [reply] = (await replied) as [string];
    return JSON.parse(reply);
  }
  return { call, close: () => request.destroy() };
}

/** Tells, whenever it is asked, how much memory and processor time the server has used. */
const TELL_USAGE = `data:text/javascript,process.stdin.on("data", () => {
  console.log("Usage", JSON.stringify({ ...process.memoryUsage(), ...process.cpuUsage() }));
})`;

/** Opens so many sessions, 50 at a time, calls the tool on each, and closes them all. */
async function runLoad(t: TestContext, count: number) {
  const { child, url, line, lines, exit } = await runServer(t, {}, undefined, ['--import', TELL_USAGE]);
  let asked = 0;
  async function usage() {
    child.stdin.write('usage\n');
    asked += 1;
    const { rss, user, system } = JSON.parse((await line(/^Usage/, asked)).slice(6));
    return { rss: rss as number, cpu: (user + system) as number };
  }
  const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
  const clientInfo = { name: 'load', version: '1.0.0' };
  const params = { protocolVersion: '2024-11-05', capabilities: {}, clientInfo };
  const before = await usage();
  const sessions: Awaited<ReturnType<typeof openLean>>[] = [];
  await inBatches(count, async () => {
    const session = await openLean(url, agent);
    await session.call('initialize', params);
    sessions.push(session);
  });
  const open = await usage();
  let failed = 0;
  await inBatches(count, async (i) => {
    const { result } = await sessions[i]?.call('tools/call', { name: 'show_system_info' });
    if (result?.structuredContent?.hostname !== 'sample-firewall') failed += 1;
  });
  const called = await usage();
  for (const session of sessions) session.close();
  await line(/^Session .* ended/, count);
  agent.destroy();
  child.kill('SIGTERM');
  return {
    sessions: count,
    failed,
    'KB a session': Math.round((open.rss - before.rss) / count / 1024),
    'µs of processor a call': Math.round((called.cpu - open.cpu) / count),
    'exit code': await exit,
    'lines of complaint': lines.filter((text) => !/^(MCP|Token|Firewall|Try|Session|Usage)/.test(text)).length,
  };
}

async function inBatches(count: number, run: (i: number) => Promise<void>) {
  for (let i = 0; i < count; i += 50) {
    const size = Math.min(50, count - i);
    await Promise.all(Array.from({ length: size }, (_, j) => run(i + j)));
  }
}

if (task === 'load') {
  void nodeTest('load', async (t) => console.log(await runLoad(t, Number(process.argv[3] ?? 1000))));
}

describe('The README', { skip: task !== undefined }, async () => {
  const readme = await readFile(join(import.meta.dirname, 'README.md'), 'utf8');
  const source = await readFile(join(import.meta.dirname, 'server.ts'), 'utf8');

  /** The text under a heading, up to the next one of the same level. */
  function section(heading: string) {
    const [, text] = readme.split(new RegExp(`^${heading}\\n`, 'm'));
    assert.ok(text, `README.md has no heading ${heading}`);
    const [level = ''] = heading.split(' ');
    return text.split(new RegExp(`^${level} `, 'm'))[0] ?? '';
  }

  /** The code blocks of a text, in their order. */
  function blocks(text: string) {
    return [...text.matchAll(/^```\w+\n([^]*?)\n```$/gm)].map(([, code = '']) => code);
  }

  test('200 sessions open, call and close, and nothing fails', async (t) => {
    const { failed, 'exit code': code, 'lines of complaint': complaints } = await runLoad(t, 200);
    assert.deepEqual({ failed, code, complaints }, { failed: 0, code: 0, complaints: 0 });
  });

  test('the walk shows lines of server.ts, word for word', () => {
    const excerpts = blocks(section('## A walk through `server.ts`'));
    assert.ok(excerpts.length >= 5);
    for (const code of excerpts) assert.ok(source.includes(`${code}\n`), `server.ts does not hold\n${code}`);
  });

  test('the settings are those that server.ts reads, with their defaults', () => {
    const rows = section('## Settings').matchAll(/^\| `([A-Z_]+)` \| (?:`(.*?)`)? *\|/gm);
    const documented = Object.fromEntries([...rows].map(([, name, value = '']) => [name, value]));
    const read = [...source.matchAll(/^  ([A-Z_]{4,}): /gm)].map(([, name = '']) => name);
    const defaults: Record<string, unknown> = readSettings({});
    assert.deepEqual(documented, Object.fromEntries(read.map((name) => [name, String(defaults[name] ?? '')])));
  });

  test('each command exists', async () => {
    const { scripts } = JSON.parse(await readFile(join(import.meta.dirname, 'package.json'), 'utf8'));
    const commands = [...readme.matchAll(/npm (?:run )?(start|test|\w+ \d+)/g)].map(([, command = '']) => command);
    assert.ok(commands.includes('start') && commands.includes('test'));
    for (const command of commands) {
      const [script = '', number = ''] = command.split(' ');
      assert.ok(scripts[script], `npm run ${script}`);
      if (script === 'exercise') assert.ok(exercises[number], `exercise ${number}`);
    }
  });

  test('the start prints what is shown', async (t) => {
    const [, output = ''] = blocks(section('## What this is'));
    const { lines } = await runServer(t);
    assert.equal(mask(lines.join('\n')), mask(output));
  });

  test('the client runs as printed and prints what is shown', async (t) => {
    const { url } = await startTool(t);
    const [client = '', output] = blocks(section('## Connect a client'));
    const folder = await copyProject(t);
    await writeFile(join(folder, 'client.ts'), client.replace('http://127.0.0.1:3000', url));
    const { lines, exit } = runNode(t, ['client.ts'], {}, folder);
    assert.equal(await exit, 0);
    assert.equal(lines.join('\n'), output);
  });

  test('the session by hand with curl goes as shown', async (t) => {
    if (isMissing('curl')) return t.skip('curl is not installed');
    const { url, events } = await startTool(t);
    const [open = '', posts = '', stream = '', last = ''] = blocks(section('## By hand with curl'));
    const [command = '', ...event] = open.slice(2).split('\n');
    const first = openShell(t, '-c', `exec ${command.replace('http://127.0.0.1:3000', url)}`);
    const [endpoint = ''] = /\/messages.*/.exec(await first.printed(event.join('\n'))) ?? [];
    const second = openShell(t);
    async function runAll(code: string) {
      for (const step of code.split(/^\$ /m).slice(1)) {
        const [command = '', ...output] = step.split('\n');
        second.run(command.replace(/http:.*sessionId=[-\w]+/, url + endpoint));
        await second.printed(output.join('\n'));
      }
    }
    await runAll(posts);
    await first.printed(stream);
    const ended = once(events, 'end');
    first.child.kill('SIGINT'); // Ctrl-C
    await ended;
    await runAll(last);
  });

  const steps = {
    1: /open a stream; .*initialize; .*end the stream/,
    2: /without an id; .*made up; .*not there; .*ended/,
  };
  for (const [number, missing] of Object.entries(steps)) {
    test(`the check of exercise ${number} waits for each step and sees it`, async (t) => {
      const check = exercises[number];
      assert.ok(check);
      await assert.rejects(check(t, { port: 0, seconds: 0.1, learner: () => {} }), missing);
      // The check may end, and its server with it, before the learner has seen the last answer.
      const learner = (url: string) => doAllSteps(t, url).catch(() => {});
      await check(t, { port: 0, seconds: 30, learner });
    });
  }

  const missing = {
    3: /healthz answers 404/,
    4: /no tool show_address_objects/,
    5: /0 of 2 progress/,
    6: /can't connect to \/mcp/,
  };
  for (const [number, message] of Object.entries(missing)) {
    test(`the check of exercise ${number} fails at first, and passes with the solution`, async (t) => {
      await assert.rejects(exercises[number]?.(t) ?? Promise.resolve(), message);
      const folder = await copyProject(t);
      await copyFile(join(import.meta.dirname, 'server.test.ts'), join(folder, 'server.test.ts'));
      const [diff = ''] = blocks(section(`### Exercise ${number}.*`));
      await applyDiff(folder, diff);
      const check = runNode(t, ['--test-reporter=spec', 'server.test.ts', number], {}, folder);
      const types = runNode(t, await typecheckArguments(), {}, folder);
      assert.equal(await check.exit, 0, check.lines.join('\n'));
      assert.equal(await types.exit, 0, types.lines.join('\n'));
    });
  }
});

/** Ids and ports differ from run to run. */
function mask(text: string) {
  const uuid = /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g;
  return text.replace(uuid, 'ID').replace(/127\.0\.0\.1:\d+/g, 'HOST').trim();
}

function isMissing(command: string) {
  return spawnSync(command, ['--version']).error !== undefined;
}

/** A shell; `printed` waits until the last that it printed is this, but for ids and blank lines. */
function openShell(t: TestContext, ...args: string[]) {
  const child = spawn('sh', args);
  t.after(() => child.kill('SIGKILL'));
  let output = '';
  child.stdout.on('data', (chunk) => {
    output += chunk;
  });
  const plain = (text: string) => mask(text.replace(/\n+/g, '\n'));
  async function printed(text: string) {
    while (!plain(output).endsWith(plain(text))) await once(child.stdout, 'data');
    return output;
  }
  function run(line: string) {
    output = '';
    child.stdin.write(`${line}\n`);
  }
  return { child, printed, run };
}

/** Does what exercises 1 and 2 ask for. */
async function doAllSteps(t: TestContext, url: string) {
  const { post, next, close } = await openStream(t, url);
  const clientInfo = { name: 'learner', version: '1.0.0' };
  const params = { protocolVersion: '2024-11-05', capabilities: {}, clientInfo };
  await post({ jsonrpc: '2.0', id: 1, method: 'initialize', params });
  await next();
  await post(callTool(2, 'show_system_info'));
  await next();
  for (const path of ['/messages', '/messages?sessionId=mine', '/message']) {
    await fetch(url + path, { method: 'POST' });
  }
  close();
  await eventually(async () => (await post(ping(3))).status === 404);
}

/** Changes server.ts in this folder as the diff says; git does it, also outside a repository. */
async function applyDiff(folder: string, diff: string) {
  const file = join(folder, 'solution.diff');
  await writeFile(file, `--- a/server.ts\n+++ b/server.ts\n${diff}\n`);
  const { status, stderr } = spawnSync('git', ['apply', '--unidiff-zero', file], { cwd: folder });
  assert.equal(status, 0, String(stderr));
}

/** What `npm run typecheck` runs, for server.ts alone. */
async function typecheckArguments() {
  const { scripts } = JSON.parse(await readFile(join(import.meta.dirname, 'package.json'), 'utf8'));
  const options = scripts.typecheck.split(' ').slice(1, -1) as string[];
  return [join(import.meta.dirname, 'node_modules/typescript/bin/tsc'), ...options];
}
