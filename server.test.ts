// SPDX-License-Identifier: MIT
/**
 * What server.ts promises, each promise tried over real sockets: the real server, with the SDK's
 * own client, or with a bare socket for what no client would send.
 *
 * The suites are in the order of server.ts: sessions, requests, start and settings. Whoever copies
 * the file keeps these and writes tests of a tool of their own. All that follows can go, from the
 * first `====` banner on: the doctor, the tool and its firewall, the exercises, the load and the
 * README. A section may need those before it, so delete from the end. Beside the packages of
 * server.ts, this file needs `eventsource-parser` 3.
 *
 * `npm test` runs everything. `node --import tsx --test --test-name-pattern=Sessions server.test.ts`
 * runs one suite.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { copyFile, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import http from 'node:http';
import https from 'node:https';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';
import { describe as nodeDescribe, test as nodeTest, type TestContext } from 'node:test';
import { createUnzip } from 'node:zlib';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import { createParser, type EventSourceMessage } from 'eventsource-parser';
import * as z from 'zod';
import type { McpHttpServerOptions, Session } from './server.ts';

// ---- Helpers ---------------------------------------------------------------------------------

/** The settings that every start needs. Add those that your own `main()` can't do without. */
const START = { PORT: '0' };

/** What is to be done instead of the tests, if an argument says so, such as `doctor`. */
const [, , task] = process.argv;

// A task such as the doctor does without server.ts, which may be broken just then.
const withoutServer = {} as typeof import('./server.ts');
const subject = task === undefined ? await import('./server.ts') : withoutServer;
const { createMcpHttpServer, readSettings } = subject;

let isTaskKnown = false;

/** Whether the command names this task. A section asks before it does anything other than test. */
function isTask(name: string) {
  if (task !== name) return false;
  isTaskKnown = true;
  return true;
}

process.on('exit', () => {
  if (task === undefined || isTaskKnown) return;
  console.error(`There is no task "${task}" in server.test.ts. Its section may have been deleted.`);
  process.exitCode = 2;
});

/** The tests of one section; tests that only wait can do so side by side. */
function describe(name: string, run: () => void | Promise<void>, { concurrency = 1 } = {}) {
  if (task === undefined) void nodeDescribe(name, { concurrency }, run);
}

/** Each test has a limit of its own, wide enough for a busy machine. */
function test(name: string, run: (t: TestContext) => unknown) {
  void nodeTest(name, { timeout: 60_000 }, async (t) => {
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

/**
 * Starts a server on a free port. `events` tells `start` and `end` of sessions, and calls of the
 * tools; `seen` holds their names.
 */
async function startServer(t: TestContext, options: Partial<McpHttpServerOptions> = {}) {
  const events = new EventEmitter();
  const seen: string[] = [];
  for (const name of ['start', 'end', 'echo', 'wait']) events.on(name, () => seen.push(name));
  const hooks = {
    onSessionStart: (session: Session) => void events.emit('start', session),
    onSessionEnd: (session: Session) => void events.emit('end', session),
  };
  const getServer = () => createTestServer(events);
  const { server, shutdown } = createMcpHttpServer({ getServer, hooks, ...options });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    return shutdown();
  });
  const { port } = server.address() as AddressInfo;
  return { server, shutdown, port, url: `http://127.0.0.1:${port}`, events, seen };
}

/** Connects the SDK's own client. */
async function connectClient(t: TestContext, url: string) {
  const client = new Client({ name: 'test', version: '1.0.0' });
  await client.connect(new SSEClientTransport(new URL('/sse', url)));
  t.after(() => client.close());
  return client;
}

/** Opens a stream with a raw client, and waits for its endpoint event. */
async function openStream(t: TestContext, url: string, headers = {}, path = '/sse') {
  const stream = await openEventStream(url + path, { headers });
  t.after(() => stream.close());
  await stream.waitFor(() => stream.endpoint);
  await stream.next();
  const endpoint = stream.endpoint ? stream.endpoint.pathname + stream.endpoint.search : '';
  const sessionId = stream.endpoint?.searchParams.get('sessionId') ?? '';
  async function next() {
    const found = await stream.next();
    return found && { event: found.event, data: found.data };
  }
  return {
    stream,
    endpoint,
    sessionId,
    next,
    post: (message: object | string, options: RequestOptions = {}) => stream.post(message, options),
    close: () => stream.close(),
  };
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
  return await readRaw(socket);
}

/** Reads until the server ends the connection; a stream that has opened is not waited for. */
async function readRaw(socket: net.Socket) {
  let answer = '';
  for await (const chunk of socket) {
    answer += chunk;
    if (answer.includes('event: endpoint')) break;
  }
  return answer;
}

/** Waits for something that must happen, and fails with a sentence if it takes more than 20 s. */
async function within<T>(promise: Promise<T>, sentence: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new assert.AssertionError({ message: sentence })), 20_000);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Changes the length of all timers that have one given length; all others stay as they are. */
function changeTimers(t: TestContext, name: 'setTimeout' | 'setInterval', from: number, to: number) {
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
      await within(once(output, 'change'), `no line ${pattern} came, but this:\n${printed}`);
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
  // The server runs in another folder, because this one may hold a `.env` of yours.
  const args = [...options, join(folder, 'server.ts')];
  const run = runNode(t, args, { ...START, ...env }, tmpdir());
  const [, url = ''] = /GET (http:\/\/[^/]+)/.exec(await run.line(/^MCP over/)) ?? [];
  await run.line(/^Try/);
  return { ...run, url };
}

// The raw client shows what is on the wire, including what a client library would hide. The doctor
// needs all of it, and the other tests need a part.

type HeaderMap = Record<string, string>;
type JsonRpc = {
  jsonrpc?: unknown;
  id?: unknown;
  method?: unknown;
  result?: unknown;
  error?: unknown;
};
type RequestOptions = {
  method?: string;
  headers?: HeaderMap;
  body?: string;
  /** How long to wait, in milliseconds. */
  limit?: number;
  /** `false` lets an untrusted certificate pass. */
  rejectUnauthorized?: boolean;
};

/** `status` is 0 if no answer came; then `text` says why, and `code` is Node's code for it. */
type Answer = { status: number; headers: http.IncomingHttpHeaders; text: string; code: string };
type Reply = { event: string; message: JsonRpc };

const MAX_BODY = 64 * 1024;
const BODY_LIMIT = 1_000;
const MAX_EVENT = 16 * 1024 * 1024;
const MAX_KEPT = 200;
let lastId = 0;

/** Sends one request on a connection of its own; resolves when the response's head is here. */
function send(url: URL, options: RequestOptions, signal: AbortSignal): Promise<http.IncomingMessage> {
  const { method = 'GET', body, rejectUnauthorized = true } = options;
  const headers = { 'user-agent': 'mcp-doctor', ...options.headers };
  const { request } = url.protocol === 'https:' ? https : http;
  return new Promise((resolve, reject) => {
    const settings = { method, headers, rejectUnauthorized, signal, agent: false as const };
    const outgoing = request(url, settings, resolve);
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

/** Why a request failed, in the words of Node; an AggregateError has a code and no message. */
function failureOf(error: unknown, limit: number) {
  const { name = '', code = '', message = '' } = error as NodeJS.ErrnoException;
  if (name === 'TimeoutError' || code === 'ABORT_ERR') {
    return { code: 'TIMEOUT', text: `no answer within ${seconds(limit)}` };
  }
  return { code: String(code), text: message || String(code) };
}

const seconds = (milliseconds: number) => `${Number((milliseconds / 1000).toPrecision(2))} s`;

/** Reads a body: at most 64 KiB of it, and what comes within a second of the head. */
async function readBody(response: Readable) {
  let text = '';
  const timer = setTimeout(() => response.destroy(), BODY_LIMIT);
  try {
    for await (const chunk of response.setEncoding('utf8')) {
      text += chunk;
      if (text.length > MAX_BODY) break;
    }
  } catch {
    // The time is over, or the connection broke: what has come is all there is.
  }
  clearTimeout(timer);
  return text;
}

/** Sends one request and reads its answer. It never rejects. */
async function ask(url: URL, options: RequestOptions = {}): Promise<Answer> {
  const { limit = 10_000 } = options;
  try {
    const response = await send(url, options, AbortSignal.timeout(limit));
    const { statusCode: status = 0, headers } = response;
    return { status, headers, text: await readBody(response), code: '' };
  } catch (error) {
    return { status: 0, headers: {}, ...failureOf(error, limit) };
  }
}

/** One open stream. Its events wait in `events`, its replies in `replies` under their ids. */
class EventStream {
  readonly url: URL;
  readonly options: RequestOptions;
  answer: Answer = { status: 0, headers: {}, text: '', code: '' };
  /** Where to POST, from the `endpoint` event. */
  endpoint: URL | undefined;
  readonly events: EventSourceMessage[] = [];
  readonly comments: string[] = [];
  readonly replies = new Map<number, Reply>();
  /** What came as a message event although it is not JSON-RPC. */
  notJsonRpc: string | undefined;
  /** The event that named the endpoint. */
  endpointEvent = 'endpoint';
  bytes = 0;
  readonly openedAt = Date.now();
  lastByteAt = this.openedAt;
  ended = false;
  /** Whether the server ended the stream; false if the connection broke. */
  endedCleanly = false;
  private pongs = 0;
  private readonly changes = new EventEmitter().setMaxListeners(0);
  private readonly stop = new AbortController();
  private readonly parser = createParser({
    onEvent: (event) => this.take(event),
    onComment: (comment) => void this.comments.push(comment),
    maxBufferSize: MAX_EVENT,
  });

  constructor(url: URL, options: RequestOptions) {
    this.url = url;
    this.options = options;
  }

  /** Sends the GET, and resolves when it is answered or the limit is over. */
  async open() {
    const { limit = 5_000 } = this.options;
    const timer = setTimeout(() => this.stop.abort(), limit);
    try {
      const headers = { accept: 'text/event-stream', ...this.options.headers };
      const response = await send(this.url, { ...this.options, headers }, this.stop.signal);
      this.answer = { ...this.answer, status: response.statusCode ?? 0, headers: response.headers };
      if (this.isEventStream()) this.listen(response);
      else await this.readRest(response);
    } catch (error) {
      this.answer = { ...this.answer, ...failureOf(error, limit) };
      this.end();
    }
    clearTimeout(timer);
    return this;
  }

  isEventStream() {
    const type = this.answer.headers['content-type'] ?? '';
    return this.answer.status === 200 && type.toLowerCase().startsWith('text/event-stream');
  }

  private async readRest(response: http.IncomingMessage) {
    this.answer.text = await readBody(response);
    this.end();
  }

  private listen(response: http.IncomingMessage) {
    response.on('data', (chunk: Buffer) => {
      this.bytes += chunk.length;
      this.lastByteAt = Date.now();
    });
    const isCompressed = response.headers['content-encoding'] !== undefined;
    const body: Readable = isCompressed ? response.pipe(createUnzip()) : response;
    body.setEncoding('utf8');
    body.on('data', (text: string) => this.feed(text));
    body.on('end', () => this.end());
    body.on('error', () => this.end());
    response.on('end', () => {
      this.endedCleanly = true;
    });
    response.on('error', () => this.end());
    response.on('close', () => this.end());
  }

  private feed(text: string) {
    try {
      // Clients drop a byte order mark; the parser takes it for a part of the first line.
      this.parser.feed(text.replace(/^\uFEFF/, ''));
    } catch {
      this.close(); // one event of more than 16 MiB
    }
    this.changes.emit('change');
  }

  private take(event: EventSourceMessage) {
    if (this.events.length < MAX_KEPT) this.events.push(event);
    const name = event.event ?? 'message';
    if (!this.endpoint && isEndpoint(name, event.data) && URL.canParse(event.data, this.url)) {
      this.endpointEvent = name;
      this.endpoint = new URL(event.data, this.url);
      return;
    }
    const messages = parseMessages(event.data);
    if (!messages && name === 'message') this.notJsonRpc ??= event.data;
    messages?.forEach((message) => this.takeMessage(name, message));
  }

  private takeMessage(event: string, message: JsonRpc) {
    // A flood of pings is not answered by a flood of POSTs.
    const mostPongs = 10 + (Date.now() - this.openedAt) / 250;
    if (message.method === 'ping' && message.id !== undefined && this.pongs < mostPongs) {
      this.pongs += 1;
      void this.post({ jsonrpc: '2.0', id: message.id, result: {} });
    }
    const isReply = message.method === undefined && typeof message.id === 'number';
    if (isReply && this.replies.size < MAX_KEPT) {
      this.replies.set(message.id as number, { event, message });
    }
  }

  /** Waits until `find` finds something; undefined if the stream ends or the limit is over. */
  async waitFor<Found>(find: () => Found | undefined, limit = 10_000) {
    const deadline = Date.now() + limit;
    let found = find();
    while (found === undefined && !this.ended && Date.now() < deadline) {
      await this.change(deadline - Date.now());
      found = find();
    }
    return found;
  }

  private change(limit: number) {
    return new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, limit);
      this.changes.once('change', () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  /** The next event; undefined if the stream ends or the limit is over. */
  async next(limit?: number) {
    const event = await this.waitFor(() => this.events[0], limit);
    if (event) this.events.shift();
    return event;
  }

  /** POSTs a message (or a text as it is) to the endpoint. */
  post(message: object | string, options: RequestOptions = {}): Promise<Answer> {
    const body = typeof message === 'string' ? message : JSON.stringify(message);
    const headers = { 'content-type': 'application/json', ...this.options.headers };
    const settings = { ...this.options, limit: 10_000, headers, ...options, method: 'POST', body };
    return ask(this.endpoint ?? this.url, settings);
  }

  /** POSTs a request and waits for its reply on the stream, and `limit` for each of the two. */
  async request(method: string, params: object = {}, limit = 10_000) {
    lastId += 1;
    const id = lastId;
    const posted = this.post({ jsonrpc: '2.0', id, method, params }, { limit });
    const answered = posted.then((answer) => isTaken(answer));
    const replied = this.waitFor(() => this.replies.get(id), limit);
    // A refused message gets no reply, so nobody needs to wait for one.
    const isWorthWaiting = await Promise.race([answered, replied.then(() => true)]);
    const reply = isWorthWaiting ? await replied : undefined;
    return { id, answer: await posted, reply };
  }

  close() {
    this.stop.abort();
    this.end();
  }

  private end() {
    this.ended = true;
    this.changes.emit('change');
  }
}

/** Opens a stream; look at `stream.answer.status` to see whether it is open. */
function openEventStream(url: string | URL, options: RequestOptions = {}) {
  return new EventStream(new URL(url), options).open();
}

const isTaken = ({ status }: Answer) => status >= 200 && status < 300;

/** Some servers forget the event's name, but a path or a URL as its data gives it away. */
function isEndpoint(name: string, data: string) {
  return name === 'endpoint' || /^(https?:\/|\/)\S+$/.test(data);
}

/** The JSON-RPC messages in a text; undefined if it is anything else. */
function parseMessages(text: string): JsonRpc[] | undefined {
  try {
    const value: unknown = JSON.parse(text);
    const list = (Array.isArray(value) ? value : [value]) as (JsonRpc | null)[];
    const messages = list.filter((message) => message !== null && typeof message === 'object');
    return messages.every(({ jsonrpc }) => jsonrpc === '2.0') && messages.length === list.length
      ? messages : undefined;
  } catch {
    return undefined;
  }
}

// ---- Sessions --------------------------------------------------------------------------------

describe('Sessions', () => {
  test('a GET opens a stream, whose endpoint event names the path and the SDK\'s session id', async (t) => {
    const { url } = await startServer(t, { messagesPath: '/prefix/messages' });
    const { stream, endpoint } = await openStream(t, url);
    assert.equal(stream.answer.status, 200);
    assert.equal(stream.answer.headers['content-type'], 'text/event-stream');
    assert.equal(stream.answer.headers['x-accel-buffering'], 'no');
    assert.equal(stream.endpointEvent, 'endpoint');
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

  test('each session has a server of its own, and its replies go to no other session', async (t) => {
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

  test('the start hook is called when the stream is open, and the end hook when the stream has ended', async (t) => {
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
      },
    };
    const { url, server, shutdown } = await startServer(t, { hooks });
    const opened = once(server, 'request');
    const { close } = await openStream(t, url);
    const [, res] = (await opened) as [unknown, http.ServerResponse];
    const closed = once(res, 'close');
    close();
    await closed;
    gate.emit('open');
    await shutdown();
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
    const { url, shutdown, seen } = await startServer(t, { getServer });
    const { answer } = await openEventStream(`${url}/sse`);
    assert.equal(answer.status, 500);
    assert.equal(answer.text, 'Error handling request\n');
    assert.match(String(error.mock.calls[0]?.arguments[1]), /no server today/);
    await shutdown();
    assert.deepEqual(seen, []);
  });

  test('if two sessions share an McpServer, the second one gets 500 and is forgotten', async (t) => {
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
    const { url, shutdown, seen } = await startServer(t);
    const { connect } = McpServer.prototype;
    t.mock.method(McpServer.prototype, 'connect', async function (this: McpServer, transport: SSEServerTransport) {
      await connect.call(this, transport);
      throw new Error('connect broke');
    });
    const { stream, sessionId } = await openStream(t, url);
    assert.equal(stream.answer.status, 200);
    await untilEnded(stream);
    assert.equal((await postTo(url, sessionId)).status, 404);
    await shutdown();
    assert.deepEqual(seen, []);
  });

  test('a stream that ends while it opens leaves no session, and no hook is called', async (t) => {
    const { url, shutdown, seen } = await startServer(t);
    const { connect } = McpServer.prototype;
    t.mock.method(McpServer.prototype, 'connect', async function (this: McpServer, transport: SSEServerTransport) {
      await connect.call(this, transport);
      await transport.close();
    });
    const { stream, sessionId } = await openStream(t, url);
    await untilEnded(stream);
    assert.equal((await postTo(url, sessionId)).status, 404);
    await shutdown();
    assert.deepEqual(seen, []);
  });

  test('a client that has left before its stream begins gets no session', async (t) => {
    const { server, port, shutdown, seen } = await startServer(t);
    server.prependOnceListener('request', (req) => req.socket.destroy());
    assert.equal(await sendRaw(port, 'GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n'), '');
    await shutdown();
    assert.deepEqual(seen, []);
  });

  test('a stream that is pipelined behind another request gets 400, and is no session', async (t) => {
    const { port, shutdown, seen } = await startServer(t);
    const first = 'GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n';
    const answer = await sendRaw(port, first + requestLine('GET', '/sse'));
    assert.match(answer, /^HTTP\/1\.1 404 .*HTTP\/1\.1 400 .*Pipelined request: wait/s);
    await shutdown();
    assert.deepEqual(seen, []);
  });

  test('a message that arrives after its stream has ended is refused, and no tool runs', async (t) => {
    const { server, port, url, events, shutdown, seen } = await startServer(t);
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
    await shutdown();
    assert.deepEqual(seen, ['start', 'end']);
  });

  test('a comment goes out on each stream every 15 s', async (t) => {
    changeTimers(t, 'setInterval', 15_000, 50);
    const { url } = await startServer(t);
    for (const { stream } of [await openStream(t, url), await openStream(t, url)]) {
      await stream.waitFor(() => stream.comments[1]);
      assert.deepEqual(stream.comments.slice(0, 2), ['keep-alive', 'keep-alive']);
    }
  });

  test('the timer of a session ends with the session', async (t) => {
    const start = t.mock.method(globalThis, 'setInterval');
    const clear = t.mock.method(globalThis, 'clearInterval');
    const { url, shutdown } = await startServer(t);
    await openStream(t, url);
    const { result } = start.mock.calls.find((call) => call.arguments[1] === 15_000) ?? {};
    await shutdown();
    assert.ok(clear.mock.calls.some((call) => call.arguments[0] === result && result !== undefined));
  });

  test('a client that has stopped reading is cut off at the next keep-alive', async (t) => {
    changeTimers(t, 'setInterval', 15_000, 50);
    const { url, port, server, events } = await startServer(t, { getServer: getFlood });
    const { session, res } = await openUnread(t, port, server, events);
    const ended = once(events, 'end');
    await postTo(url, session.id, callTool(1, 'flood'));
    const [cut] = await within(ended, 'the client that reads nothing has still its session');
    assert.equal(cut, session);
    assert.ok(res.destroyed, 'the connection is still open, and holds what was not read');
  });

  test('a client that has stopped reading is cut off at its next message', async (t) => {
    const { url, port, server, events } = await startServer(t);
    const { session } = await openUnread(t, port, server, events);
    const ended = once(events, 'end');
    let answer = await postTo(url, session.id);
    for (let posts = 0; posts < 20 && answer.status === 202; posts += 1) {
      answer = await postTo(url, session.id, ping('1'.repeat(3_900_000)));
    }
    assert.equal(answer.status, 400);
    assert.equal((await ended)[0], session);
  });

  test('a session beyond the limit gets 503, until another session ends', async (t) => {
    const folder = await copyProject(t, { 'MAX_SESSIONS = 10_000': 'MAX_SESSIONS = 2' });
    const { url, line } = await runServer(t, {}, folder);
    const first = await openStream(t, url);
    await openStream(t, url);
    const refused = await fetch(`${url}/sse`);
    assert.equal(refused.status, 503);
    assert.equal(await refused.text(), 'All 2 sessions are in use: try again later\n');
    first.close();
    await line(/^Session .* ended/);
    assert.equal((await openStream(t, url)).stream.answer.status, 200);
  });

  test('when messages of more than 64 MiB are being answered, the next one gets 503', async (t) => {
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
    assert.match(refused.text, /^The server is busy with other messages/);
    for (const socket of sockets) socket.destroy();
    await eventually(async () => (await post(ping(2))).status === 202);
  });

  test('an answer that its client does not read is given up after 30 s', async (t) => {
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
      await within(once(res, 'close'), 'the answer that nobody reads is still there');
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
    const { stream, sessionId } = await openStream(t, url);
    const ending = once(gate, 'ending');
    const done = shutdown();
    await ending;
    await untilEnded(stream);
    gate.emit('open');
    await done;
    assert.deepEqual(ended, [sessionId]);
    const again = http.createServer().listen(port, '127.0.0.1');
    await once(again, 'listening');
    again.close();
  });

  test('shutdown() calls the end hooks before the server\'s `close` event, and resolves after both', async (t) => {
    const order: string[] = [];
    const hooks = { onSessionEnd: () => void order.push('end hook') };
    const { url, server, shutdown } = await startServer(t, { hooks });
    await openStream(t, url);
    server.once('close', () => order.push('close event'));
    await shutdown();
    order.push('resolved');
    assert.deepEqual(order, ['end hook', 'close event', 'resolved']);
  });

  test('shutdown() lets a slow client read the end of its stream', async (t) => {
    changeTimers(t, 'setTimeout', 500, 20_000); // On a busy machine, half a second may be too little.
    const { port, server, url, events, shutdown } = await startServer(t, { getServer: getFlood });
    const { session, reader } = await openUnread(t, port, server, events);
    await postTo(url, session.id, callTool(1, 'flood'));
    const done = shutdown();
    let end = '';
    for await (const chunk of reader.setEncoding('latin1')) end = (end + chunk).slice(-200);
    await done;
    assert.match(end, /"jsonrpc":"2\.0","id":1}\n\n\r\n0\r\n\r\n$/);
  });

  test('shutdown() does not wait for a request that stalls', async (t) => {
    const { server, port, url, shutdown } = await startServer(t);
    const { endpoint } = await openStream(t, url);
    const asked = once(server, 'request');
    const socket = net.connect(port, '127.0.0.1').setEncoding('latin1');
    socket.write(`POST ${endpoint} HTTP/1.1\r\nHost: localhost\r\n`);
    socket.write('Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{');
    await asked;
    const answer = readRaw(socket).catch(() => '');
    await within(shutdown(), 'shutdown() waits for a request that stalls');
    assert.equal(await answer, '');
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
      if (/shutting down|event: endpoint/.test(answer)) gate.emit('open');
    }
    assert.match(answer, /HTTP\/1\.1 503 .*This server is shutting down/s);
    await done;
  });

  test('after kill -9 and a new start, the SDK\'s client reconnects and goes on', async (t) => {
    const first = await runServer(t);
    const client = await connectClient(t, first.url);
    changeTimers(t, 'setTimeout', 3000, 100); // The client waits so long before it tries again.
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

/** Waits until the server has ended the stream, and asserts that it did so cleanly. */
async function untilEnded(stream: EventStream) {
  await stream.waitFor(() => undefined, 30_000);
  assert.ok(stream.ended, 'the stream is still open');
  assert.ok(stream.endedCleanly, 'the connection broke');
}

/** A server whose tool answers with so much that the kernel cannot take it all. */
function getFlood() {
  const server = new McpServer({ name: 'flood', version: '1.0.0' });
  const text = 'x'.repeat(12 * 1024 * 1024);
  server.registerTool('flood', {}, () => ({ content: [{ type: 'text', text }] }));
  return server;
}

/** Opens a stream and reads nothing of it. */
async function openUnread(
  t: TestContext,
  port: number,
  server: http.Server,
  events: EventEmitter,
) {
  const asked = once(server, 'request');
  const started = once(events, 'start');
  const reader = net.connect(port, '127.0.0.1').pause();
  t.after(() => reader.destroy());
  reader.write('GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n');
  const [session] = (await started) as [Session];
  const [, res] = (await asked) as [unknown, http.ServerResponse];
  return { session, res, reader };
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

/** Asks again and again until something is so, where no event tells when. */
async function eventually(isSo: () => Promise<boolean>, message = `never true: ${isSo}`) {
  for (let tries = 0; tries < 500; tries += 1) {
    if (await isSo()) return;
  }
  assert.fail(message);
}

// ---- Requests --------------------------------------------------------------------------------

describe('Requests', () => {
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
      const answer = await sendRaw(port, request);
      assert.equal(statusOf(answer), status, site);
      if (status === 403) assert.match(answer, /Cross-site request: web pages of other sites/);
    }
  });

  test('with a token set, each request must carry it', async (t) => {
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
      assert.equal((await post(ping(1))).status, 202, authorization);
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
    const answers = Promise.all(stalled.map((text) => sendRaw(port, text)));
    for (const answer of await within(answers, 'a request that stalls is still waited for')) {
      assert.match(answer, /^HTTP\/1\.1 408 /);
    }
    await post(ping(3));
    assert.deepEqual(await next(), replyTo(3));
  });

  test('malformed HTTP requests get a 4xx answer or none, and the session goes on', async (t) => {
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
    const { status, text } = await post(ping(1));
    assert.equal(status, 500);
    assert.equal(text, 'Error handling request\n');
    assert.match(error.mock.calls[0]?.arguments.join(' ') ?? '', /^Error handling request: Error: a bug/);
  });

  test('an error of the SDK after the head of an answer ends the answer', async (t) => {
    t.mock.method(console, 'error', () => {});
    const { url } = await startServer(t);
    const { endpoint } = await openStream(t, url);
    type Response = http.ServerResponse;
    t.mock.method(SSEServerTransport.prototype, 'handlePostMessage', async (_req: unknown, res: Response) => {
      res.writeHead(202);
      res.write('begun');
      throw new Error('a bug');
    });
    const headers = { 'content-type': 'application/json' };
    const response = await fetch(url + endpoint, { method: 'POST', headers, body: '{}' });
    assert.equal(await within(response.text(), 'the answer goes on after the error'), 'begun');
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

describe('Start and settings', () => {
  test('`npm start` runs the command that these tests run', async () => {
    const file = join(import.meta.dirname, 'package.json');
    const { scripts } = JSON.parse(await readFile(file, 'utf8'));
    assert.equal(scripts?.start, 'node --import tsx server.ts');
  });

  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    test(`a start serves and logs its sessions, and ${signal} ends them cleanly`, async (t) => {
      const { child, url, lines, exit } = await runServer(t);
      const client = await connectClient(t, url);
      assert.ok((await client.listTools()).tools.length > 0);
      const { stream } = await openStream(t, url);
      child.kill(signal);
      await untilEnded(stream);
      assert.equal(await exit, 0);
      const sessions = lines.filter((line) => line.startsWith('Session '));
      assert.equal(sessions.length, 4);
      assert.match(sessions[0] ?? '', /^Session [0-9a-f]{8} started from 127\.0\.0\.1$/);
      assert.match(sessions[2] ?? '', /^Session [0-9a-f]{8} ended after \d+ ms$/);
    });
  }

  test('end hooks are awaited, also when npm repeats the signal of a Ctrl-C', async (t) => {
    const slow = 'await new Promise((resolve) => setTimeout(resolve, 300));';
    // On a busy machine, more than 100 ms may pass between the two signals.
    const patience = { 'SAME_SIGNAL_MS = 100': 'SAME_SIGNAL_MS = 1e9' };
    const { child, line, lines, exit } = await runSlowHook(t, slow, patience);
    child.kill('SIGINT');
    await line(/^hook has begun/);
    child.kill('SIGINT');
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
    child.kill('SIGTERM');
    assert.equal(await within(exit, 'the process goes on after a second signal'), 1);
  });

  test('a log reader that goes away does not end the sessions', async (t) => {
    const folder = await copyProject(t, {
      '  onSessionStart(session) {\n': "  onSessionStart(session) {\n    console.error('a warning');\n",
    });
    const { child, url } = await runServer(t, {}, folder);
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

  test('the file starts the server, whichever way the command names the file', async (t) => {
    const folder = await copyProject(t);
    const pack = { type: 'module', main: 'server.ts' };
    await writeFile(join(folder, 'package.json'), JSON.stringify(pack));
    for (const args of [['server'], ['.']]) {
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

  test('.env is read from the working directory, the environment wins, and the log names its settings', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'env-'));
    t.after(() => rm(folder, { recursive: true }));
    const env = 'SSE_PATH=/from/file\nMESSAGES_PATH=/ignored\nMCP_TOKEN=t0ken\nOTHER=x\nHOST=\n';
    await writeFile(join(folder, '.env'), env);
    const file = join(import.meta.dirname, 'server.ts');
    const { line, lines } = runNode(t, [file], { ...START, MESSAGES_PATH: '/from/env' }, folder);
    await line(/^Settings from \.env: SSE_PATH, MCP_TOKEN$/);
    await line(/^Try: .*\/from\/file$/);
    await line(/POST http:.*\/from\/env$/);
    assert.doesNotMatch(lines.join('\n'), /t0ken/);
  });

  test('a folder named .env is left alone', async (t) => {
    const folder = await mkdtemp(join(tmpdir(), 'env-'));
    t.after(() => rm(folder, { recursive: true }));
    await mkdir(join(folder, '.env'));
    const file = join(import.meta.dirname, 'server.ts');
    await runNode(t, [file], START, folder).line(/^Try: /);
  });

  test('a .env in UTF-16 or with a byte order mark is refused', async (t) => {
    const folder = await copyProject(t);
    const utf16 = Buffer.from('\uFEFFMCP_TOKEN=t0ken\n', 'utf16le');
    for (const content of [utf16.subarray(2), Buffer.from('\uFEFFMCP_TOKEN=t0ken\n')]) {
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
    [{ HOST: '0.0.0.0', SSE_PATH: '/messages' }, /^SSE_PATH and .*They must differ\. HOST is "0\.0\.0\.0"/],
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
    test(`${JSON.stringify(env)} is refused with a sentence that says what the setting must be`, () => {
      assert.throws(() => readSettings({ ...START, ...env }), (error: Error) => {
        assert.match(error.message, message);
        assert.doesNotMatch(error.message, /\n|hush/);
        return true;
      });
    });
  }

  test('right settings are accepted', () => {
    const token = { ...START, MCP_TOKEN: 't' };
    for (const HOST of ['localhost', 'LocalHost', '127.0.0.2', '::1']) {
      assert.equal(readSettings({ ...START, HOST }).HOST, HOST);
    }
    assert.equal(readSettings({ ...token, HOST: '0.0.0.0' }).HOST, '0.0.0.0');
    assert.equal(readSettings({ ...START, PORT: '8080' }).PORT, 8080);
    const { ALLOWED_HOSTS } = readSettings({ ...START, ALLOWED_HOSTS: 'A.example:80, [fd00::1]' });
    assert.deepEqual(ALLOWED_HOSTS, ['a.example', '[fd00::1]']);
  });
}, { concurrency: 6 });

/** Starts a copy whose end hook does this, and opens a session that ends when the copy ends. */
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

// ==== From here on, delete what you do not need: the doctor ===================================

// Read it in this order: FINDINGS holds all that the doctor can say, and `examine` lists the checks
// in their order. The checks themselves follow in the same order, and then the command line. The
// tests have a faulty server for each finding, and healthy servers on which nothing may be found.

import { randomBytes, randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { createGzip } from 'node:zlib';
import { createMcpExpressApp } from '@modelcontextprotocol/sdk/server/express.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';

/** What the doctor can find. `heading` is the README's heading: the text that people search for. */
const FINDINGS = {
  'unreachable': {
    kind: 'problem',
    heading: 'fetch failed, connect ECONNREFUSED',
    means: 'Nothing answers at this address, because the server is not running, listens on another '
      + 'port, or listens on 127.0.0.1 inside a container.',
    cure: 'Start the server, and check the host and the port; inside a container, let it listen '
      + 'on 0.0.0.0; where HTTP_PROXY is set, set NO_PROXY=localhost,127.0.0.1 for the client.',
  },
  'untrusted-certificate': {
    kind: 'problem',
    heading: 'self-signed certificate',
    means: "The encrypted connection (TLS) fails, usually because the client does not trust the "
      + "server's certificate.",
    cure: "Give the server a certificate that its clients trust, or name the certificate "
      + "file of its CA in the client's NODE_EXTRA_CA_CERTS; if the port speaks plain HTTP, write "
      + "http:// in the URL.",
  },
  'unauthorized': {
    kind: 'problem',
    heading: 'SSE error: Non-200 status code (401)',
    means: 'The server asks for a token, and the client sent none or a wrong one.',
    cure: 'Let the client send its token with the GET and with every POST; give the doctor a '
      + 'token with --header "Authorization: Bearer …".',
  },
  'host-refused': {
    kind: 'problem',
    heading: 'SSE error: Non-200 status code (403)',
    means: 'The server checks the Host or the Origin header and refuses the name in this URL, or '
      + 'the token that the client sent does not permit access.',
    cure: "Add this host name to the server's allowed hosts, or let the proxy send a name that is "
      + "allowed.",
  },
  'streamable-http': {
    kind: 'problem',
    heading: 'SSE error: Non-200 status code (405)',
    means: 'The server speaks MCP at this URL, but over the newer Streamable HTTP transport and '
      + 'not over SSE.',
    cure: "Set the type of this server to `http` in the client's configuration.",
  },
  'wrong-url': {
    kind: 'problem',
    heading: 'SSE error: Non-200 status code (404)',
    means: 'This URL serves no stream of MCP events.',
    cure: 'Use the URL of the stream, whose path often ends in /sse and, behind a proxy, begins '
      + "with the proxy's prefix; if only Streamable HTTP answers, use its URL and set the client's "
      + 'type to `http`.',
  },
  'bad-gateway': {
    kind: 'problem',
    heading: 'SSE error: Non-200 status code (502)',
    means: 'A proxy answers, but the server behind it does not, and a client that meets this '
      + 'answer while it reconnects gives up for good.',
    cure: "Start the server, and compare its address with the one in the proxy's configuration.",
  },
  'buffered': {
    kind: 'problem',
    heading: 'The client hangs while connecting',
    means: 'The first event does not arrive, because a proxy or compression holds the events '
      + 'back, or because the server never sends its `endpoint` event.',
    cure: 'Switch off buffering and compression for the stream (in nginx with `proxy_buffering '
      + 'off;` and `gzip off;`, or with the header `X-Accel-Buffering: no` from the server); '
      + 'without a proxy, let the server send its `endpoint` event first.',
  },
  'other-origin': {
    kind: 'problem',
    heading: 'Endpoint origin does not match connection origin',
    means: "The `endpoint` event names an origin that is not the URL's, often an internal host "
      + 'name, and many clients refuse that.',
    cure: 'Let the server send only a path in this event, such as /messages?sessionId=…, without '
      + 'a scheme and a host.',
  },
  'missing-prefix': {
    kind: 'problem',
    heading: 'Error POSTing to endpoint (HTTP 404)',
    means: 'The path in the `endpoint` event lacks the prefix that a proxy or a mount puts before '
      + 'it, so every POST goes to the wrong place.',
    cure: 'Let the server send the full path, with the prefix, in its `endpoint` event.',
  },
  'id-not-filed': {
    kind: 'problem',
    heading: 'Could not find session',
    means: "The server does not keep the session under the id in the `endpoint` event: it made a "
      + "second id, filed the session under another name, or removed it as soon as the GET's "
      + "handler had returned.",
    cure: 'File each transport under its own `sessionId` before the stream starts, and remove it '
      + 'only when the response closes; in Python, create one SseServerTransport for all '
      + 'sessions, and stay inside `connect_sse` until the client leaves.',
  },
  'filed-late': {
    kind: 'problem',
    heading: 'No transport found for sessionId',
    means: 'The server files the session only after it has sent the `endpoint` event, so a quick '
      + 'client is told that its session is unknown.',
    cure: 'File the transport before you connect it, and await nothing between the two.',
  },
  'removed-early': {
    kind: 'problem',
    heading: 'Session not found',
    means: 'The server ends or forgets the session while its client is still listening, for '
      + 'example in a handler that returns, in a timer or in an error handler.',
    cure: "Remove a transport only when its own response closes, and never end that response in "
      + "the GET's handler.",
  },
  'several-processes': {
    kind: 'problem',
    heading: 'Could not find session, with workers or replicas',
    means: 'Several workers or replicas answer at this URL, and some messages reach one that does '
      + 'not hold the stream.',
    cure: 'Run a single process, or give each replica its own path for messages; affinity by '
      + 'cookie does not help, because MCP clients keep no cookies.',
  },
  'body-already-read': {
    kind: 'problem',
    heading: 'stream is not readable',
    means: 'Something, such as express.json(), reads the body of the POST before the transport '
      + 'can.',
    cure: 'Remove the body parser from this path, or pass its result on with '
      + '`transport.handlePostMessage(req, res, req.body)`.',
  },
  'shared-server': {
    kind: 'problem',
    heading: 'Already connected to a transport',
    means: 'All sessions share one server or one transport, so a second client breaks the first '
      + "client's session, gets that client's replies, or is refused.",
    cure: 'Create a new server and a new transport for each GET, and keep the transports in a map '
      + 'by their ids.',
  },
  'reply-lost': {
    kind: 'problem',
    heading: '-32001 Request timed out',
    means: "A message got no reply on the session's stream: the server failed, another process "
      + 'holds the stream, or the reply went elsewhere, such as into the answer to the POST or to '
      + 'a stream that has ended.',
    cure: "Let the transport that holds this session's stream handle the message, and look in the "
      + "server's log at the time of the POST; if a tool is only slow, give its call a longer "
      + '`timeout`.',
  },
  'wrong-event-name': {
    kind: 'problem',
    heading: 'The client connects, and no reply arrives',
    means: 'The server sends events under a name that clients do not listen for; they know '
      + '`endpoint` for the first event and `message` for all others.',
    cure: 'Write `event: endpoint` before the data of the first event, and `event: message` '
      + 'before the data of each reply.',
  },
  'heartbeat-as-data': {
    kind: 'problem',
    heading: 'Unexpected token \'p\', "ping" is not valid JSON',
    means: 'The server sends something that is not JSON-RPC as a `message` event, probably a '
      + 'heartbeat, and clients fail to read it.',
    cure: 'Send a heartbeat as a comment, which is a line that begins with a colon, followed by '
      + 'an empty line.',
  },
  'killed-by-bad-message': {
    kind: 'problem',
    heading: 'Session not found after one bad message',
    means: 'A single message that is not JSON ends the whole session.',
    cure: 'Answer such a message with 400, and do not close or remove the transport in an error '
      + 'handler.',
  },
  'cut-off': {
    kind: 'problem',
    heading: 'terminated: other side closed',
    means: 'The server or a proxy ends the stream although nobody asked for it, because it limits '
      + 'how long a request may last or how long it may be silent.',
    cure: 'Raise that limit for the path of the stream (in nginx it is `proxy_read_timeout`); a '
      + 'comment every 15 s helps only against a limit on silence.',
  },
  'silent-stream': {
    kind: 'risk',
    heading: 'Body Timeout Error',
    means: 'Nothing is sent on an idle stream, and many clients and proxies give up on a silent '
      + 'stream (Node and Python after 300 s).',
    cure: 'Write a comment (`: keep-alive` and an empty line) to each stream every 15 s.',
  },
  'not-before-initialize': {
    kind: 'risk',
    heading: 'Received request before initialization was complete',
    means: 'A client that reconnects by itself and goes on without `initialize` is locked out.',
    cure: 'Let the client send `initialize` on each new stream, and wait for its reply before it '
      + 'sends anything else; most servers cannot be told to do without it.',
  },
  'unknown-id-accepted': {
    kind: 'risk',
    heading: 'Calls hang after a restart of the server',
    means: 'The server does not refuse a session id that it never gave out, so a client whose '
      + 'session is gone never notices.',
    cure: 'Answer 404 to a POST whose session id is not known.',
  },
  'ended-id-accepted': {
    kind: 'risk',
    heading: 'Memory grows with each session',
    means: 'The server keeps a session after its stream has ended, so memory grows and later '
      + 'calls hang.',
    cure: 'Remove the transport when its response closes (in `transport.onclose`).',
  },
  'any-host-accepted': {
    kind: 'risk',
    heading: 'DNS rebinding',
    means: 'A server on this machine answers requests for a foreign host name, so a web page in '
      + 'your browser can reach it.',
    cure: 'Refuse every request whose Host header is not localhost, 127.0.0.1 or a name that you '
      + 'allow.',
  },
} as const;

type FindingName = keyof typeof FINDINGS;
type Finding = { name: FindingName; kind: 'problem' | 'risk'; seen: string };

// ---- The checks ------------------------------------------------------------------------------

/** The waiting times, in milliseconds; the tests pass shorter ones. */
const LIMITS = {
  /** For the head of the stream, and then for its `endpoint` event. */
  endpointLimit: 5_000,
  /** For the answer to a POST, and then for the reply on the stream. */
  replyLimit: 10_000,
  /** For the answer to a POST with an id that does not exist. */
  refusalLimit: 5_000,
  /** Before something is tried again, and after a stream has been closed. */
  pause: 1_000,
  /** How long the open stream is watched. */
  watch: 40_000,
  /** A shorter watch says nothing about silence: many servers write once in 15 s. */
  shortestSilence: 20_000,
};

type DoctorOptions = Partial<typeof LIMITS> & { headers?: HeaderMap };
type Line = { sign: '✔' | '✘' | '!' | ' '; text: string; finding?: FindingName };
type Diagnosis = { url: string; findings: Finding[]; isComplete: boolean };

/** The server asks for fewer requests (429). Whatever came after that would tell nothing. */
class TooManyRequests extends Error {}

/** All that one visit to a server has to remember. */
type Visit = {
  url: URL;
  headers: HeaderMap;
  limits: typeof LIMITS;
  report: (line: Line) => void;
  findings: Finding[];
  streams: EventStream[];
  rejectUnauthorized: boolean;
  /** What a browser's or Node's fetch would send. */
  encoding: string;
  redirects: number;
  /** The prefix that the server's endpoint lacks. */
  prefix: string;
  /** The path to which POSTs are redirected, such as the same one with a slash. */
  moved: { from: string; to: string } | undefined;
  /** How long to wait on a new stream before its first POST. */
  settle: number;
  /** The answer to a made-up id: that is what "unknown session" looks like on this server. */
  unknown: Answer | undefined;
  /** The other origin that the `endpoint` event names, if it does. */
  otherOrigin: string | undefined;
  /** Whether `tools/list` works once a session is initialized. */
  listsTools: boolean;
  secrets: Set<string>;
  ids: Set<string>;
};

/** What came of one exchange of messages on a stream; `trouble` is undefined if all went well. */
type Outcome = {
  trouble?: 'refused' | 'lost' | 'ended';
  answer: Answer;
  reply?: Reply;
  seen: string;
  /** The id of the request. */
  id?: number;
};

/**
 * Looks at a server from outside and says why its sessions fail.
 *
 * @param options.headers to send with each request, such as an `Authorization`
 * @param report is told each line as soon as it is known
 */
async function diagnose(
  url: string | URL, options: DoctorOptions = {}, report: (line: Line) => void = () => {},
): Promise<Diagnosis> {
  const { headers = {}, ...limits } = options;
  const visit: Visit = {
    url: new URL(url), headers, limits: { ...LIMITS, ...limits }, report,
    findings: [], streams: [], rejectUnauthorized: true, encoding: 'gzip, deflate',
    redirects: 0, prefix: '', moved: undefined, settle: 0, unknown: undefined,
    otherOrigin: undefined, listsTools: false, secrets: new Set(), ids: new Set(),
  };
  rememberSecrets(visit);
  let isComplete = true;
  try {
    await examine(visit);
  } catch (error) {
    if (!(error instanceof TooManyRequests)) throw error;
    isComplete = false;
  } finally {
    closeStreams(visit);
  }
  return { url: hide(visit, visit.url.href), findings: visit.findings, isComplete };
}

async function examine(visit: Visit) {
  const first = await checkStream(visit);
  if (!first) return;
  checkOrigin(visit, first);
  const session = await checkMessages(visit, first);
  checkEvents(visit);
  await checkUnknownId(visit, session ?? first);
  if (session) await checkTogether(visit, session);
  closeStreams(visit);
  await checkEndedId(visit, session ?? first);
  // Where sessions are lost already, what follows would only show that once more.
  const isReliable = session !== undefined && !SESSION_LOST.some((name) => isNamed(visit, name));
  if (isReliable) await checkUninitialized(visit);
  await checkHost(visit);
  await checkWatch(visit, isReliable);
  if (isReliable) await checkBadMessage(visit);
  checkEvents(visit);
}

const SESSION_LOST: FindingName[] = ['id-not-filed', 'removed-early', 'several-processes'];

// What is said about the server.

function pass(visit: Visit, text: string) {
  visit.report({ sign: '✔', text: hide(visit, text) });
}

function note(visit: Visit, text: string) {
  visit.report({ sign: ' ', text: hide(visit, text) });
}

function accuse(visit: Visit, name: FindingName, text: string) {
  if (isNamed(visit, name)) return;
  const { kind } = FINDINGS[name];
  const seen = hide(visit, text);
  visit.findings.push({ name, kind, seen });
  visit.report({ sign: kind === 'risk' ? '!' : '✘', text: seen, finding: name });
}

const isNamed = (visit: Visit, name: FindingName) =>
  visit.findings.some((finding) => finding.name === name);

/** Header values, a password and values in the URL's query may all be somebody's token. */
function rememberSecrets(visit: Visit) {
  const { url, headers, secrets } = visit;
  const parameters = [...url.searchParams].filter(([name, value]) =>
    value.length >= 16 || /key|token|secret|auth|pass/i.test(name));
  const values = [
    ...Object.values(headers), ...parameters.map(([, value]) => value), url.password,
  ];
  const schemes = ['bearer', 'basic', 'token'];
  const words = values.flatMap((value) => [value, ...value.split(/\s+/)])
    .filter((word) => word.length >= 4 && !schemes.includes(word.toLowerCase()));
  for (const word of words) secrets.add(word).add(encodeURIComponent(word)).add(encodeURI(word));
}

/** Hides tokens and session ids, and whatever else in a server's answer looks like either. */
function hide(visit: Visit, text: string) {
  let hidden = text.replace(/\p{Cc}/gu, ' ');
  // The longest first, since one secret can be a part of another.
  const secrets = [...visit.secrets].sort((one, other) => other.length - one.length);
  for (const secret of secrets) hidden = hidden.replaceAll(secret, '***');
  for (const id of [...visit.ids].filter((text) => text !== '')) {
    if (id.length >= 4) hidden = hidden.replaceAll(id, shortenId(id));
    else hidden = hidden.replaceAll(`=${id}`, '=…').replaceAll(`/${id} `, '/… ');
  }
  return hidden.replace(/(?=[\w-]*\d)[\w-]{20,}/g, shortenId);
}

const shortenId = (id: string) => `${id.slice(0, Math.min(8, Math.floor(id.length / 2)))}…`;

function pathOf(url: URL) {
  return url.pathname + url.search;
}

/** `POST /messages?sessionId=6fa1dbae… 404 "Session not found"` */
function describeAnswer(method: string, url: URL, { status, text }: Answer) {
  const quoted = quote(text);
  if (status === 0) return `${method} ${pathOf(url)} failed: ${quoted.slice(1, -1)}`;
  return `${method} ${pathOf(url)} ${status} ${quoted}`.trim();
}

/** A server's text in one short line, without markup and without what could steer a terminal. */
function quote(text: string) {
  const line = text.replace(/<(style|script|head)[\s\S]*?<\/\1>|<[^>]*>|[\p{C}\s]+/gu, ' ')
    .replace(/&(#39|quot);/g, "'").replace(/&\w+;| +/g, ' ').replace(/ +/g, ' ').trim();
  if (line === '') return '';
  return line.length > 100 ? `"${line.slice(0, 100)}…"` : `"${line}"`;
}

// Streams and sessions.

/** Opens a stream as a client would, and waits for its `endpoint` event. */
async function connect(visit: Visit, extra: HeaderMap = {}): Promise<EventStream> {
  const { url, limits, encoding, rejectUnauthorized } = visit;
  const headers = { 'accept-encoding': encoding, ...visit.headers, ...extra };
  const limit = limits.endpointLimit;
  const stream = await openEventStream(url, { headers, limit, rejectUnauthorized });
  visit.streams.push(stream);
  heedLimit(stream.answer);
  const endpoint = await stream.waitFor(() => stream.endpoint, limit);
  if (!endpoint) return stream;
  rememberId(visit, endpoint);
  if (endpoint.origin !== url.origin) visit.otherOrigin ??= endpoint.origin;
  const pathname = visit.prefix + endpoint.pathname;
  const { moved } = visit;
  const target = pathname === moved?.from ? moved.to : pathname;
  stream.endpoint = beside(url, target, endpoint.search);
  return stream;
}

function heedLimit({ status }: Answer) {
  if (status === 429) throw new TooManyRequests();
}

/** Another path at the URL's own origin: no token goes anywhere else, whatever the path is. */
function beside(url: URL, pathname: string, search: string) {
  const target = new URL(url);
  target.pathname = pathname;
  target.search = search;
  return target;
}

function closeStreams(visit: Visit) {
  for (const stream of visit.streams) stream.close();
}

/** The session id in the endpoint, and the parameter that it is in; without one, in the path. */
function findId(endpoint: URL): { id: string; parameter?: string } | undefined {
  const parameters = [...endpoint.searchParams];
  const named = parameters.find(([name]) => /session|(^|_)s?id$/i.test(name)) ?? parameters[0];
  if (named) return { parameter: named[0], id: named[1] };
  const id = endpoint.pathname.split('/').findLast((segment) => /\d/.test(segment));
  return id === undefined ? undefined : { id };
}

function rememberId(visit: Visit, endpoint: URL) {
  const { id, parameter = '' } = findId(endpoint) ?? {};
  if (id === undefined) return;
  const pairs = endpoint.search.slice(1).split('&');
  const asWritten = pairs.find((pair) => new URLSearchParams(pair).has(parameter)) ?? '';
  const asParameter = new URLSearchParams({ id }).toString();
  for (const pair of [asWritten, asParameter]) visit.ids.add(pair.slice(pair.indexOf('=') + 1));
  visit.ids.add(id).add(encodeURIComponent(id));
}

/** The same endpoint with an id that nobody has been given, of the same form. */
function inventId(visit: Visit, endpoint: URL) {
  const found = findId(endpoint);
  if (!found) return undefined;
  const { id, parameter } = found;
  const isUuid = /^[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}$/i.test(id);
  const invented = isUuid ? randomUUID() : id.replace(/[a-z\d]/gi, randomLike).padEnd(9, '7');
  visit.ids.add(invented);
  const url = new URL(endpoint);
  const end = url.pathname.lastIndexOf(id);
  if (parameter) url.searchParams.set(parameter, invented);
  else url.pathname = url.pathname.slice(0, end) + invented + url.pathname.slice(end + id.length);
  return url;
}

function randomLike(character: string) {
  const [byte = 0] = randomBytes(1);
  if (/\d/.test(character)) return String(byte % 10);
  const letter = 'abcdef'.charAt(byte % 6);
  return character === character.toUpperCase() ? letter.toUpperCase() : letter;
}

const INITIALIZE = {
  protocolVersion: '2024-11-05', capabilities: {}, clientInfo: { name: 'doctor', version: '1.0.0' },
};

/** What each client does first on a new stream: `initialize`, then a few harmless requests. */
async function exchange(visit: Visit, stream: EventStream): Promise<Outcome> {
  await sleep(visit.settle);
  const started = await call(visit, stream, 'initialize', INITIALIZE);
  if (started.trouble) return started;
  const notification = { jsonrpc: '2.0', method: 'notifications/initialized' };
  const notified = await stream.post(notification, { limit: visit.limits.replyLimit });
  if (!isTaken(notified)) return refused(stream, notified);
  const listed = await call(visit, stream, 'tools/list');
  if (listed.trouble) return listed;
  visit.listsTools = listed.reply?.message.result !== undefined;
  const pinged = await call(visit, stream, 'ping');
  return pinged.trouble ? pinged : started;
}

/** Sends one request on a session, and says what came of it. */
async function call(
  visit: Visit, stream: EventStream, method: string, params: object = {},
): Promise<Outcome> {
  const { endpoint = stream.url } = stream;
  const { id, answer, reply } = await stream.request(method, params, visit.limits.replyLimit);
  const seen = describeAnswer('POST', endpoint, answer);
  if (reply) return { id, answer, seen, reply };
  if (stream.ended) return { trouble: 'ended', answer, seen: `${seen}, and the stream ended` };
  if (!isTaken(answer) && answer.status !== 0) return refused(stream, answer);
  const limit = seconds(visit.limits.replyLimit);
  const inBody = parseMessages(answer.text) ? "; the reply came in the POST's own body" : '';
  const lost = `${seen}, but no reply to ${method} on the stream within ${limit}${inBody}`;
  return { id, trouble: 'lost', answer, seen: lost };
}

function refused(stream: EventStream, answer: Answer): Outcome {
  heedLimit(answer);
  const { endpoint = stream.url } = stream;
  return { trouble: 'refused', answer, seen: describeAnswer('POST', endpoint, answer) };
}

/** Whether two answers say the same; ids, numbers and paths in them may differ. */
function isSame(visit: Visit, one: Answer, other: Answer) {
  return one.status === other.status && plain(visit, one.text) === plain(visit, other.text);
}

function plain(visit: Visit, text: string) {
  let result = text;
  for (const id of visit.ids) {
    if (id.length >= 4) result = result.replaceAll(id, '');
  }
  return result.replace(/\/[\w/.~%-]*|\d+/g, '').toLowerCase();
}

// The stream and its first event.

async function checkStream(visit: Visit): Promise<EventStream | undefined> {
  const first = await connect(visit);
  if (first.endpoint) return greet(visit, first);
  if (follow(visit, first)) return checkStream(visit);
  await sleep(visit.limits.pause);
  const withCompression = visit.encoding;
  visit.encoding = 'identity';
  const second = await connect(visit);
  if (second.endpoint) {
    await proveCompression(visit, withCompression);
    return greet(visit, second);
  }
  await explainStream(visit, second);
  if (!isNamed(visit, 'untrusted-certificate') || !visit.rejectUnauthorized) return undefined;
  return distrust(visit);
}

function greet(visit: Visit, stream: EventStream) {
  const { headers } = stream.answer;
  const encoding = headers['content-encoding'] ? `, ${headers['content-encoding']}` : '';
  pass(visit, `GET ${pathOf(visit.url)} 200 ${headers['content-type']}${encoding}`);
  return stream;
}

/** Follows a redirect, as clients do; the headers, and so a token, stay with their origin. */
function follow(visit: Visit, { answer }: EventStream) {
  const { location } = answer.headers;
  const isRedirect = answer.status >= 300 && answer.status < 400;
  if (!isRedirect || !location || !URL.canParse(location, visit.url)) return false;
  const target = new URL(location, visit.url);
  if (!target.protocol.startsWith('http') || visit.redirects >= 3) return false;
  const to = target.origin + pathOf(target);
  note(visit, `GET ${pathOf(visit.url)} ${answer.status} leads to ${to}`);
  visit.redirects += 1;
  if (target.origin !== visit.url.origin) visit.headers = {};
  visit.url = target;
  return true;
}

/** The event came without compression: was it the compression, or did it just take a second try? */
async function proveCompression(visit: Visit, withCompression: string) {
  visit.encoding = withCompression;
  const third = await connect(visit);
  third.close();
  if (third.endpoint) return;
  visit.encoding = 'identity';
  const limit = seconds(visit.limits.endpointLimit);
  accuse(visit, 'buffered', `GET ${pathOf(visit.url)} brings no endpoint event within ${limit} to `
    + `a client that accepts "${withCompression}", and brings it to one that does not`);
}

/** Without a token to lose, the doctor goes on past a certificate that it can't trust. */
async function distrust(visit: Visit) {
  if (Object.keys(visit.headers).length > 0 || visit.url.password) return undefined;
  visit.rejectUnauthorized = false;
  note(visit, 'The doctor goes on without checking the certificate.');
  return checkStream(visit);
}

async function explainStream(visit: Visit, stream: EventStream) {
  const { answer } = stream;
  const seen = describeAnswer('GET', visit.url, answer);
  if (answer.status === 0 && answer.code !== 'TIMEOUT') return explainConnection(visit, answer);
  if (answer.status === 401) return accuse(visit, 'unauthorized', seen);
  const probe = await postInitialize(visit, visit.url);
  if (isMcp(probe)) {
    const posted = `POST ${pathOf(visit.url)} ${probe.status}, answered by MCP`;
    return accuse(visit, 'streamable-http', `${seenOf(visit, stream)}; ${posted}`);
  }
  if ([403, 421].includes(answer.status)) return accuse(visit, 'host-refused', seen);
  // Somebody else's session is open already, and the one server for all has no room.
  if (/already (connected|started)/i.test(answer.text)) return accuse(visit, 'shared-server', seen);
  if ([502, 503, 504].includes(answer.status)) return accuse(visit, 'bad-gateway', seen);
  if (stream.bytes === 0 && (answer.status === 0 || isStillOpen(stream))) {
    return explainSilence(visit, stream, probe);
  }
  return explainWrongUrl(visit, stream);
}

const isStillOpen = (stream: EventStream) => stream.isEventStream() && !stream.ended;

function seenOf(visit: Visit, stream: EventStream) {
  const { answer } = stream;
  const type = answer.headers['content-type'] ?? 'without a content type';
  if (stream.isEventStream()) {
    const limit = seconds(visit.limits.endpointLimit);
    return `GET ${pathOf(visit.url)} 200 ${type}, but no endpoint event within ${limit}`;
  }
  if (answer.status === 200) {
    return `GET ${pathOf(visit.url)} 200 ${type}, which is not an event stream`;
  }
  return describeAnswer('GET', visit.url, answer);
}

function explainConnection(visit: Visit, { code, text }: Answer) {
  const seen = `GET ${visit.url.origin}${pathOf(visit.url)} failed: ${code} ${quote(text)}`;
  if (/CERT|SIGNATURE|HOSTNAME|SSL|TLS|EPROTO/.test(code)) {
    return accuse(visit, 'untrusted-certificate', seen);
  }
  const names = ['HTTP_PROXY', 'http_proxy', 'HTTPS_PROXY', 'https_proxy', 'ALL_PROXY'];
  const proxy = names.find((name) => process.env[name]);
  const hint = proxy ? `; ${proxy} is set here, so clients that obey it ask that proxy` : '';
  return accuse(visit, 'unreachable', seen + hint);
}

async function explainSilence(visit: Visit, stream: EventStream, probe: Answer) {
  const limit = seconds(visit.limits.endpointLimit);
  const seen = stream.answer.status === 0
    ? `GET ${pathOf(visit.url)} gets no answer within ${limit}` : seenOf(visit, stream);
  if (stream.answer.status === 200 || probe.status > 0) {
    const others = probe.status > 0
      ? `, while a POST to the same URL is answered (${probe.status})` : '';
    return accuse(visit, 'buffered', seen + others);
  }
  const root = await ask(new URL('/', visit.url), requestOptions(visit));
  if (root.status > 0) {
    return accuse(visit, 'buffered', `${seen}, while GET / is answered (${root.status})`);
  }
  return accuse(visit, 'unreachable', `${seen}, and neither does any other request`);
}

async function explainWrongUrl(visit: Visit, stream: EventStream) {
  const found: string[] = [];
  const paths = ['/sse', '/mcp', '/mcp/sse', 'sse', 'mcp/sse'];
  const urls = new Set(paths.map((path) => new URL(path, visit.url).href));
  urls.delete(visit.url.href);
  for (const href of urls) {
    const url = new URL(href);
    const kind = await kindOf(visit, url);
    if (kind) found.push(`${url.pathname} answers with ${kind}`);
  }
  const beside = found.length > 0 ? found.join(', ') : 'none of /sse, /mcp and /mcp/sse answers';
  accuse(visit, 'wrong-url', `${seenOf(visit, stream)}; on the same server, ${beside}`);
}

async function kindOf(visit: Visit, url: URL) {
  const stream = await openEventStream(url, requestOptions(visit));
  stream.close();
  if (stream.isEventStream()) return 'an event stream';
  if (stream.answer.status === 404 || stream.answer.status === 0) return undefined;
  return isMcp(await postInitialize(visit, url)) ? 'Streamable HTTP' : undefined;
}

function requestOptions(visit: Visit): RequestOptions {
  const { headers, rejectUnauthorized, limits } = visit;
  return { headers, rejectUnauthorized, limit: limits.endpointLimit };
}

function postInitialize(visit: Visit, url: URL) {
  const accept = 'application/json, text/event-stream';
  const headers = { 'content-type': 'application/json', accept, ...visit.headers };
  const body = JSON.stringify(initialize());
  return ask(url, { ...requestOptions(visit), method: 'POST', headers, body });
}

/** Whether this is MCP's own answer to `initialize`: a result, or an error that is about it. */
function isMcp({ status, text }: Answer) {
  const lines = text.split(/\r?\n/).filter((line) => line.startsWith('data:'));
  const data = lines.length > 0 ? lines.map((line) => line.slice(5)).join('') : text;
  const [message] = parseMessages(data) ?? [];
  const isError = message?.error !== undefined && [200, 400].includes(status);
  return message?.result !== undefined || isError;
}

function checkOrigin(visit: Visit, stream: EventStream) {
  const { endpoint = visit.url } = stream;
  if (visit.otherOrigin === undefined) {
    return pass(visit, `The endpoint event says where to POST: ${pathOf(endpoint)}`);
  }
  accuse(visit, 'other-origin', `The endpoint event names ${visit.otherOrigin}${pathOf(endpoint)}, `
    + `while the URL is at ${visit.url.origin}`);
}

// Messages and their replies.

/** The session on which messages are answered, after all that stands in their way is named. */
async function checkMessages(visit: Visit, first: EventStream) {
  let stream = first;
  for (let attempt = 0; attempt < 4; attempt += 1) {
    const outcome = await exchange(visit, stream);
    if (!outcome.trouble) {
      pass(visit, `${outcome.seen}, and the replies come on the stream`);
      return stream;
    }
    const isWorthAnother = await explainTrouble(visit, stream, outcome, attempt === 0);
    stream.close();
    if (!isWorthAnother) return undefined;
    await sleep(visit.limits.pause);
    stream = await connect(visit);
    if (!stream.endpoint) {
      accuse(visit, 'reply-lost', `${outcome.seen}, and then no new stream can be opened`);
      return undefined;
    }
  }
  return undefined;
}

/** Names what stands behind a trouble; true if another try makes sense. */
async function explainTrouble(
  visit: Visit, stream: EventStream, outcome: Outcome, isFirst: boolean,
): Promise<boolean> {
  // A stream that ends by itself takes its session along: the end is the cause, if there is one.
  if (outcome.trouble === 'refused') await stream.waitFor(() => undefined, visit.limits.pause);
  if (stream.ended && isFirst) return true;
  if (stream.ended) return explainEarlyEnd(visit, stream, outcome);
  if (outcome.trouble === 'refused') return explainRefusal(visit, stream, outcome, isFirst);
  return explainLoss(visit, stream, outcome, isFirst);
}

function explainEarlyEnd(visit: Visit, stream: EventStream, { seen }: Outcome) {
  const lived = Date.now() - stream.openedAt;
  if (lived < 3 * visit.limits.pause) {
    accuse(visit, 'removed-early', `The stream ends by itself after its endpoint event; ${seen}`);
  } else {
    accuse(visit, 'cut-off', `The stream ended by itself after ${seconds(lived)}`);
  }
  return false;
}

/** A message was accepted, or not even answered, and no reply came. */
async function explainLoss(
  visit: Visit, stream: EventStream, outcome: Outcome, isFirst: boolean,
) {
  const { answer, seen } = outcome;
  const isUnanswered = answer.code === 'TIMEOUT';
  const isBusy = isUnanswered && !await answersBeside(visit);
  if (isUnanswered && !isBusy) {
    const { endpoint = stream.url } = stream;
    visit.unknown ??= await postUnknown(visit, endpoint);
    if (visit.unknown?.code === 'TIMEOUT') return explainUnknown(visit, '-', outcome);
  }
  // A web site beside the server may answer each POST with its own page.
  if (await findPrefix(visit, stream, outcome)) return true;
  const busy = isBusy ? '; while a stream is open, the server answers nothing else' : '';
  if (!isFirst) accuse(visit, 'reply-lost', seen + busy);
  return isFirst;
}

// What servers say of a valid message whose body somebody else has read.
const BODY_TEXTS = [
  'stream is not readable', 'stream encoding should not be set', 'Invalid message: [object Object]',
  'Could not parse message', 'Unexpected end of JSON input', 'body used already',
];

/** A server that takes one request at a time answers nothing else beside an open stream. */
async function answersBeside(visit: Visit) {
  const nowhere = beside(visit.url, `/nowhere-${randomUUID()}`, '');
  const { code } = await ask(nowhere, requestOptions(visit));
  return code !== 'TIMEOUT';
}

// With these, a server or a proxy speaks of the path, the body or itself, and not of a session.
const NOT_ABOUT_SESSION = [301, 302, 303, 307, 308, 405, 411, 413, 415, 501, 502, 504];

async function explainRefusal(
  visit: Visit, stream: EventStream, outcome: Outcome, isFirst: boolean,
) {
  const { answer, seen } = outcome;
  if (followPost(visit, stream, answer)) return true;
  if (await findPrefix(visit, stream, outcome)) return true;
  const before = stream.replies.size > 0 ? '+-' : '-';
  const again = await stream.post(pingMessage(), { limit: visit.limits.refusalLimit });
  const isRepeated = isSame(visit, again, answer);
  const name = nameOfAnswer(answer);
  if (isRepeated && name) {
    accuse(visit, name, seen);
    return false;
  }
  if (visit.otherOrigin !== undefined) {
    note(visit, `${seen}: the doctor posts only to the URL's own origin, so it can say no more about this.`);
    return false;
  }
  if (NOT_ABOUT_SESSION.includes(answer.status)) {
    if (!isFirst) accuse(visit, 'reply-lost', seen);
    return isFirst;
  }
  const { endpoint = stream.url } = stream;
  visit.unknown ??= await postUnknown(visit, endpoint);
  const isUnknown = !visit.unknown || isSame(visit, answer, visit.unknown);
  if (isUnknown || (isFirst && !isRepeated)) return explainUnknown(visit, before, outcome);
  accuse(visit, 'reply-lost', seen);
  return false;
}

/** Tells apart why sessions are unknown; true if another try makes sense. */
async function explainUnknown(visit: Visit, before: string, { answer, seen }: Outcome) {
  // A server that fails on every POST says nothing about the session.
  const isAboutSession = /session|transport|undefined|null|NoneType|KeyError/i.test(answer.text);
  const isFailure = answer.status === 500 && !isAboutSession;
  const otherwise = isFailure ? 'reply-lost' : 'id-not-filed';
  const name = await tellApart(visit, before, seen, otherwise);
  return name === undefined || name === 'filed-late';
}

function nameOfAnswer({ status, text }: Answer): FindingName | undefined {
  // Some servers answer 401 or 403 to an id that they do not know.
  const isOfSession = /session/i.test(text) && !/auth|token|login|credential/i.test(text);
  if (status === 401 && !isOfSession) return 'unauthorized';
  if ([403, 421].includes(status) && !isOfSession) return 'host-refused';
  return isBodyRead(text) ? 'body-already-read' : undefined;
}

function isBodyRead(text: string) {
  // The code of a parse error, which some servers also give for an unknown session.
  const isParseError = text.includes('-32700') && !/session/i.test(text);
  return isParseError || BODY_TEXTS.some((words) => text.includes(words));
}

/** Follows a redirect of a POST within its origin, as clients do; 307 and 308 keep the body. */
function followPost(visit: Visit, stream: EventStream, { status, headers }: Answer) {
  const { endpoint = stream.url } = stream;
  const { location } = headers;
  const isRedirect = status === 307 || status === 308;
  if (!isRedirect || visit.moved || !location || !URL.canParse(location, endpoint)) return false;
  const target = new URL(location, endpoint);
  if (target.origin !== endpoint.origin) return false;
  note(visit, `POST ${pathOf(endpoint)} ${status} leads to ${pathOf(target)}`);
  visit.moved = { from: endpoint.pathname, to: target.pathname };
  return true;
}

function initialize() {
  return { ...pingMessage(), method: 'initialize', params: INITIALIZE };
}

function pingMessage() {
  lastId += 1;
  return { jsonrpc: '2.0', id: lastId, method: 'ping' };
}

/** Looks for the endpoint under the prefixes of the URL's own path. */
async function findPrefix(visit: Visit, stream: EventStream, { answer, seen }: Outcome) {
  const { endpoint = stream.url } = stream;
  const { pathname, search } = endpoint;
  const segments = visit.url.pathname.split('/').slice(1, -1);
  const prefixes = segments.map((_, index) => `/${segments.slice(0, index + 1).join('/')}`)
    .filter((prefix) => !pathname.startsWith(`${prefix}/`)).reverse();
  if (visit.prefix !== '' || prefixes.length === 0) return false;
  stream.endpoint = beside(endpoint, `/nowhere-${randomUUID()}${pathname}`, search);
  const nowhere = await stream.post(pingMessage(), { limit: visit.limits.refusalLimit });
  const isAboutSession = !isSame(visit, nowhere, answer);
  for (const prefix of prefixes) {
    stream.endpoint = beside(endpoint, prefix + pathname, search);
    const tried = await stream.request('initialize', INITIALIZE, visit.limits.refusalLimit);
    const isOther = tried.answer.status > 0 && !isSame(visit, tried.answer, answer);
    if (!tried.reply && (isAboutSession || !isOther)) continue;
    visit.prefix = prefix;
    const instead = describeAnswer('POST', stream.endpoint, tried.answer);
    accuse(visit, 'missing-prefix', `${seen}, but ${instead}`);
    return true;
  }
  stream.endpoint = endpoint;
  return false;
}

/**
 * Names why sessions are unknown, by several POSTs on each of several new streams. Marks are a
 * text for each stream: + for a POST that was accepted, - for one that was refused.
 */
async function tellApart(
  visit: Visit, before: string, seen: string, ifNoneIsTaken: FindingName = 'id-not-filed',
) {
  const marks: string[] = [];
  for (let count = 0; count < 2 && !marks.some(isMixed); count += 1) {
    marks.push(await markPosts(visit));
  }
  const isShownAgain = marks.some((text) => text.includes('-'));
  const telling = [before, ...marks].filter((text) => text !== '');
  const name = isShownAgain ? nameOfMarks(telling, ifNoneIsTaken) : undefined;
  if (name === 'filed-late') visit.settle = visit.limits.pause;
  if (name) {
    const order = marks.map(describeMarks).join('; on another one, ');
    accuse(visit, name, `${seen}; on a new stream, ${order}`);
  }
  return name;
}

/** `--++` is told as `2 POSTs were refused, then 2 POSTs were accepted`. */
function describeMarks(marks: string) {
  const runs = marks.match(/\++|-+/g) ?? [];
  const words = runs.map((run) => {
    const verb = run.length === 1 ? 'was' : 'were';
    return `${countOf(run.length, 'POST')} ${verb} ${run.startsWith('+') ? 'accepted' : 'refused'}`;
  });
  return words.join(', then ');
}

const isMixed = (marks: string) => /-\++-|\+-+\+/.test(marks);

function nameOfMarks(marks: string[], ifNoneIsTaken: FindingName): FindingName {
  if (marks.every((text) => /^-+$/.test(text))) return ifNoneIsTaken;
  const isLate = marks.every((text) => /^-*\+*$/.test(text));
  if (isLate && marks.some((text) => text.includes('-+'))) return 'filed-late';
  const isRemoved = marks.every((text) => /^\+*-*$/.test(text));
  if (isRemoved && marks.some((text) => text.includes('+-'))) return 'removed-early';
  return 'several-processes';
}

/** Three POSTs right after the event, and six a moment later: up to eight processes show. */
async function markPosts(visit: Visit) {
  const stream = await connect(visit);
  const limit = visit.limits.refusalLimit;
  // A server that does not even answer an unknown id costs the whole limit each time.
  const most = visit.unknown?.code === 'TIMEOUT' ? 6 : 9;
  let marks = '';
  for (let count = 0; count < most && !isMixed(marks); count += 1) {
    if (count === most / 3) await sleep(visit.limits.pause);
    const message = count === 0 ? initialize() : pingMessage();
    const answer = await stream.post(message, { limit });
    heedLimit(answer);
    // What is refused after the stream's own end says nothing.
    if (stream.ended) break;
    const isRead = isBodyRead(answer.text);
    if (isRead) accuse(visit, 'body-already-read', describeAnswer('POST', visit.url, answer));
    marks += isTaken(answer) || isRead ? '+' : '-';
  }
  stream.close();
  return marks;
}

/** Names that clients don't listen for, and messages that they can't read. */
function checkEvents(visit: Visit) {
  for (const stream of visit.streams) {
    const names = [...stream.replies.values()].map(({ event }) => event);
    const other = names.find((name) => name !== 'message');
    if (other) accuse(visit, 'wrong-event-name', `A reply came as the event ${quote(other)}`);
    if (stream.endpointEvent !== 'endpoint') {
      accuse(visit, 'wrong-event-name', 'The endpoint came without the line `event: endpoint`');
    }
    if (stream.notJsonRpc !== undefined) {
      const text = quote(stream.notJsonRpc) || 'nothing';
      accuse(visit, 'heartbeat-as-data', `A message event came with ${text} as its data`);
    }
  }
}

// Ids that are unknown or have ended.

async function postUnknown(visit: Visit, endpoint: URL): Promise<Answer | undefined> {
  const url = inventId(visit, endpoint);
  if (!url) return undefined;
  const headers = { 'content-type': 'application/json', ...visit.headers };
  const options = { ...requestOptions(visit), limit: visit.limits.refusalLimit, headers };
  return ask(url, { ...options, method: 'POST', body: JSON.stringify(pingMessage()) });
}

const isAccepted = (answer: Answer) => isTaken(answer) || answer.code === 'TIMEOUT';

async function checkUnknownId(visit: Visit, stream: EventStream) {
  const { endpoint = stream.url } = stream;
  visit.unknown ??= await postUnknown(visit, endpoint);
  if (!visit.unknown) return note(visit, 'The endpoint event names no session id.');
  if (visit.unknown.status === 0 && visit.unknown.code !== 'TIMEOUT') return;
  const again = isAccepted(visit.unknown) ? await postUnknown(visit, endpoint) : undefined;
  const { status, text } = visit.unknown;
  const answer = status === 0 ? text : `${status} ${quote(text)}`.trim();
  const seen = `POST with a made-up id: ${answer}`;
  if (again && isAccepted(again)) accuse(visit, 'unknown-id-accepted', seen);
  else pass(visit, seen);
}

async function checkEndedId(visit: Visit, stream: EventStream) {
  if (!visit.unknown || visit.unknown.status === 0 || isTaken(visit.unknown)) return;
  const { endpoint = stream.url } = stream;
  const limit = visit.limits.refusalLimit;
  await sleep(visit.limits.pause);
  let answer = await stream.post(pingMessage(), { limit });
  if (isAccepted(answer)) {
    await sleep(visit.limits.pause);
    answer = await stream.post(pingMessage(), { limit });
  }
  const seen = `After its stream has ended: ${describeAnswer('POST', endpoint, answer)}`;
  // The TypeScript SDK says this of a transport that is still filed although its stream is gone.
  // The session is refused all the same, so this is worth a word and no finding.
  const isKept = answer.text.includes('SSE connection not established');
  if (isAccepted(answer)) accuse(visit, 'ended-id-accepted', seen);
  else if (isKept) note(visit, `${seen}: remove each transport when its response closes.`);
  else if (answer.status === 0) note(visit, seen);
  else pass(visit, seen);
}

// More sessions.

async function checkTogether(visit: Visit, first: EventStream) {
  const trouble = await tryTogether(visit, first);
  if (!trouble) return pass(visit, 'Two sessions at a time each get their own replies');
  closeStreams(visit);
  await sleep(visit.limits.pause);
  const name = trouble.isRefusal ? await tellApart(visit, '+', trouble.seen) : undefined;
  if (name && name !== 'filed-late') return;
  const fresh = await connect(visit);
  const alone = fresh.endpoint ? await exchange(visit, fresh) : undefined;
  const again = alone && !alone.trouble ? await tryTogether(visit, fresh) : trouble;
  if (again?.ended && await isCutAlone(visit, again.ended)) return;
  const cause = again?.isMixed ? 'several-processes' : 'shared-server';
  if (again) return accuse(visit, cause, again.seen);
  if (!name) note(visit, `${trouble.seen}; a second try went well.`);
}

type Together = {
  seen: string;
  isRefusal: boolean;
  /** Whether the session that was refused is taken a moment later. */
  isMixed?: boolean;
  ended?: EventStream;
};

/** Whether a stream that is alone ends after the same time: then no other session has ended it. */
async function isCutAlone(visit: Visit, ended: EventStream) {
  const lived = Date.now() - ended.openedAt;
  closeStreams(visit);
  const alone = await connect(visit);
  await alone.waitFor(() => undefined, lived + visit.limits.pause);
  if (!alone.endpoint || !alone.ended) return false;
  const again = seconds(Date.now() - alone.openedAt);
  const first = `The stream ended by itself after ${seconds(lived)}`;
  const seen = `${first}, and a stream that was alone ended after ${again}`;
  accuse(visit, 'cut-off', seen);
  return true;
}

/** What goes wrong with a session while a second one is open beside it. */
async function tryTogether(visit: Visit, first: EventStream): Promise<Together | undefined> {
  const second = await connect(visit);
  if (!second.endpoint) {
    const text = `With one stream open, a second one fails: ${seenOf(visit, second)}`;
    return { seen: text, isRefusal: false };
  }
  const outcomes = [await exchange(visit, second)];
  for (const stream of [first, second, first, second]) {
    if (outcomes.at(-1)?.trouble) break;
    outcomes.push(await call(visit, stream, 'ping'));
  }
  const last = outcomes.at(-1);
  if (!last?.trouble) return findStrays(first, second);
  const [whose, other] = outcomes.length % 2 === 0 ? ['first', second] : ['second', first];
  const isStray = last.id !== undefined && other.replies.has(last.id);
  const stray = isStray ? "; the reply came on the other session's stream" : '';
  const seen = `With two streams open, the ${whose} session fails: ${last.seen}${stray}`;
  const isRefusal = last.trouble === 'refused';
  const ended = [first, second].find((stream) => stream.ended);
  if (ended) return { seen, isRefusal, ended };
  const failed = other === second ? first : second;
  const again = await failed.post(pingMessage(), { limit: visit.limits.refusalLimit });
  return { seen, isRefusal, isMixed: isRefusal && isTaken(again) };
}

/** Each request has an id of its own, so the same one on both streams is somebody else's. */
function findStrays(first: EventStream, second: EventStream): Together | undefined {
  const isOnBoth = [...second.replies.keys()].some((id) => first.replies.has(id));
  if (!isOnBoth) return undefined;
  return { seen: 'With two streams open, each reply comes on both of them', isRefusal: false };
}

/** A new session for one more check; undefined if none can be had any more. */
async function freshSession(visit: Visit): Promise<EventStream | undefined> {
  const wasLate = isNamed(visit, 'filed-late');
  const stream = await connect(visit);
  if (!stream.endpoint) return undefined;
  const outcome = await exchange(visit, stream);
  if (!outcome.trouble) return stream;
  const isLate = await isUnknownNow(visit, outcome) && isNamed(visit, 'filed-late');
  return isLate && !wasLate ? freshSession(visit) : undefined;
}

/** A session may turn out unknown only now, by chance: then it is told why. */
async function isUnknownNow(visit: Visit, { trouble, answer, seen }: Outcome) {
  const { unknown } = visit;
  if (trouble !== 'refused' || !unknown || !isSame(visit, answer, unknown)) return false;
  await tellApart(visit, '-', seen);
  return true;
}

async function checkUninitialized(visit: Visit) {
  if (!visit.listsTools) return;
  let seen = '';
  for (let count = 0; count < 2; count += 1) {
    const stream = await connect(visit);
    await sleep(visit.settle);
    const outcome = stream.endpoint && await call(visit, stream, 'tools/list');
    stream.close();
    if (!outcome || await isUnknownNow(visit, outcome)) return;
    if (outcome.reply?.message.result !== undefined) {
      return pass(visit, 'tools/list on a new stream is answered without initialize');
    }
    const error = outcome.reply && `tools/list without initialize: ${replyText(outcome.reply)}`;
    seen = error ?? `tools/list without initialize: ${outcome.seen}`;
  }
  accuse(visit, 'not-before-initialize', seen);
}

const replyText = ({ message }: Reply) => quote(JSON.stringify(message.error ?? message));

/** A web page can make a browser ask 127.0.0.1 under the page's own name (DNS rebinding). */
async function checkHost(visit: Visit) {
  const { url } = visit;
  const isLoopback = /^(localhost|127(\.\d+){3}|\[::1\])$/.test(url.hostname);
  if (!isLoopback || url.protocol === 'https:') return;
  const host = `rebinding.example:${url.port || 80}`;
  const stream = await connect(visit, { host });
  const seen = `${describeAnswer('GET', url, stream.answer)} with the foreign Host ${host}`;
  if (stream.answer.status === 0) return note(visit, seen);
  if (stream.answer.status !== 200) return pass(visit, seen);
  // The SDK's own check looks at POSTs only: the stream alone is of no use to a web page.
  const posted = await stream.post(pingMessage(), { limit: visit.limits.refusalLimit });
  stream.close();
  const isUnknown = visit.unknown !== undefined && isSame(visit, posted, visit.unknown);
  const isRefused = [403, 421].includes(posted.status) && !isUnknown;
  if (isRefused) return pass(visit, `${seen}, but a POST is refused`);
  accuse(visit, 'any-host-accepted', seen);
}

// The watch.

async function checkWatch(visit: Visit, canPost: boolean) {
  if (isNamed(visit, 'cut-off')) return;
  const session = canPost ? await freshSession(visit) : undefined;
  const stream = session ?? await connect(visit);
  if (!stream.endpoint) return note(visit, 'No new stream could be opened for the watch.');
  const { watch, shortestSilence } = visit.limits;
  note(visit, `Watching an open stream for ${seconds(watch)} …`);
  const startedAt = Date.now();
  await stream.waitFor(() => undefined, watch);
  if (stream.ended) return explainEnd(visit, Date.now() - stream.openedAt);
  const silence = Date.now() - Math.max(startedAt, stream.lastByteAt);
  const isSilent = silence > 0.9 * watch;
  if (isSilent && watch >= shortestSilence) {
    accuse(visit, 'silent-stream', `No byte came on the idle stream for ${seconds(watch)}`);
  } else {
    const signs = isSilent ? '' : ' and gives signs of life';
    pass(visit, `The stream stays open for ${seconds(watch)}${signs}`);
  }
  if (session) await checkAfterWatch(visit, session);
}

/** Ends twice after some time: then something ends it; once may have been a restart. */
async function explainEnd(visit: Visit, lived: number) {
  if (isNamed(visit, 'removed-early')) return;
  const stream = await connect(visit);
  const limit = Math.min(2 * lived + visit.limits.pause, visit.limits.watch + visit.limits.pause);
  await stream.waitFor(() => undefined, limit);
  const again = Date.now() - stream.openedAt;
  if (!stream.ended || !stream.endpoint) {
    return note(visit, `The stream ended once after ${seconds(lived)}; a second one did not.`);
  }
  const times = `${seconds(lived)}, and a second one after ${seconds(again)}`;
  const isIdle = stream.lastByteAt - stream.openedAt < again / 2;
  const silence = isIdle ? ', both silent until then' : ', though it was not silent';
  accuse(visit, 'cut-off', `The stream ended by itself after ${times}${silence}`);
}

/** A timer may have removed the session while its stream stayed open. */
async function checkAfterWatch(visit: Visit, stream: EventStream) {
  const { endpoint = stream.url } = stream;
  const answers: Answer[] = [];
  for (let count = 0; count < 3; count += 1) {
    answers.push(await stream.post(pingMessage(), { limit: visit.limits.refusalLimit }));
  }
  answers.forEach(heedLimit);
  const [first] = answers;
  if (!first || answers.every(isTaken)) return;
  const name = answers.some(isTaken) ? 'several-processes' : 'removed-early';
  const isUnknown = visit.unknown && isSame(visit, first, visit.unknown);
  if (!isUnknown && !answers.some(isTaken)) return;
  const seen = describeAnswer('POST', endpoint, first);
  const age = seconds(Date.now() - stream.openedAt);
  accuse(visit, name, `${seen} on a stream that has been open for ${age}`);
}

/** The last check of all, since some servers fall over it altogether. */
async function checkBadMessage(visit: Visit) {
  let seen = '';
  for (let count = 0; count < 2; count += 1) {
    const stream = await freshSession(visit);
    if (!stream) break;
    const { endpoint = stream.url } = stream;
    const bad = await stream.post('This is not JSON.', { limit: visit.limits.replyLimit });
    const outcome = await call(visit, stream, 'ping');
    stream.close();
    const first = `A message that is not JSON: ${describeAnswer('POST', endpoint, bad)}`;
    const isOfSession = /session|transport/i.test(bad.text);
    if (isOfSession && await isUnknownNow(visit, { ...refused(stream, bad), seen: first })) return;
    if (!outcome.trouble) return pass(visit, `${first}, and the session goes on`);
    seen = `${first}; then ping: ${outcome.seen}`;
    await sleep(visit.limits.pause);
  }
  if (seen !== '') accuse(visit, 'killed-by-bad-message', seen);
}

// ---- The command line ------------------------------------------------------------------------

const USAGE = 'npm run doctor -- [URL] [--json] [--watch SECONDS] [--header "Name: value"]';
const DEFAULT_URL = 'http://127.0.0.1:3000/sse';
const CHECKED = 'Checked: the connection, the endpoint event, POSTs and their replies, unknown and '
  + 'ended ids, two sessions at a time, a foreign Host, a bad message, and a watched stream.';
const NOT_SEEN = 'From outside, the doctor cannot see memory, hooks, or what other clients do.';

type Wanted = { url: URL; json: boolean; options: DoctorOptions };

/**
 * The command `npm run doctor`.
 *
 * @returns the exit code: 0 without problems, 1 with a problem, 2 if it was called wrongly
 */
async function runDoctor(
  args: string[], print = console.log, printError = console.error, limits: DoctorOptions = {},
) {
  const wanted = readArguments(args);
  if (typeof wanted === 'string') {
    printError(`${wanted} Usage: ${USAGE}`);
    return 2;
  }
  const { url, json, options } = wanted;
  if (!json && args.every((arg) => !URL.canParse(arg))) {
    print(`No URL was given, so the doctor looks at ${DEFAULT_URL}.`);
  }
  const report = (line: Line) => formatLine(line).forEach((text) => print(text));
  const diagnosis = await diagnose(url, { ...limits, ...options }, json ? undefined : report);
  const { url: shown, findings } = diagnosis;
  print(json ? JSON.stringify({ url: shown, findings }) : summaryOf(diagnosis));
  return findings.some(({ kind }) => kind === 'problem') ? 1 : 0;
}

/** What is wanted, or a sentence that says what is wrong. */
function readArguments(args: string[]): Wanted | string {
  try {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        json: { type: 'boolean' },
        watch: { type: 'string' },
        header: { type: 'string', multiple: true },
      },
    });
    if (positionals.length > 1) return 'Name one URL only.';
    const [url = DEFAULT_URL] = positionals;
    if (!/^https?:\/\/./i.test(url) || !URL.canParse(url)) {
      return `The URL must be a whole one with http:// or https://, such as ${DEFAULT_URL}.`;
    }
    const headers = readHeaders(values.header ?? []);
    const options: DoctorOptions = { headers };
    if (values.watch !== undefined) options.watch = readSeconds(values.watch);
    return { url: new URL(url), json: values.json ?? false, options };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ERR_PARSE_ARGS_INVALID_OPTION_VALUE') {
      return '--watch and --header need a value after them, and --json takes none.';
    }
    const [sentence = ''] = message.split(/(?<=\.) |\n/);
    return sentence;
  }
}

function readSeconds(text: string) {
  const isSeconds = /^\d{1,5}(\.\d+)?$/.test(text);
  if (!isSeconds) throw new Error('--watch must be a number of seconds, such as 40.');
  return Number(text) * 1000;
}

function readHeaders(lines: string[]) {
  const headers: HeaderMap = {};
  for (const line of lines) {
    const [, name = '', value = ''] = /^([^:]+):(.*)$/.exec(line) ?? [];
    try {
      http.validateHeaderName(name.trim());
      http.validateHeaderValue(name.trim(), value.trim());
    } catch {
      // Node's own message would show the value, which may be a token.
      throw new Error('--header must be "Name: value", such as "Authorization: Bearer …".');
    }
    headers[name.trim().toLowerCase()] = value.trim();
  }
  return headers;
}

const COLOURS = { '✔': 32, '✘': 31, '!': 33, ' ': 2 };

function formatLine({ sign, text, finding }: Line) {
  const lines = [`${paint(sign, COLOURS[sign])} ${text}`];
  if (!finding) return lines;
  const { means, cure, heading } = FINDINGS[finding];
  lines.push(`  ${paint(finding, 1)}: ${means}`, `  What to do: ${cure}`, `  README: ${heading}`);
  return lines;
}

/** Colour is for people: only on a terminal, and not where NO_COLOR is set. */
function paint(text: string, colour: number) {
  const isWanted = process.stdout.isTTY && !process.env['NO_COLOR'];
  return isWanted ? `\u001B[${colour}m${text}\u001B[0m` : text;
}

const TOO_MANY = 'The server limits how many requests it takes (429), so the doctor stopped early: '
  + 'wait some minutes, and run it again.';

function summaryOf({ findings, isComplete }: Diagnosis) {
  if (findings.length === 0 && !isComplete) return TOO_MANY;
  if (findings.length === 0) return `No problem was found. ${CHECKED} ${NOT_SEEN}`;
  const problems = findings.filter(({ kind }) => kind === 'problem').length;
  const risks = findings.length - problems;
  const names = findings.map(({ name }) => name).join(', ');
  const end = isComplete ? '' : ` ${TOO_MANY}`;
  return `${countOf(problems, 'problem')} and ${countOf(risks, 'risk')}: ${names}.${end}`;
}

const countOf = (number: number, word: string) => `${number} ${word}${number === 1 ? '' : 's'}`;

if (isTask('doctor')) {
  // A reader such as `| head` may stop reading.
  process.stdout.on('error', () => process.exit());
  process.exitCode = await runDoctor(process.argv.slice(3));
}

// The doctor's own tests: a faulty server for each finding, and healthy ones.

/** Wide limits, which only a faulty server reaches, and short waits. */
const SHORT = {
  endpointLimit: 5_000, replyLimit: 5_000, refusalLimit: 5_000, pause: 80, watch: 200,
};

/** For a server whose fault it is to be silent. */
const HURRIED = { endpointLimit: 800, replyLimit: 1_000, refusalLimit: 800 };

type Handler = (req: http.IncomingMessage, res: http.ServerResponse) => unknown;

/** Starts a server on a free port; like a careful one, it refuses a foreign Host. */
async function serve(t: TestContext, handler: Handler, isCareful = true) {
  const server = http.createServer(async (req, res) => {
    if (isCareful && !req.headers.host?.startsWith('127.0.0.1')) {
      return void res.writeHead(403).end('Host not allowed');
    }
    try {
      await handler(req, res);
    } catch (error) {
      if (!res.headersSent) res.writeHead(500).end(String(error));
    }
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  t.after(() => void server.close().closeAllConnections());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** The two routes of a server over HTTP+SSE. */
function routes(open: Handler, post: Handler): Handler {
  return (req, res) => {
    const { pathname } = new URL(req.url ?? '', 'http://localhost');
    if (pathname === '/sse' && req.method === 'GET') return open(req, res);
    if (pathname === '/messages' && req.method === 'POST') return post(req, res);
    return res.writeHead(404).end('Not found');
  };
}

const idOf = (req: http.IncomingMessage) =>
  new URL(req.url ?? '', 'http://localhost').searchParams.get('sessionId') ?? '';

function getFaultyServer() {
  const server = new McpServer({ name: 'faulty', version: '1.0.0' });
  server.registerTool('hello', {}, () => ({ content: [{ type: 'text', text: 'Hello' }] }));
  return server;
}

type ParsedRequest = http.IncomingMessage & { body: unknown };
type Transports = Map<string, SSEServerTransport>;

/** The SDK's own pattern, which is right. */
function sdkOpen(transports: Transports): Handler {
  return async (_req, res) => {
    const transport = new SSEServerTransport('/messages', res);
    transports.set(transport.sessionId, transport);
    transport.onclose = () => transports.delete(transport.sessionId);
    await getFaultyServer().connect(transport);
  };
}

function sdkPost(transports: Transports): Handler {
  return async (req, res) => {
    const transport = transports.get(idOf(req));
    if (!transport) return void res.writeHead(404).end('Session not found');
    await transport.handlePostMessage(req, res);
  };
}

function sdkServer() {
  const transports: Transports = new Map();
  return routes(sdkOpen(transports), sdkPost(transports));
}

async function bodyOf(req: http.IncomingMessage) {
  let body = '';
  for await (const chunk of req) body += chunk;
  return body;
}

type Message = { id?: number; method?: string };

/** The reply of a server that was written by hand, without an SDK. */
function replyByHand({ id, method }: Message) {
  const results: Record<string, object> = {
    'initialize': {
      protocolVersion: '2024-11-05', capabilities: { tools: {} },
      serverInfo: { name: 'by-hand', version: '1.0.0' },
    },
    'tools/list': { tools: [] },
    'ping': {},
  };
  return { jsonrpc: '2.0', id, result: results[method ?? ''] };
}

type ByHand = {
  /** What is written before the first event. */
  start?: string;
  eventName?: string;
  endpoint?: (id: string, req: http.IncomingMessage) => string;
  onOpen?: (res: http.ServerResponse) => void;
  onBadMessage?: (stream: http.ServerResponse, forget: () => void) => void;
  unknownStatus?: number;
  lineEnd?: string;
  answer?: (message: Message, res: http.ServerResponse, post: http.ServerResponse) => void;
};

function sendEvent(res: http.ServerResponse, name: string, data: string, lineEnd = '\n') {
  res.write(`event: ${name}${lineEnd}data: ${data}${lineEnd}${lineEnd}`);
}

/** A server that was written by hand; each fault is one option of it. */
function byHand(fault: ByHand = {}): Handler {
  const { eventName = 'message', unknownStatus = 404 } = fault;
  const endpoint = fault.endpoint ?? ((id: string) => `/messages?sessionId=${id}`);
  const streams = new Map<string, http.ServerResponse>();
  function open(req: http.IncomingMessage, res: http.ServerResponse) {
    const id = randomUUID();
    streams.set(id, res);
    res.on('close', () => streams.delete(id));
    res.writeHead(200, { 'content-type': 'text/event-stream' });
    if (fault.start) res.write(fault.start);
    sendEvent(res, 'endpoint', endpoint(id, req), fault.lineEnd);
    fault.onOpen?.(res);
  }
  async function post(req: http.IncomingMessage, res: http.ServerResponse) {
    const id = /[0-9a-f-]{36}/.exec(req.url ?? '')?.[0] ?? '';
    const stream = streams.get(id);
    if (!stream) return void res.writeHead(unknownStatus).end('Unknown session');
    const body = await bodyOf(req);
    if (!body.startsWith('{')) {
      fault.onBadMessage?.(stream, () => streams.delete(id));
      return void res.writeHead(400).end('Bad JSON');
    }
    const message = JSON.parse(body) as Message;
    if (fault.answer) return fault.answer(message, stream, res);
    res.writeHead(202).end();
    if (message.id === undefined || !message.method) return;
    sendEvent(stream, eventName, JSON.stringify(replyByHand(message)), fault.lineEnd);
  }
  return (req, res) => (req.method === 'GET' ? open(req, res) : post(req, res));
}

type Pipe = (upstream: http.IncomingMessage, res: http.ServerResponse) => void;

/** Hands a request on to another server, as a proxy does. */
function forward(req: http.IncomingMessage, res: http.ServerResponse, to: string, pipe?: Pipe) {
  const { method, headers } = req;
  const outgoing = http.request(to, { method, headers, agent: false });
  outgoing.on('response', (upstream) => {
    upstream.on('error', () => res.destroy());
    if (pipe) return pipe(upstream, res);
    return upstream.pipe(res.writeHead(upstream.statusCode ?? 0, upstream.headers));
  });
  outgoing.on('error', () => res.destroy());
  res.on('close', () => outgoing.destroy());
  req.pipe(outgoing);
}

/** A proxy as people put it in front of a server; `path` may turn a request away. */
async function startProxy(t: TestContext, target: string, change: {
  path?: (path: string) => string | undefined;
  pipe?: Pipe;
} = {}) {
  return serve(t, (req, res) => {
    const path = change.path ? change.path(req.url ?? '') : req.url;
    if (path === undefined) return void res.writeHead(404).end('nginx: no such page');
    return forward(req, res, target + path, change.pipe);
  });
}

/** Takes the prefix away, as `proxy_pass http://…/;` does; other paths lead nowhere. */
const stripPrefix = (path: string) =>
  path.startsWith('/mcp/') ? path.slice('/mcp'.length) : undefined;

/** Diagnoses the server, and expects exactly these findings. */
async function expectFindings(
  url: string, expected: FindingName[], options: DoctorOptions = {},
) {
  const lines: Line[] = [];
  const diagnosis = await diagnose(url, { ...SHORT, ...options }, (line) => lines.push(line));
  const told = lines.map(({ sign, text }) => `${sign} ${text}`).join('\n');
  const names = diagnosis.findings.map(({ name }) => name);
  assert.deepEqual(names.toSorted(), expected.toSorted(), told);
  assert.doesNotMatch(told, /[0-9a-f]{8}-[0-9a-f]{4}-4/, 'a whole session id is shown');
  return { ...diagnosis, told };
}

const doctorSuites: (() => void)[] = [];

/** A suite of the doctor. Its tests wait most of the time, so they run side by side. */
function describeDoctor(name: string, run: () => void, options: { concurrency: number }) {
  doctorSuites.push(() => describe(name, run, options));
}

// ---- Healthy servers -------------------------------------------------------------------------

describeDoctor('Healthy servers have no finding', () => {
  test('the pattern of the SDK', async (t) => {
    await expectFindings(`${await serve(t, sdkServer())}/sse`, []);
  });

  test('a server written by hand, with a BOM, CRLF, session_id and 204', async (t) => {
    const server = byHand({
      start: '\uFEFF',
      lineEnd: '\r\n',
      endpoint: (id) => `messages?session_id=${id}`,
      unknownStatus: 400,
      answer: (message, stream, post) => {
        post.writeHead(204).end();
        if (message.id === undefined || !message.method) return;
        stream.write(`event: message\r\ndata: ${JSON.stringify(replyByHand(message))}\r\n\r\n`);
      },
    });
    await expectFindings(`${await serve(t, server)}/app/sse`, []);
  });

  test('an absolute endpoint with the id in the path, and 503 for an unknown one', async (t) => {
    const server = byHand({
      endpoint: (id, req) => `http://${req.headers.host}/messages/${id}`,
      unknownStatus: 503,
    });
    await expectFindings(`${await serve(t, server)}/sse`, []);
  });

  test('ids that are numbers in the path', async (t) => {
    const streams = new Map<string, http.ServerResponse>();
    const url = await serve(t, async (req, res) => {
      if (req.method === 'GET') {
        const id = `/v1/messages/${streams.size + 1}`;
        streams.set(id, res);
        res.writeHead(200, { 'content-type': 'text/event-stream' });
        return res.write(`event: endpoint\ndata: ${id}\n\n`);
      }
      const stream = streams.get(req.url ?? '');
      if (!stream || stream.closed) return res.writeHead(404).end('Unknown');
      const body = await bodyOf(req);
      res.writeHead(200).end('Thank you');
      if (!body.startsWith('{')) return undefined;
      const message = JSON.parse(body) as Message;
      return message.id && stream.write(`data: ${JSON.stringify(replyByHand(message))}\n\n`);
    });
    await expectFindings(`${url}/v1/sse`, []);
  });

  test('keep-alive, notifications, pings of its own and late replies', async (t) => {
    const server = byHand({
      onOpen: (stream) => {
        const timer = setInterval(() => stream.write(': keep-alive\n\n'), 50);
        stream.on('close', () => clearInterval(timer));
        const notification = { jsonrpc: '2.0', method: 'notifications/tools/list_changed' };
        stream.write(`data: ${JSON.stringify(notification)}\n\n`);
        stream.write('data: {"jsonrpc":"2.0","id":1,"method":"ping"}\n\n');
      },
      answer: (message, stream, post) => {
        post.writeHead(202).end();
        if (message.id === undefined || !message.method) return;
        const reply = `data: ${JSON.stringify(replyByHand(message))}\n\n`;
        setTimeout(() => stream.write(reply), 30);
      },
    });
    const options = { watch: 1_200, shortestSilence: 100 };
    await expectFindings(`${await serve(t, server)}/sse`, [], options);
  });

  test('a compressed stream that flows', async (t) => {
    const target = await serve(t, sdkServer());
    const url = await startProxy(t, target, { pipe: compressAndFlush });
    await expectFindings(`${url}/sse`, []);
  });

  test('a proxy with a prefix that the server knows', async (t) => {
    const target = await serve(t, byHand({ endpoint: (id) => `/mcp/messages?sessionId=${id}` }));
    const url = await startProxy(t, target, {
      path: (path) => (path.startsWith('/mcp/') ? path : undefined),
    });
    await expectFindings(`${url}/mcp/sse`, []);
  });

  test('a redirect to a path with a slash, for the stream and for messages', async (t) => {
    const good = byHand();
    const url = await serve(t, (req, res) => {
      const location = req.url?.replace(/^\/\w+(?=$|\?)/, '$&/') ?? '';
      if (location !== req.url) return void res.writeHead(307, { location }).end();
      return good(req, res);
    });
    const { told } = await expectFindings(`${url}/sse`, []);
    assert.match(told, /POST \/messages\/\?sessionId=\S+ 202/);
  });

  test('a server that is slow to answer', async (t) => {
    const good = sdkServer();
    const url = await serve(t, async (req, res) => {
      await sleep(30);
      await good(req, res);
    });
    await expectFindings(`${url}/sse`, []);
  });

  test('a server that ends a stream if the client does not answer pings', async (t) => {
    const missing = new Map<http.ServerResponse, number>();
    const server = byHand({
      onOpen: (stream) => {
        const timer = setInterval(() => {
          const count = (missing.get(stream) ?? 0) + 1;
          missing.set(stream, count);
          if (count > 5) stream.end();
          else stream.write('data: {"jsonrpc":"2.0","id":"p","method":"ping"}\n\n');
        }, 100);
        stream.on('close', () => clearInterval(timer));
      },
      answer: (message, stream, post) => {
        post.writeHead(202).end();
        if (!message.method) missing.delete(stream);
        else if (message.id !== undefined) {
          sendEvent(stream, 'message', JSON.stringify(replyByHand(message)));
        }
      },
    });
    await expectFindings(`${await serve(t, server)}/sse`, [], { watch: 1_600 });
  });

  test('a proxy that fails once', async (t) => {
    const good = sdkServer();
    let posts = 0;
    const url = await serve(t, (req, res) => {
      if (req.method === 'POST') posts += 1;
      if (posts === 1 && req.method === 'POST') return res.writeHead(502).end('Bad Gateway');
      return good(req, res);
    });
    await expectFindings(`${url}/sse`, []);
  });

  test('a token that is sent lets the doctor in, and is shown nowhere', async (t) => {
    const good = sdkServer();
    const url = await serve(t, (req, res) => {
      if (req.headers.authorization === 'Bearer secret-of-mine') return good(req, res);
      return res.writeHead(401).end(`Wrong: ${req.headers.authorization}`);
    });
    const headers = { authorization: 'Bearer secret-of-mine' };
    await expectFindings(`${url}/sse`, [], { headers });
    const wrong = { authorization: 'Bearer not-the-secret' };
    const { told } = await expectFindings(`${url}/sse`, ['unauthorized'], { headers: wrong });
    assert.doesNotMatch(told, /not-the-secret/);
  });
}, { concurrency: 10 });

function compressWithoutFlush(upstream: http.IncomingMessage, res: http.ServerResponse) {
  const headers = { ...upstream.headers, 'content-encoding': 'gzip' };
  res.writeHead(upstream.statusCode ?? 0, headers).flushHeaders();
  upstream.pipe(createGzip()).pipe(res);
}

function compressAndFlush(upstream: http.IncomingMessage, res: http.ServerResponse) {
  const headers = { ...upstream.headers, 'content-encoding': 'gzip' };
  res.writeHead(upstream.statusCode ?? 0, headers).flushHeaders();
  const gzip = createGzip();
  gzip.pipe(res);
  upstream.on('data', (chunk) => {
    gzip.write(chunk);
    gzip.flush();
  });
  upstream.on('end', () => gzip.end());
  upstream.on('error', () => gzip.end());
}

// ---- Faults of the connection ----------------------------------------------------------------

describeDoctor('The way to the server', () => {
  test('unreachable: nothing listens on the port', async (t) => {
    const url = await serve(t, () => {});
    const server = net.createServer();
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address() as AddressInfo;
    await new Promise((resolve) => server.close(resolve));
    assert.ok(url);
    const { told } = await expectFindings(`http://127.0.0.1:${port}/sse`, ['unreachable']);
    assert.match(told, /ECONNREFUSED/);
  });

  test('unreachable: the connection is accepted, and then nothing is sent', async (t) => {
    const url = await serve(t, () => {}, false);
    await expectFindings(`${url}/sse`, ['unreachable'], HURRIED);
  });

  test('untrusted-certificate: the certificate is self-signed, and the doctor goes on', async (t) => {
    const url = await serveTls(t, sdkServer());
    const { told } = await expectFindings(`${url}/sse`, ['untrusted-certificate']);
    assert.match(told, /SELF_SIGNED/);
    const options = { headers: { authorization: 'Bearer secret-of-mine' } };
    await expectFindings(`${url}/sse`, ['untrusted-certificate'], options);
  });

  test('unauthorized: 401 on the POST alone', async (t) => {
    const url = await serve(t, routes(sdkOpen(new Map()), (_req, res) => {
      res.writeHead(401).end('Unauthorized');
    }));
    await expectFindings(`${url}/sse`, ['unauthorized']);
  });

  test('host-refused: 403 on the GET, and 421', async (t) => {
    for (const status of [403, 421]) {
      const url = await serve(t, (_req, res) => {
        res.writeHead(status).end('Invalid Host header');
      });
      await expectFindings(`${url}/sse`, ['host-refused']);
    }
  });

  test('host-refused: the check of the SDK, which looks at POSTs only', async (t) => {
    const transports: Transports = new Map();
    const url = await serve(t, routes(async (_req, res) => {
      const transport = new SSEServerTransport('/messages', res, {
        enableDnsRebindingProtection: true, allowedHosts: ['mcp.example.com'],
      });
      transports.set(transport.sessionId, transport);
      await getFaultyServer().connect(transport);
    }, sdkPost(transports)), false);
    await expectFindings(`${url}/sse`, ['host-refused']);
  });

  test('streamable-http: GET is refused with 405', async (t) => {
    await expectFindings(`${await serve(t, streamable(405))}/mcp`, ['streamable-http']);
  });

  test('streamable-http: GET is answered by 200 and silence', async (t) => {
    await expectFindings(`${await serve(t, streamable(200))}/mcp`, ['streamable-http'], HURRIED);
  });

  test('wrong-url: 404, with /sse beside it', async (t) => {
    const url = await serve(t, sdkServer());
    const { told } = await expectFindings(`${url}/wrong`, ['wrong-url']);
    assert.match(told, /\/sse answers with an event stream/);
  });

  test('wrong-url: a web page, with Streamable HTTP beside it', async (t) => {
    const mcp = streamable(405);
    const url = await serve(t, (req, res) => {
      if (req.url === '/mcp') return mcp(req, res);
      return res.writeHead(200, { 'content-type': 'text/html' }).end('<h1>Welcome</h1>');
    });
    const { told } = await expectFindings(`${url}/sse`, ['wrong-url']);
    assert.match(told, /\/mcp answers with Streamable HTTP/);
  });

  test('bad-gateway: a proxy without its server', async (t) => {
    const url = await serve(t, (_req, res) => {
      res.writeHead(502).end('<html><h1>502 Bad Gateway</h1></html>');
    });
    await expectFindings(`${url}/sse`, ['bad-gateway']);
  });

  test('buffered: a proxy holds the whole stream back', async (t) => {
    const target = await serve(t, sdkServer());
    const url = await startProxy(t, target, { pipe: holdBack });
    await expectFindings(`${url}/sse`, ['buffered'], HURRIED);
  });

  test('buffered: compression holds the first event back', async (t) => {
    const target = await serve(t, sdkServer());
    const url = await serve(t, (req, res) => {
      const isCompressed = req.method === 'GET' && req.headers['accept-encoding'] !== 'identity';
      const pipe = isCompressed ? compressWithoutFlush : undefined;
      return forward(req, res, target + req.url, pipe);
    });
    await expectFindings(`${url}/sse`, ['buffered'], HURRIED);
  });
}, { concurrency: 10 });

/** A Streamable HTTP server of the SDK, without sessions. */
function streamable(getStatus: number): Handler {
  return async (req, res) => {
    if (req.method === 'GET' && getStatus === 200) {
      return void res.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders();
    }
    if (req.method !== 'POST') return void res.writeHead(405, { allow: 'POST' }).end();
    const transport = new StreamableHTTPServerTransport({});
    // The SDK's types and exactOptionalPropertyTypes do not agree on `onclose`.
    await getFaultyServer().connect(transport as never);
    await transport.handleRequest(req, res);
  };
}

/** Like nginx by default: nothing is passed on, not even the head, before the buffer is full. */
function holdBack(upstream: http.IncomingMessage, res: http.ServerResponse) {
  const chunks: Buffer[] = [];
  upstream.on('data', (chunk: Buffer) => chunks.push(chunk));
  upstream.on('end', () => {
    res.writeHead(upstream.statusCode ?? 0, upstream.headers).end(Buffer.concat(chunks));
  });
}

async function serveTls(t: TestContext, handler: Handler) {
  const server = https.createServer(SELF_SIGNED, handler as http.RequestListener);
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
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

// ---- Faults of sessions ----------------------------------------------------------------------

describeDoctor('The endpoint and the session', () => {
  test('other-origin: an absolute endpoint with an internal name', async (t) => {
    const endpoint = (id: string) => `http://mcp-server.internal:8000/messages?sessionId=${id}`;
    await expectFindings(`${await serve(t, byHand({ endpoint }))}/sse`, ['other-origin']);
  });

  test('missing-prefix: a proxy strips the prefix', async (t) => {
    const target = await serve(t, sdkServer());
    const url = await startProxy(t, target, { path: stripPrefix });
    await expectFindings(`${url}/mcp/sse`, ['missing-prefix']);
  });

  test('missing-prefix and other-origin at once', async (t) => {
    const endpoint = (id: string) => `http://internal:8000/messages?sessionId=${id}`;
    const target = await serve(t, byHand({ endpoint }));
    const url = await startProxy(t, target, { path: stripPrefix });
    await expectFindings(`${url}/mcp/sse`, ['missing-prefix', 'other-origin']);
  });

  test('missing-prefix: an Express application is mounted', async (t) => {
    const transports: Transports = new Map();
    const app = createMcpExpressApp();
    app.get('/api/mcp/sse', sdkOpen(transports));
    app.post('/api/mcp/messages', (req: ParsedRequest, res: http.ServerResponse) => {
      const transport = transports.get(idOf(req));
      if (!transport) return void res.writeHead(404).end('Session not found');
      return transport.handlePostMessage(req, res, req.body);
    });
    await expectFindings(`${await serve(t, app)}/api/mcp/sse`, ['missing-prefix']);
  });

  test('missing-prefix: all other paths demand a login, or answer with a page', async (t) => {
    const target = await serve(t, sdkServer());
    await Promise.all([200, 302, 401].map(async (status) => {
      const url = await serve(t, (req, res) => {
        const path = stripPrefix(req.url ?? '');
        if (path) return forward(req, res, target + path);
        return res.writeHead(status, { location: '/login' }).end('<h1>Log in</h1>');
      });
      await expectFindings(`${url}/mcp/sse`, ['missing-prefix'], { replyLimit: 1_500 });
    }));
  });

  test('id-not-filed: the id is made a second time by randomUUID()', async (t) => {
    const transports: Transports = new Map();
    const url = await serve(t, routes(async (_req, res) => {
      const transport = new SSEServerTransport('/messages', res);
      transports.set(randomUUID(), transport);
      await getFaultyServer().connect(transport);
    }, sdkPost(transports)));
    await expectFindings(`${url}/sse`, ['id-not-filed']);
  });

  test('id-not-filed: req.on("close") fires at once, since req.resume() was called', async (t) => {
    const transports: Transports = new Map();
    const url = await serve(t, routes(async (req, res) => {
      req.resume();
      const transport = new SSEServerTransport('/messages', res);
      transports.set(transport.sessionId, transport);
      req.on('close', () => transports.delete(transport.sessionId));
      await getFaultyServer().connect(transport);
    }, sdkPost(transports)));
    await expectFindings(`${url}/sse`, ['id-not-filed']);
  });

  test('id-not-filed, below a prefix, with the same empty 404 for everything', async (t) => {
    const url = await serve(t, (req, res) => {
      if (req.url !== '/mcp/sse' || req.method !== 'GET') return void res.writeHead(404).end();
      return sdkOpen(new Map())(req, res);
    });
    await expectFindings(`${url}/mcp/sse`, ['id-not-filed']);
  });

  test('id-not-filed, on a server that does not answer an unknown id', async (t) => {
    const transports: Transports = new Map();
    const url = await serve(t, routes(async (_req, res) => {
      const transport = new SSEServerTransport('/messages', res);
      transports.set(randomUUID(), transport);
      await getFaultyServer().connect(transport);
    }, async (req, res) => transports.get(idOf(req))?.handlePostMessage(req, res)));
    const options = { refusalLimit: 120, replyLimit: 120 };
    await expectFindings(`${url}/sse`, ['id-not-filed', 'unknown-id-accepted'], options);
  });

  test('id-not-filed, whatever the server answers to an unknown id', async (t) => {
    const answers: [number, string][] = [
      [500, "TypeError: Cannot read properties of undefined (reading 'handlePostMessage')"],
      [400, '{"jsonrpc":"2.0","error":{"code":-32700,"message":"Invalid session ID"},"id":null}'],
      [403, 'Unknown session'],
    ];
    await Promise.all(answers.map(async ([status, text]) => {
      const url = await serve(t, routes(sdkOpen(new Map()), (_req, res) => {
        res.writeHead(status).end(text);
      }));
      await expectFindings(`${url}/sse`, ['id-not-filed']);
    }));
  });

  test('id-not-filed: the endpoint and the server use different names for the parameter', async (t) => {
    const transports: Transports = new Map();
    const url = await serve(t, routes(sdkOpen(transports), (req, res) => {
      const { searchParams } = new URL(req.url ?? '', 'http://localhost');
      if (!searchParams.get('session')) res.writeHead(400).end('Missing session');
    }));
    await expectFindings(`${url}/sse`, ['id-not-filed']);
  });

  test('filed-late: after an awaited look-up', async (t) => {
    const transports: Transports = new Map();
    const refusals = new EventEmitter();
    let streams = 0;
    const url = await serve(t, routes(async (_req, res) => {
      const transport = new SSEServerTransport('/messages', res);
      transport.onclose = () => transports.delete(transport.sessionId);
      streams += 1;
      // The look-up of the first three takes until a POST has come, however busy the machine is.
      const lookedUp = streams <= 3 ? once(refusals, transport.sessionId) : sleep(20);
      await getFaultyServer().connect(transport);
      await lookedUp;
      transports.set(transport.sessionId, transport);
    }, async (req, res) => {
      await sdkPost(transports)(req, res);
      refusals.emit(idOf(req));
    }));
    await expectFindings(`${url}/sse`, ['filed-late']);
  });

  test('removed-early: after the second message', async (t) => {
    const transports: Transports = new Map();
    const posts = new Map<string, number>();
    const url = await serve(t, routes(sdkOpen(transports), async (req, res) => {
      const id = idOf(req);
      const count = (posts.get(id) ?? 0) + 1;
      posts.set(id, count);
      if (count > 2) transports.delete(id);
      await sdkPost(transports)(req, res);
    }));
    await expectFindings(`${url}/sse`, ['removed-early']);
  });

  test("removed-early: the GET's handler ends its response", async (t) => {
    const transports: Transports = new Map();
    const open = sdkOpen(transports);
    const url = await serve(t, routes(async (req, res) => {
      await open(req, res);
      res.end();
    }, sdkPost(transports)));
    // On a busy machine, some time goes by before the doctor sees that the stream has ended.
    await expectFindings(`${url}/sse`, ['removed-early'], { pause: 400 });
  });

  test('several-processes: a strict round robin of two, three and eight', async (t) => {
    await Promise.all([2, 3, 8].map(async (size) => {
      let next = 0;
      const servers = Array.from({ length: size }, () => sdkServer());
      const url = await serve(t, (req, res) => {
        next += 1;
        return servers[next % size]?.(req, res);
      });
      await expectFindings(`${url}/sse`, ['several-processes']);
    }));
  });

  test('several-processes: one of two or four by chance', async (t) => {
    await Promise.all([2, 4].map(async (size) => {
      const servers = Array.from({ length: size }, () => sdkServer());
      const url = await serve(t, (req, res) =>
        servers[Math.floor(Math.random() * size)]?.(req, res));
      await expectFindings(`${url}/sse`, ['several-processes']);
    }));
  });

  test('several-processes and body-already-read at once', async (t) => {
    let next = 0;
    const servers = [0, 1].map(() => {
      const transports: Transports = new Map();
      return routes(sdkOpen(transports), async (req, res) => {
        await bodyOf(req);
        await sdkPost(transports)(req, res);
      });
    });
    const url = await serve(t, (req, res) => {
      next += 1;
      return servers[next % 2]?.(req, res);
    });
    await expectFindings(`${url}/sse`, ['several-processes', 'body-already-read']);
  });

  test('body-already-read: express.json() in front', async (t) => {
    const transports: Transports = new Map();
    const app = createMcpExpressApp(); // it calls express.json()
    app.get('/sse', sdkOpen(transports));
    app.post('/messages', sdkPost(transports));
    await expectFindings(`${await serve(t, app)}/sse`, ['body-already-read']);
  });

  test('body-already-read: middleware that reads the raw body', async (t) => {
    const transports: Transports = new Map();
    const post = sdkPost(transports);
    const url = await serve(t, routes(sdkOpen(transports), async (req, res) => {
      await bodyOf(req);
      await post(req, res);
    }));
    await expectFindings(`${url}/sse`, ['body-already-read']);
  });

  test('shared-server: one McpServer for all', async (t) => {
    const transports: Transports = new Map();
    const server = getFaultyServer();
    const url = await serve(t, routes(async (_req, res) => {
      const transport = new SSEServerTransport('/messages', res);
      transports.set(transport.sessionId, transport);
      res.on('close', () => transports.delete(transport.sessionId));
      await server.connect(transport);
    }, sdkPost(transports)));
    await expectFindings(`${url}/sse`, ['shared-server']);
  });

  test('shared-server: one `let transport` for all', async (t) => {
    let transport: SSEServerTransport | undefined;
    const url = await serve(t, routes(async (_req, res) => {
      transport = new SSEServerTransport('/messages', res);
      await getFaultyServer().connect(transport);
    }, async (req, res) => transport?.handlePostMessage(req, res)));
    // This server also accepts any id, so that finding is just as true.
    await expectFindings(`${url}/sse`, ['shared-server', 'unknown-id-accepted'], HURRIED);
  });

  test('shared-server: each reply goes to all streams', async (t) => {
    const streams = new Set<http.ServerResponse>();
    const server = byHand({
      onOpen: (stream) => {
        streams.add(stream);
        stream.on('close', () => streams.delete(stream));
      },
      answer: (message, _stream, post) => {
        post.writeHead(202).end();
        if (message.id === undefined || !message.method) return;
        const reply = JSON.stringify(replyByHand(message));
        for (const stream of streams) sendEvent(stream, 'message', reply);
      },
    });
    await expectFindings(`${await serve(t, server)}/sse`, ['shared-server']);
  });

  test("shared-server: somebody else's session is open already", async (t) => {
    const server = getFaultyServer();
    const url = await serve(t, routes(async (_req, res) => {
      await server.connect(new SSEServerTransport('/messages', res));
    }, (_req, res) => res.writeHead(404).end('Session not found')));
    const other = await openEventStream(`${url}/sse`);
    t.after(() => other.close());
    await expectFindings(`${url}/sse`, ['shared-server']);
  });

  test('shared-server: one `let transport`, whose id is checked', async (t) => {
    let transport: SSEServerTransport | undefined;
    const url = await serve(t, routes(async (_req, res) => {
      transport = new SSEServerTransport('/messages', res);
      await getFaultyServer().connect(transport);
    }, async (req, res) => {
      const isKnown = idOf(req) === transport?.sessionId;
      if (!isKnown) return void res.writeHead(404).end('Session not found');
      await transport?.handlePostMessage(req, res);
    }));
    await expectFindings(`${url}/sse`, ['shared-server']);
  });
}, { concurrency: 10 });

// ---- Faults of messages ----------------------------------------------------------------------

describeDoctor('Messages and time', () => {
  test('reply-lost: the reply comes in the body of the POST', async (t) => {
    const url = await serve(t, byHand({
      answer: (message, _stream, post) => {
        post.writeHead(200).end(JSON.stringify(replyByHand(message)));
      },
    }));
    const { told } = await expectFindings(`${url}/sse`, ['reply-lost'], HURRIED);
    assert.match(told, /POST's own body/);
  });

  test('reply-lost: 202, and nothing on the stream', async (t) => {
    const url = await serve(t, byHand({
      answer: (_message, _stream, post) => post.writeHead(202).end('Accepted'),
    }));
    await expectFindings(`${url}/sse`, ['reply-lost'], HURRIED);
  });

  test('reply-lost: each POST fails, whatever its id is', async (t) => {
    const url = await serve(t, routes(sdkOpen(new Map()), (_req, res) => {
      res.writeHead(500).end('Internal Server Error');
    }));
    await expectFindings(`${url}/sse`, ['reply-lost']);
  });

  test('reply-lost: a proxy answers each POST with 502', async (t) => {
    const url = await serve(t, routes(sdkOpen(new Map()), (_req, res) => {
      res.writeHead(502).end('<h1>502 Bad Gateway</h1>');
    }));
    await expectFindings(`${url}/sse`, ['reply-lost']);
  });

  test('reply-lost: the server takes one request at a time', async (t) => {
    const waiting: (() => unknown)[] = [];
    const open = byHand();
    let isBusy = false;
    const url = await serve(t, (req, res) => {
      if (isBusy) return waiting.push(() => req.destroyed || open(req, res));
      isBusy = req.method === 'GET';
      res.on('close', () => {
        isBusy = false;
        waiting.splice(0).forEach((run) => run());
      });
      return open(req, res);
    });
    const { told } = await expectFindings(`${url}/sse`, ['reply-lost'], HURRIED);
    assert.match(told, /while a stream is open, the server answers nothing else/);
  });

  test('wrong-event-name: replies come as `event: response`', async (t) => {
    const url = await serve(t, byHand({ eventName: 'response' }));
    await expectFindings(`${url}/sse`, ['wrong-event-name']);
  });

  test('heartbeat-as-data: `data: heartbeat`', async (t) => {
    const onOpen = (stream: http.ServerResponse) => {
      const timer = setInterval(() => stream.write('data: heartbeat\n\n'), 100);
      stream.on('close', () => clearInterval(timer));
    };
    await expectFindings(`${await serve(t, byHand({ onOpen }))}/sse`, ['heartbeat-as-data']);
  });

  test('killed-by-bad-message: an error handler ends or forgets the session', async (t) => {
    const removals = [
      (_stream: http.ServerResponse, forget: () => void) => forget(),
      (stream: http.ServerResponse) => stream.end(),
    ];
    await Promise.all(removals.map(async (remove) => {
      const url = await serve(t, byHand({ onBadMessage: remove }));
      await expectFindings(`${url}/sse`, ['killed-by-bad-message']);
    }));
  });

  test('cut-off: a proxy ends a stream after some silence', async (t) => {
    const target = await serve(t, sdkServer());
    const url = await startProxy(t, target, {
      pipe: (upstream, res) => {
        upstream.pipe(res.writeHead(upstream.statusCode ?? 0, upstream.headers));
        const timer = setTimeout(() => res.destroy(), 700).unref();
        upstream.on('data', () => timer.refresh());
      },
    });
    await expectFindings(`${url}/sse`, ['cut-off'], { watch: 3_000 });
  });

  test('cut-off: a limit that strikes while other things are looked at', async (t) => {
    const good = sdkServer();
    const url = await serve(t, async (req, res) => {
      await sleep(40);
      if (req.method === 'GET') setTimeout(() => res.destroy(), 450).unref();
      await good(req, res);
    });
    await expectFindings(`${url}/sse`, ['cut-off']);
  });

  test('removed-early: an idle timer that strikes while the stream is watched', async (t) => {
    const transports: Transports = new Map();
    const timers = new Map<string, NodeJS.Timeout>();
    const open = sdkOpen(transports);
    const url = await serve(t, routes(async (req, res) => {
      await open(req, res);
      const [id = ''] = [...transports.keys()].slice(-1);
      timers.set(id, setTimeout(() => transports.delete(id), 1_000).unref());
    }, async (req, res) => {
      timers.get(idOf(req))?.refresh();
      await sdkPost(transports)(req, res);
    }));
    await expectFindings(`${url}/sse`, ['removed-early'], { watch: 1_300 });
  });

  test('silent-stream: no byte for the time watched', async (t) => {
    const options = { watch: 300, shortestSilence: 300 };
    await expectFindings(`${await serve(t, sdkServer())}/sse`, ['silent-stream'], options);
  });

  test('not-before-initialize: as in Python', async (t) => {
    const url = await serve(t, pythonLike());
    await expectFindings(`${url}/sse`, ['not-before-initialize']);
  });

  test('not-before-initialize: refused by HTTP', async (t) => {
    const ready = new Set<string>();
    const transports: Transports = new Map();
    const url = await serve(t, routes(sdkOpen(transports), async (req, res) => {
      const transport = transports.get(idOf(req));
      if (!transport) return res.writeHead(404).end('Session not found');
      const body = await bodyOf(req);
      if (body.includes('initialize')) ready.add(idOf(req));
      if (!ready.has(idOf(req))) return res.writeHead(400).end('Not initialized');
      return transport.handlePostMessage(req, res, body);
    }));
    await expectFindings(`${url}/sse`, ['not-before-initialize']);
  });

  test('unknown-id-accepted: 202 for any id', async (t) => {
    const url = await serve(t, byHand({ unknownStatus: 202 }));
    await expectFindings(`${url}/sse`, ['unknown-id-accepted']);
  });

  test('unknown-id-accepted: no answer for an unknown id', async (t) => {
    const transports: Transports = new Map();
    const url = await serve(t, routes(sdkOpen(transports), async (req, res) => {
      await transports.get(idOf(req))?.handlePostMessage(req, res);
    }));
    await expectFindings(`${url}/sse`, ['unknown-id-accepted'], HURRIED);
  });

  test('ended-id-accepted: the table is never emptied', async (t) => {
    const known = new Map<string, http.ServerResponse>();
    const url = await serve(t, routes((_req, res) => {
      const id = randomUUID();
      known.set(id, res);
      res.writeHead(200, { 'content-type': 'text/event-stream' });
      res.write(`event: endpoint\ndata: /messages?sessionId=${id}\n\n`);
    }, async (req, res) => {
      const stream = known.get(idOf(req));
      if (!stream) return void res.writeHead(404).end('Session not found');
      const body = await bodyOf(req);
      if (!body.startsWith('{')) return void res.writeHead(400).end();
      const message = JSON.parse(body) as Message;
      res.writeHead(202).end();
      if (message.id) stream.write(`data: ${JSON.stringify(replyByHand(message))}\n\n`);
    }));
    await expectFindings(`${url}/sse`, ['ended-id-accepted']);
  });

  test("the SDK's transports are never removed: a word about it, and no finding", async (t) => {
    const transports: Transports = new Map();
    const url = await serve(t, routes(async (_req, res) => {
      const transport = new SSEServerTransport('/messages', res);
      transports.set(transport.sessionId, transport);
      await getFaultyServer().connect(transport);
    }, sdkPost(transports)));
    const { told } = await expectFindings(`${url}/sse`, []);
    assert.match(told, /^ {2}After its stream has ended: .*: remove each transport/m);
  });

  test('any-host-accepted: no check of Host', async (t) => {
    await expectFindings(`${await serve(t, sdkServer(), false)}/sse`, ['any-host-accepted']);
  });
}, { concurrency: 10 });

/** Refuses all but `initialize` until that is done. */
function pythonLike(): Handler {
  const ready = new WeakSet<http.ServerResponse>();
  return byHand({
    answer: (message, stream, post) => {
      post.writeHead(202).end('Accepted');
      if (message.method === 'initialize') ready.add(stream);
      if (message.id === undefined || !message.method) return;
      const error = { code: -32602, message: 'Received request before initialization' };
      const isAllowed = ready.has(stream) || message.method === 'ping';
      const refusal = { jsonrpc: '2.0', id: message.id, error };
      const reply = isAllowed ? replyByHand(message) : refusal;
      stream.write(`event: message\ndata: ${JSON.stringify(reply)}\n\n`);
    },
  });
}

// ---- Bounds, the raw client and the command line ---------------------------------------------

describeDoctor('Bounds, the raw client and the command line', () => {
  test('a server that sends its answers byte by byte', async (t) => {
    const url = await serve(t, (req, res) => {
      res.writeHead(404);
      if (req.method !== 'GET' || req.url !== '/sse') return res.end();
      const timer = setInterval(() => res.write('drip '), 20);
      return res.on('close', () => clearInterval(timer));
    });
    await expectFindings(`${url}/sse`, ['wrong-url'], { endpointLimit: 1_500 });
  });

  test('a server that floods its stream', async (t) => {
    const flood = `: ${'x'.repeat(60_000)}\n\n`;
    const onOpen = (stream: http.ServerResponse) => {
      const timer = setInterval(() => stream.write(flood), 10);
      stream.on('close', () => clearInterval(timer));
    };
    await expectFindings(`${await serve(t, byHand({ onOpen }))}/sse`, []);
  });

  test('the doctor sends few requests to a server that refuses each notification', async (t) => {
    const good = byHand({
      answer: (message, stream, post) => {
        if (message.id === undefined) return post.writeHead(400).end('A message needs an id');
        post.writeHead(202).end();
        return sendEvent(stream, 'message', JSON.stringify(replyByHand(message)));
      },
    });
    let requests = 0;
    const url = await serve(t, (req, res) => {
      requests += 1;
      return good(req, res);
    });
    await expectFindings(`${url}/sse`, ['reply-lost']);
    assert.ok(requests <= 60, `${requests} requests`);
  });

  test('an id that needs no escape in a URL is not shown either', async (t) => {
    const url = await serve(t, routes((_req, res) => {
      res.writeHead(200, { 'content-type': 'text/event-stream' });
      res.write('event: endpoint\ndata: /messages?v=1&sessionId=$(abc)+[def]%21\n\n');
    }, (_req, res) => res.writeHead(404).end('Session not found')));
    const { told } = await expectFindings(`${url}/sse`, ['id-not-filed']);
    assert.match(told, /sessionId=\$\(abc\)\S*…/);
    assert.doesNotMatch(told, /def/);
  });

  test('a server that limits the number of requests', async (t) => {
    const good = sdkServer();
    let requests = 0;
    const url = await serve(t, (req, res) => {
      requests += 1;
      if (requests > 12) return res.writeHead(429).end('Too many requests');
      return good(req, res);
    });
    const { isComplete } = await expectFindings(`${url}/sse`, []);
    assert.equal(isComplete, false);
  });

  test('a huge body', async (t) => {
    const url = await serve(t, (_req, res) => {
      res.writeHead(500).end('x'.repeat(50_000_000));
    });
    await expectFindings(`${url}/sse`, ['wrong-url']);
  });

  test('the doctor sends at most 60 requests, opens at most 12 streams at a time, and calls no tool', async (t) => {
    const transports: Transports = new Map();
    const methods: string[] = [];
    let mostStreams = 0;
    const url = await serve(t, routes(async (req, res) => {
      methods.push('GET');
      await sdkOpen(transports)(req, res);
      mostStreams = Math.max(mostStreams, transports.size);
    }, async (req, res) => {
      const body = await bodyOf(req);
      const isJson = body.startsWith('{');
      methods.push(isJson ? JSON.parse(body).method : body);
      const transport = transports.get(idOf(req));
      if (!transport) return res.writeHead(404).end('Session not found');
      if (!isJson) return res.writeHead(400).end('Invalid JSON');
      return transport.handlePostMessage(req, res, body);
    }));
    await expectFindings(`${url}/sse`, []);
    assert.ok(methods.length <= 60, `${methods.length} requests`);
    assert.ok(mostStreams <= 12, `${mostStreams} streams`);
    assert.deepEqual([...new Set(methods)].toSorted(), [
      'GET', 'This is not JSON.', 'initialize', 'notifications/initialized', 'ping', 'tools/list',
    ]);
  });

  test('openStream() shows what is on the wire', async (t) => {
    const url = await serve(t, sdkServer());
    const stream = await openEventStream(`${url}/sse`);
    t.after(() => stream.close());
    assert.equal(stream.answer.status, 200);
    const first = await stream.next();
    assert.equal(first?.event, 'endpoint');
    const { answer, reply } = await stream.request('ping');
    assert.equal(answer.text, 'Accepted');
    assert.deepEqual(reply?.message.result, {});
    stream.close();
    const { status } = await stream.post({ jsonrpc: '2.0', id: 9, method: 'ping' });
    assert.equal(status, 404);
  });

  test('post() does not wait for a body that stays open', async (t) => {
    const url = await serve(t, (_req, res) => res.writeHead(200).write('Thank you'));
    const stream = await openEventStream(`${url}/sse`, { limit: 100 });
    const { status, text } = await stream.post('{}');
    assert.deepEqual({ status, text }, { status: 200, text: 'Thank you' });
  });

  test('a token goes to no other origin', async (t) => {
    const seen: string[] = [];
    const elsewhere = await serve(t, (req, res) => {
      seen.push(req.url ?? '');
      res.writeHead(202).end();
    });
    const { host } = new URL(elsewhere);
    const endpoints = [
      `${elsewhere}/messages?id=1`, `//${host}/messages`, `http://x//${host}/messages`,
    ];
    const headers = { authorization: 'Bearer secret-of-mine' };
    await Promise.all(endpoints.map(async (endpoint) => {
      const url = await serve(t, byHand({ endpoint: () => endpoint }));
      const { findings } = await diagnose(`${url}/sse`, { ...SHORT, headers });
      assert.equal(findings[0]?.name, 'other-origin');
    }));
    assert.deepEqual(seen, []);
  });

  async function run(t: TestContext, args: string[]) {
    const command = ['server.test.ts', 'doctor', ...args];
    const { exit, lines } = runNode(t, command, {}, import.meta.dirname);
    return { code: await exit, lines, out: lines.join('\n') };
  }

  test('a wrong command gets one line and exit code 2', async () => {
    const wrong = [
      ['nonsense'], ['localhost:3000/sse'], ['http://127.0.0.1:99999/sse'], ['--colour'],
      ['--watch', 'long'], ['--watch', '-5'], ['--watch'], ['--json=yes'],
      ['--header', 'secret-of-mine'], ['http://127.0.0.1:1/sse', 'http://127.0.0.1:2/sse'],
    ];
    for (const args of wrong) {
      const lines: string[] = [];
      const print = (line: string) => lines.push(line);
      assert.equal(await runDoctor(args, assert.fail, print), 2);
      assert.equal(lines.length, 1);
      assert.match(lines[0] ?? '', /^[^\n]+[^.]\. Usage: npm run doctor -- [^\n]+$/);
      assert.doesNotMatch(lines[0] ?? '', /secret-of-mine/);
    }
  });

  test('--json prints one object, and a problem makes the exit code 1', async (t) => {
    const url = `${await serve(t, sdkServer())}/wrong?api_key=secret-of-mine`;
    const lines: string[] = [];
    const code = await runDoctor([url, '--json', '--watch', '0.1'], (line) => lines.push(line));
    assert.equal(code, 1);
    const out = lines.join('\n');
    const { findings, url: shown } = JSON.parse(out);
    assert.equal(shown, url.replace('secret-of-mine', '***'));
    assert.deepEqual(Object.keys(JSON.parse(out)), ['url', 'findings']);
    assert.deepEqual(Object.keys(findings[0]), ['name', 'kind', 'seen']);
    assert.doesNotMatch(out, /secret-of-mine/);
  });

  test('without findings, the doctor says what was checked, without colour, and exits with 0', async (t) => {
    const { code, out } = await run(t, [`${await serve(t, sdkServer())}/sse`, '--watch', '0.1']);
    assert.equal(code, 0);
    assert.match(out, /No problem was found\. Checked: .+ From outside, the doctor cannot see/);
    assert.doesNotMatch(out, /\u001B/);
  });

  test('without a URL, the doctor says where it looks', async () => {
    const lines: string[] = [];
    const promise = runDoctor(['--watch', '0.1'], (line) => lines.push(line));
    assert.match(lines[0] ?? '', /No URL was given.+http:\/\/127\.0\.0\.1:3000\/sse/);
    await promise;
  });

  test('Ctrl-C ends it at once', async (t) => {
    const url = `${await serve(t, sdkServer())}/sse`;
    const run = runNode(t, ['server.test.ts', 'doctor', url], {}, import.meta.dirname);
    await run.line(/Watching/);
    run.child.kill('SIGINT');
    assert.equal(await run.exit, 'SIGINT');
  });
}, { concurrency: 10 });

// The faults that exercise 3 of the workshop puts into server.ts. Each has the name of the doctor's
// finding, and the changes: each replaces a text that server.ts holds exactly once.
type Fault = { what: string; finding: FindingName; changes: Record<string, string> };
const FAULTS: Record<string, Fault> = {
  a: {
    what: 'the transport is filed under an id that the server has made itself',
    finding: 'id-not-filed',
    changes: {
      'const { sessionId } = transport;': 'const sessionId = globalThis.crypto.randomUUID();',
    },
  },
  b: {
    what: 'the transport is filed only after a look-up that was awaited',
    finding: 'filed-late',
    changes: {
      '    // Stored before connect() sends the id: the client may post as soon as it has read it.\n':
        '',
      '    this.transports.set(sessionId, transport);\n': '',
      '.connect(transport);\n': `.connect(transport);
      await lookUpUser(req);
      this.transports.set(sessionId, transport);
`,
      '/** Writes a comment: clients': `/** Stands for a look-up in a database. */
async function lookUpUser(req: IncomingMessage) {
  await new Promise((resolve) => setTimeout(resolve, 200));
  return req.socket.remoteAddress;
}

/** Writes a comment: clients`,
    },
  },
  c: {
    what: "the transport is removed when the GET request closes, and not when its response does",
    finding: 'id-not-filed',
    changes: {
      '    this.transports.set(sessionId, transport);\n': `    this.transports.set(sessionId, transport);
    req.resume();
    req.on('close', () => this.transports.delete(sessionId));
`,
    },
  },
  d: {
    what: 'all sessions share one McpServer',
    finding: 'shared-server',
    changes: {
      '  private isShuttingDown = false;\n': `  private isShuttingDown = false;
  private readonly mcpServer: McpServer;
`,
      '    this.options = options;\n': `    this.options = options;
    this.mcpServer = options.getServer();
`,
      'await this.options.getServer().connect(': 'await this.mcpServer.connect(',
    },
  },
  e: {
    what: 'nothing is written to an idle stream',
    finding: 'silent-stream',
    changes: {
      '/** Writes a comment: clients and proxies give up on a stream that stays silent. */':
        '/** Looks after a stream that is open. */',
      "  if (!res.writableEnded) res.write(': keep-alive\\n\\n');\n": '',
    },
  },
};

/** Makes each interval short, so that a keep-alive comes soon. */
const QUICK = `data:text/javascript,const start = setInterval;
globalThis.setInterval = (run, ms, ...args) => start(run, Math.min(ms, 150), ...args);`;

describeDoctor('The faults of the workshop in server.ts', () => {
  const options = {
    endpointLimit: 2000, replyLimit: 2000, pause: 300, watch: 1500, shortestSilence: 1000,
  };

  for (const [letter, { what, finding, changes }] of Object.entries(FAULTS)) {
    test(`${finding}: ${what} (${letter})`, async (t) => {
      const { url } = await runServer(t, {}, await copyProject(t, changes), ['--import', QUICK]);
      await expectFindings(`${url}/sse`, [finding], options);
    });
  }

  test('server.ts as it is has none of them', async (t) => {
    const { url } = await runServer(t, {}, undefined, ['--import', QUICK]);
    await expectFindings(`${url}/sse`, [], options);
  });
}, { concurrency: 8 });

describe('The doctor', () => {
  // The last one takes longest, so it begins first.
  for (const suite of doctorSuites.toReversed()) suite();
}, { concurrency: 2 });

// ==== From here on, delete what you do not need: the tool and its firewall ====================

import type { CallToolResult } from '@modelcontextprotocol/sdk/types.js';

const { connectFirewall, getServer } = subject;

const API_KEY = 'LUFRPT1-secret+key/==';
const RIGHTS = /: check PANOS_API_KEY and the XML API rights of its role\.$/;
const TARGET = /: check the target if you gave one, or try again later\.$/;
const ADDRESS = /: check PANOS_HOSTNAME and the network path to it, or try again later\.$/;

describe('The tool and its firewall', () => {
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
    ['a refusal with no code but HTTP 403', 403, '<response status="error"><msg>No</msg></response>', /HTTP 403, status error, code none: No\)/, RIGHTS],
    ['a 401 with a page', 401, '<html><body/></html>', /\(HTTP 401 without PAN-OS XML\)/, RIGHTS],
    ['a 403 with nothing', 403, '', /\(HTTP 403 without PAN-OS XML\)/, RIGHTS],
    ['an unknown target', 200, `<response status="error" code="13">${line('0079 not connected')}</response>`, /code 13: 0079 not connected\)/, TARGET],
    ['an error in several lines', 200, '<response status="error" code="17"><msg><line><![CDATA[ a]]></line><line><![CDATA[b ]]></line></msg></response>', /code 17: a b\)/, TARGET],
    ['an error in nested lines', 200, '<response status="error" code=""><msg><line><line>No such node</line></line></msg></response>', /HTTP 200, status error, code none: No such node\)/, TARGET],
    ['an error in the result', 200, `<response status="failed"><result>${line('Cannot')}</result></response>`, /status failed, .*: Cannot\)/, TARGET],
    ['a bad parameter', 400, `<response status = 'error' code = '400'><result><msg>Illegal parameter [x]</msg></result></response>`, /code 400: Illegal parameter \[x\]\)/, TARGET],
    ['a page of a proxy', 503, '<html><body><h1>502 Bad Gateway</h1><hr></body></html>', /\(HTTP 503 without PAN-OS XML\)/, ADDRESS],
    ['a well-formed page', 200, '<html><body/></html>', /\(HTTP 200 without PAN-OS XML\)/, ADDRESS],
    ['an empty reply', 500, '', /\(HTTP 500 without PAN-OS XML\)/, ADDRESS],
    ['a redirect', 302, '', /\(HTTP 302 without PAN-OS XML\)/, ADDRESS],
    ['a JSON reply', 200, '{"response":{"status":"success"}}', /\(HTTP 200 without PAN-OS XML\)/, ADDRESS],
    ['a response without a status', 200, '<response><result/></response>', /without PAN-OS XML\)/, ADDRESS],
    ['XML that ends too early', 200, '<response status="success"><result><system><hostname>fw</hostname>', /without PAN-OS XML\)/, ADDRESS],
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
    const lines = `<line>${'y'.repeat(300)}</line>`.repeat(2);
    const many = await toolError(t, `<response status="error"><msg>${lines}</msg></response>`);
    assert.equal(/y+ y+/.exec(many)?.[0].length, 500);
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
    assert.match(text, /self-signed certificate.*: replace the certificate, name its CA in NODE_EXTRA_CA_CERTS, or .*PANOS_SKIP_VERIFY/);
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
    assert.match(text, /altnames.*: set PANOS_HOSTNAME to a name in the certificate of the device\.$/);
  });

  test('a firewall that does not answer, or answers byte by byte, is given up after 30 s', async (t) => {
    changeTimers(t, 'setTimeout', 30_000, 300);
    for (const begin of ['', '<response']) {
      const { env, events } = await startFirewall(t, (_req, res) => void res.write(`${begin} `));
      const client = await connectClient(t, (await startTool(t, env)).url);
      const asked = once(events, 'request');
      const result = showSystemInfo(client);
      const [req] = (await asked) as [http.IncomingMessage];
      const gone = once(req.socket, 'close');
      const { text } = await within(result, 'the call is still waiting for its reply');
      assert.match(text, /failed \(no reply within 30 s\): check PANOS_HOSTNAME/);
      await gone;
    }
  });

  test('a call that waits for its turn is given up after 30 s too', async (t) => {
    changeTimers(t, 'setTimeout', 30_000, 300);
    const env = await startSilentFirewall(t);
    const client = await connectClient(t, (await startTool(t, env)).url);
    const calls = Array.from({ length: 12 }, () => showSystemInfo(client));
    const results = await within(Promise.all(calls), 'a call is still waiting for its turn');
    for (const { text } of results) assert.match(text, /no reply within 30 s/);
  });

  test('the timer of a call ends with the call', async (t) => {
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
    const gone = Promise.all(requests.map(({ req }) => once(req.socket, 'close')));
    close();
    await within(gone, 'a call goes on upstream although its client has left');
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

  test('a call that finds 50 calls waiting fails at once, and the error says so', async (t) => {
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
    [{ PANOS_HOSTNAME: 'fw/api', PANOS_API_KEY: API_KEY }, /^PANOS_HOSTNAME is "fw\/api"\. It must be like fw\.example/],
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
async function startTool(
  t: TestContext,
  env: Record<string, string> = {},
  options: Partial<McpHttpServerOptions> = {},
) {
  const firewall = connectFirewall(readSettings({ ...START, ...env }));
  t.after(() => firewall?.pool.destroy());
  return await startServer(t, { getServer: () => getServer(firewall), ...options });
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

/** The text of the tool's error when the firewall gives this answer. */
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

// ==== From here on, delete what you do not need: the exercises ================================

import { AsyncLocalStorage } from 'node:async_hooks';
import { fork } from 'node:child_process';
import { existsSync, watch } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { after, before } from 'node:test';
import { pathToFileURL } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import type { Transport } from '@modelcontextprotocol/sdk/shared/transport.js';
import {
  CallToolRequestSchema,
  ErrorCode,
  type JSONRPCMessage,
  McpError,
  type Tool,
} from '@modelcontextprotocol/sdk/types.js';

// A check talks to the participant's files over sockets. They run in a process of their own, the
// stage, so that nothing in them can stop the check.

/** What a check throws when something is not there yet: one line, and no stack is shown. */
class NotYet extends Error {}

function demand(found: unknown, missing: string, seen = ''): asserts found {
  if (found) return;
  const [line = ''] = seen.split('\n');
  throw new NotYet(line ? `${missing} Seen: ${line.slice(0, 300)}` : missing);
}

/** The answer to a request, as a message quotes it. */
function seenAs({ status, text }: Answer) {
  return status === 0 ? text : `${status} ${JSON.stringify(text.trim().slice(0, 120))}`;
}

/** Runs something that cleans up after itself with `t.after()`, as a test does. */
async function withCleanUp<Result>(run: (t: TestContext) => Promise<Result>) {
  const cleanUps: (() => unknown)[] = [];
  const t = { after: (cleanUp: () => unknown) => void cleanUps.unshift(cleanUp) };
  try {
    return await run(t as unknown as TestContext);
  } finally {
    for (const cleanUp of cleanUps) await cleanUp();
  }
}

// ---- The stage -------------------------------------------------------------------------------

type ServerModule = typeof import('./server.ts');
type ClientModule = {
  connect: (url: URL) => Promise<{
    callTool: (name: string) => Promise<CallToolResult>;
    close: () => Promise<void>;
  }>;
};
type Staged = Awaited<ReturnType<ClientModule['connect']>>;

/** What the stage counts for one server. */
type Counts = {
  started: number;
  ended: number;
  /** How often getServer() was called. */
  made: number;
  /** The timers that its requests have started, and that have run since they were counted last. */
  timers: Set<object>;
  /** The maps in which it has filed a transport. */
  maps: Set<Map<unknown, unknown>>;
};

const staged = {
  clients: new Map<string, Staged>(),
  counts: new Map<string, Counts>(),
  /** The server whose request is being answered. */
  current: new AsyncLocalStorage<Counts>(),
  lastStart: Promise.resolve() as Promise<unknown>,
};

/** What the stage can be told to do. It answers with the result, or with the error's message. */
const STAGE = {
  /** Starts a server.ts as `npm start` does, and returns its URL. */
  async serve(file: string, env: Record<string, string>) {
    const start = staged.lastStart.then(() => serveOnStage(file, env));
    staged.lastStart = start.catch(() => {}); // The environment is one server's at a time.
    return start;
  },

  /**
   * Starts a server.ts with hooks that count sessions. The start hook is slow. A client of
   * `?leaving` is gone 20 ms after its request has come.
   */
  async serveSlowly(file: string) {
    const { createMcpHttpServer, getServer } = (await import(file)) as ServerModule;
    const count: Counts = { started: 0, ended: 0, made: 0, timers: new Set(), maps: new Set() };
    const hooks = {
      async onSessionStart() {
        count.started += 1;
        await sleep(300);
      },
      onSessionEnd() {
        count.ended += 1;
      },
    };
    const { server } = createMcpHttpServer({
      getServer() {
        count.made += 1;
        return getServer(undefined);
      },
      hooks,
    });
    server.on('request', ({ url, socket }) => {
      if (url?.endsWith('?leaving')) setTimeout(() => socket.destroy(), 20);
    });
    const emit = server.emit.bind(server) as (...args: unknown[]) => boolean;
    server.emit = (...args: unknown[]) => staged.current.run(count, emit, ...args);
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    staged.counts.set(url, count);
    return url;
  },

  /** What was counted since the start; of the timers, those that ran since the last call. */
  async count(url: string) {
    const count = staged.counts.get(url);
    if (!count) throw new Error('it was not served');
    const { started, ended, made, timers, maps } = count;
    const filed = [...maps].reduce((sum, map) => sum + map.size, 0);
    const counted = { started, ended, made, timers: timers.size, filed };
    timers.clear();
    return counted;
  },

  /** Lets the timers run 30 times as fast, so that a check need not wait for a minute. */
  async hurry() {
    for (const name of ['setInterval', 'setTimeout'] as const) hurryTimers(name);
    noteFiledTransports();
  },

  /** Connects a client.ts, under a name. */
  async connect(name: string, file: string, url: string) {
    const { connect } = (await import(file)) as Partial<ClientModule>;
    if (typeof connect !== 'function') throw new Error('it is not exported');
    staged.clients.set(name, await connect(new URL(url)));
  },

  async call(name: string, tool: string) {
    const { content, isError } = await clientOnStage(name).callTool(tool);
    const [first] = content;
    return { text: first?.type === 'text' ? first.text : '', isError: isError === true };
  },

  async close(name: string) {
    await clientOnStage(name).close();
  },
};

function hurryTimers(name: 'setInterval' | 'setTimeout') {
  const start = globalThis[name] as typeof setTimeout;
  const quick = (run: (...args: unknown[]) => void, ms = 0, ...args: unknown[]) => {
    const count = staged.current.getStore();
    const timer = {};
    const runCounted = () => {
      count?.timers.add(timer);
      run(...args);
    };
    return ms < 1000 ? start(run, ms, ...args) : start(runCounted, ms / 30);
  };
  Object.assign(globalThis, { [name]: Object.assign(quick, start) });
}

/** A transport that stays in a map is a leak, and over sockets alone nobody could see that. */
function noteFiledTransports() {
  const { set } = Map.prototype;
  Map.prototype.set = function (key, value) {
    if (value instanceof SSEServerTransport) staged.current.getStore()?.maps.add(this);
    return set.call(this, key, value);
  };
}

function clientOnStage(name: string) {
  const client = staged.clients.get(name);
  if (!client) throw new Error('it is not connected');
  return client;
}

async function serveOnStage(file: string, env: Record<string, string>) {
  process.env = { ...START, ...env };
  const { main } = (await import(file)) as ServerModule;
  const { log } = console;
  let printed = '';
  console.log = (...parts: unknown[]) => {
    printed += `${parts.join(' ')}\n`;
    log(...parts);
  };
  await main();
  console.log = log;
  return /GET (http:\/\/[^/]+)/.exec(printed)?.[1];
}

/**
 * Lets a stream end while it opens, if its URL has `?slow`, and fail, if it has `?broken`. Over
 * sockets alone nobody could hit that moment.
 */
function disturbStarts() {
  const { start } = SSEServerTransport.prototype;
  SSEServerTransport.prototype.start = async function (this: SSEServerTransport) {
    const { res } = this as unknown as { res: http.ServerResponse };
    await start.call(this);
    if (res.req.url?.endsWith('?slow')) await once(res, 'close');
    if (res.req.url?.endsWith('?broken')) throw new Error('The stream broke while it opened.');
  };
}

if (isTask('stage')) {
  process.setMaxListeners(0);
  disturbStarts();
  process.on('disconnect', () => process.exit());
  process.on('message', async ({ id, name, args }: Order) => {
    const action = STAGE[name] as (...args: unknown[]) => Promise<unknown>;
    try {
      process.send?.({ id, result: await action(...args) });
    } catch (error) {
      process.send?.({ id, error: String((error as Error).message) });
    }
  });
}

type Order = { id: number; name: keyof typeof STAGE; args: unknown[] };
type Done = { id: number; result?: unknown; error?: string };
type Stage = Awaited<ReturnType<typeof openStage>>;

/** Starts a stage. It ends with the test or the check. */
async function openStage(t: TestContext, folder: string) {
  const child = fork(import.meta.filename, ['stage'], {
    cwd: folder,
    execArgv: ['--import', import.meta.resolve('tsx')],
    env: { PATH: process.env['PATH'] },
    silent: true,
  });
  const kill = () => void child.kill('SIGKILL');
  process.once('exit', kill);
  t.after(() => {
    kill();
    process.off('exit', kill);
  });
  const lines: string[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    if (stream) createInterface(stream).on('line', (line) => lines.push(line));
  }
  const answers = new EventEmitter().setMaxListeners(0);
  child.on('message', ({ id, ...done }: Done) => answers.emit(String(id), done));
  const ended = once(child, 'close').then(() => {
    return new NotYet(`The process that runs your file has ended. Seen: ${lastWords(lines)}`);
  });
  let orders = 0;

  /** Has the stage do something, for as long as the limit allows. */
  async function order<
    Name extends keyof typeof STAGE,
    Result = Awaited<ReturnType<(typeof STAGE)[Name]>>,
  >(name: Name, args: Parameters<(typeof STAGE)[Name]>, limit = 10_000): Promise<Result> {
    orders += 1;
    const answer = once(answers, String(orders), { signal: AbortSignal.timeout(limit) });
    child.send({ id: orders, name, args }, () => {}); // If it cannot be sent, the stage has ended.
    const late = () => new NotYet(`no answer within ${limit / 1000} s`);
    const outcome = await Promise.race([answer.catch(late), ended]);
    if (outcome instanceof Error) throw outcome;
    const [{ result, error }] = outcome as [Done];
    if (error !== undefined) throw new NotYet(error);
    return result as Result;
  }

  /** Why the stage has ended, if it has: a moment later than its connections break. */
  async function whyEnded() {
    return Promise.race([ended, sleep(500).then(() => undefined)]);
  }
  return { order, lines, whyEnded };
}

/** What a process said last: the message of an error that ended it, or its last line. */
function lastWords(lines: string[]) {
  return lines.find((line) => /^\w*Error\b|^Cannot start/.test(line)) ?? lines.at(-1) ?? 'nothing';
}

/** Starts the server.ts of this folder as `npm start` does; the settings come from `env`. */
async function serveFile(stage: Stage, folder: string, env: Record<string, string> = {}) {
  const url = await stage.order('serve', [fileUrl(folder, 'server.ts'), env]).catch((error) => {
    throw new NotYet(`server.ts must start as before. Seen: ${error.message}`);
  });
  demand(url, 'server.ts must print its line "MCP over HTTP+SSE: GET http://…" as before.');
  return url;
}

function fileUrl(folder: string, name: string) {
  return pathToFileURL(join(folder, name)).href;
}

/** Waits until something is so; otherwise says what is missing and what was seen last. */
async function until(
  look: () => Promise<{ is: boolean; seen: string }>,
  missing: string,
  limit = 2000,
) {
  const deadline = Date.now() + limit;
  for (;;) {
    const { is, seen } = await look();
    if (is) return;
    demand(Date.now() < deadline, missing, seen);
    await sleep(25);
  }
}

/** Opens a stream and waits for its endpoint event. */
async function enter(t: TestContext, url: string, headers: HeaderMap = {}, who = 'A client') {
  const stream = await openEventStream(`${url}/sse`, { headers, limit: 3000 });
  t.after(() => stream.close());
  demand(stream.isEventStream(), `${who} must get a stream from GET /sse.`, seenAs(stream.answer));
  const endpoint = await stream.waitFor(() => stream.endpoint, 2000);
  demand(endpoint, `${who} must get an endpoint event as the first event on its stream.`);
  return stream;
}

/** Calls a tool on a stream. */
async function callOn(stream: EventStream, name: string, who = 'A client', limit = 3000) {
  const { answer, reply } = await stream.request('tools/call', { name, arguments: {} }, limit);
  demand(isTaken(answer), `${who} called ${name}, and its POST must be accepted.`, seenAs(answer));
  const seen = stream.ended ? 'the stream has ended' : `no reply within ${limit / 1000} s`;
  demand(reply, `${who} called ${name}, and the reply must come on its own stream.`, seen);
  return (reply.message.result ?? { content: [], isError: true }) as CallToolResult;
}

// ---- The checks ------------------------------------------------------------------------------

/** What a check is given: the stage, and the folder with the participant's files. */
type Check = (t: TestContext, stage: Stage, folder: string) => Promise<void>;

// Exercise 3.

/** A proxy that ends each connection on which nothing has moved for this long. */
async function startImpatientProxy(t: TestContext, url: string, patience: number) {
  const { port } = new URL(url);
  const proxy = net.createServer((socket) => {
    const upstream = net.connect(Number(port), '127.0.0.1');
    const end = () => void [socket, upstream].forEach((side) => side.destroy());
    for (const side of [socket, upstream]) side.on('error', end).on('close', end);
    upstream.setTimeout(patience, end);
    socket.pipe(upstream).pipe(socket);
  });
  await once(proxy.listen(0, '127.0.0.1'), 'listening');
  t.after(() => proxy.close());
  return `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
}

const checkSessions: Check = async (t, stage, folder) => {
  const url = await stage.order('serveSlowly', [fileUrl(folder, 'server.ts')]);
  const proxy = await startImpatientProxy(t, url, 2000);
  const enterAndCall = async (number: number) => {
    const who = `Client ${number} of three`;
    const stream = await enter(t, proxy, {}, who);
    await callOn(stream, 'show_system_info', `${who}, without waiting,`);
    return stream;
  };
  const [first, second, third] = await Promise.all([
    enterAndCall(1), enterAndCall(2), enterAndCall(3),
  ]);
  const hasty = await enter(t, url, {}, 'A client that leaves at once');
  hasty.close();
  first.close();
  await ask(new URL('/sse?leaving', url));
  await sleep(300);
  await isGone(hasty, 'A client left as soon as it had its endpoint event');
  await isGone(first, 'One of three clients left');
  await countsOpen(stage, url, 2, 'All clients but two have left');
  await callOn(second, 'show_system_info', 'A client that stays, after another one has left,');
  await checkIdleMinute(url, third);
  second.close();
  third.close();
  await enterOneByOne(t, url);
  await countsOpen(stage, url, 0, 'All clients have left');
  await checkNothingLeft(stage, url);
};

/** More sessions than a small pool of servers has servers. */
async function enterOneByOne(t: TestContext, url: string) {
  for (let i = 0; i < 4; i += 1) {
    const stream = await enter(t, url, {}, 'One of many clients, one after another,');
    stream.close();
  }
}

/** All sessions have ended: each had a server of its own, and nothing of them may be left. */
async function checkNothingLeft(stage: Stage, url: string) {
  const { made, started, filed } = await stage.order('count', [url]);
  demand(
    made >= started,
    'Each session must have an McpServer of its own: call getServer() for each one.',
    `getServer() was called ${made} times for ${started} sessions`,
  );
  demand(
    filed === 0,
    'All clients have left, so no transport may be kept: remove each one as often as you file it.',
    `${filed} transports are kept`,
  );
  await sleep(800); // That is 24 s, and a keep-alive comes each 15 s.
  const { timers } = await stage.order('count', [url]);
  demand(
    timers < started / 2, // One timer for all sessions together may go on.
    'All sessions have ended, so their timers must end too: call clearInterval(keepAlive).',
    `${timers} timers were still running`,
  );
}

/** The doctor looks while a client is idle. 2 s stand for a minute, as the intervals are hurried. */
async function checkIdleMinute(url: string, idle: EventStream) {
  const options = { endpointLimit: 2000, replyLimit: 2000, refusalLimit: 2000, pause: 300 };
  const watched = { ...options, watch: 2500, shortestSilence: 2000 };
  // A server that soon stops writing is seen one minute later.
  const idleUntil = Math.max(Date.now() + 2500, idle.openedAt + 5000);
  const idleTime = sleep(idleUntil - Date.now());
  const [{ findings }] = await Promise.all([diagnose(`${url}/sse`, watched), idleTime]);
  demand(
    !idle.endedCleanly,
    'The server must not end the stream of an idle client.',
    'it ended the stream within two minutes and a half',
  );
  demand(
    !idle.ended,
    'A stream must outlive a proxy that ends connections that are silent for 60 s (the check '
      + 'lets your timers run 30 times as fast).',
    `the stream has ended, with ${idle.comments.length} comments on it`,
  );
  await callOn(idle, 'show_system_info', 'A client that was idle for a minute');
  const [finding] = findings;
  demand(!finding, 'The doctor must find nothing.', `${finding?.name}: ${finding?.seen}`);
}

async function isGone(stream: EventStream, what: string) {
  await until(async () => {
    const answer = await stream.post(ping(1));
    return { is: answer.status === 404, seen: seenAs(answer) };
  }, `${what}: a POST with its id must get 404.`);
}

/** Compares the hooks' count; each stream that ends has to end once in the hooks too. */
async function countsOpen(stage: Stage, url: string, open: number, what: string) {
  await until(async () => {
    const { started, ended } = await stage.order('count', [url]);
    const seen = `${started} calls of onSessionStart and ${ended} of onSessionEnd`;
    return { is: started - ended === open, seen };
  }, `${what}, so the hooks must have counted ${open} open sessions.`);
}

// Exercise 4.

const TOKEN = 'the-token-of-the-workshop';
const WITH_TOKEN = { authorization: `Bearer ${TOKEN}` };

type Health = { sessions: number; started: number; longestMs: number };

async function askHealth(url: string) {
  const answer = await ask(new URL('/healthz', url), { limit: 3000 });
  demand(
    answer.code !== 'TIMEOUT',
    'GET /healthz must be answered: each path through route() has to end in reply().',
    seenAs(answer),
  );
  demand(
    answer.status !== 401,
    'GET /healthz must be answered without a token: a monitoring program seldom has one.',
    seenAs(answer),
  );
  demand(answer.status === 200, 'GET /healthz must be answered with 200.', seenAs(answer));
  const type = answer.headers['content-type'] ?? '';
  demand(type.startsWith('application/json'), "The answer's Content-Type must be application/json.", type);
  const [health] = (parseHealth(answer.text) ?? []) as Health[];
  const isWhole =
    health &&
    ['sessions', 'started', 'longestMs'].every((name) => {
      return typeof health[name as keyof Health] === 'number';
    });
  demand(
    isWhole,
    'The body must be {"sessions":…,"started":…,"longestMs":…} with three numbers.',
    answer.text.trim(),
  );
  return health;
}

function parseHealth(text: string) {
  try {
    return [JSON.parse(text) as unknown];
  } catch {
    return undefined;
  }
}

async function healthIs(url: string, wanted: Partial<Health>, when: string) {
  await until(
    async () => {
      const health = await askHealth(url);
      const names = Object.keys(wanted) as (keyof Health)[];
      return {
        is: names.every((name) => health[name] === wanted[name]),
        seen: JSON.stringify(health),
      };
    },
    `${when}: GET /healthz must say ${JSON.stringify(wanted).slice(1, -1)}.`,
  );
}

const checkHealth: Check = async (t, stage, folder) => {
  const url = await serveFile(stage, folder, { MCP_TOKEN: TOKEN });
  await healthIs(url, { sessions: 0, started: 0, longestMs: 0 }, 'No stream has been opened yet');
  const rebound = await ask(new URL('/healthz', url), { headers: { host: 'attacker.example' } });
  demand(
    rebound.status === 403,
    'GET /healthz for a foreign Host must get 403, as any other request does: answer it after '
      + 'refusalOf().',
    seenAs(rebound),
  );
  const foreign = { origin: 'http://attacker.example' };
  const crossOrigin = await ask(new URL('/healthz', url), { headers: foreign });
  demand(
    crossOrigin.status === 403,
    'GET /healthz with a foreign Origin must get 403, as any other request.',
    seenAs(crossOrigin),
  );
  await checkUncounted(t, url);
  const longestMs = await checkCounted(t, url);
  await checkLongest(t, url, longestMs);
};

/** What is not a session: a request that was refused, and a stream that failed while it opened. */
async function checkUncounted(t: TestContext, url: string) {
  const none = { sessions: 0, started: 0, longestMs: 0 };
  const sse = new URL('/sse', url);
  await ask(sse);
  await ask(sse, { method: 'POST', headers: WITH_TOKEN });
  await ask(sse, { headers: { ...WITH_TOKEN, host: 'attacker.example' } });
  await healthIs(url, none, 'Three requests for /sse were refused');
  await ask(new URL('/sse?broken', url), { headers: WITH_TOKEN });
  await healthIs(url, none, 'A stream failed while it opened, so no hook was called');
  const stream = await openEventStream(`${url}/sse?slow`, { headers: WITH_TOKEN });
  t.after(() => stream.close());
  await stream.waitFor(() => stream.endpoint, 2000);
  await healthIs(url, none, 'A stream is still opening, and onSessionStart has not been called yet');
  stream.close();
  await until(async () => {
    const { status } = await stream.post(ping(1));
    return { is: status === 404, seen: String(status) };
  }, 'A stream ended while it opened: a POST with its id must get 404.');
  await healthIs(url, none, 'A stream ended while it opened, so no hook was called');
}

async function checkCounted(t: TestContext, url: string) {
  const before = Date.now();
  const first = await enter(t, url, WITH_TOKEN);
  const openedAt = Date.now();
  const second = await enter(t, url, WITH_TOKEN);
  await healthIs(url, { sessions: 2, started: 2 }, 'Two streams are open');
  await checkIdsUntold(url, [first, second]);
  await sleep(300);
  const least = Date.now() - openedAt;
  first.close();
  await healthIs(url, { sessions: 1, started: 2 }, 'One of two streams has ended');
  const most = Date.now() - before;
  const { longestMs } = await askHealth(url);
  demand(
    longestMs >= least - 20 && longestMs <= most + 20,
    'One session has ended: longestMs must be how '
      + `many milliseconds it lasted, from ${least} to ${most}.`,
    String(longestMs),
  );
  const shortFrom = Date.now();
  const short = await enter(t, url, WITH_TOKEN);
  short.close();
  await healthIs(url, { sessions: 1, started: 3 }, 'Another session came and went');
  const isShorter = Date.now() - shortFrom < longestMs; // A busy machine may have kept it longer.
  if (isShorter) await healthIs(url, { longestMs }, 'A shorter session came and went');
  await sleep(150);
  second.close();
  await healthIs(url, { sessions: 0, started: 3 }, 'All streams have ended');
  const last = await askHealth(url);
  demand(
    last.longestMs > longestMs,
    'The last session to end was the longest: longestMs must have grown.',
    JSON.stringify(last),
  );
  return last.longestMs;
}

async function checkIdsUntold(url: string, streams: EventStream[]) {
  const told = JSON.stringify(await askHealth(url));
  const ids = streams.map(({ endpoint }) => endpoint?.searchParams.get('sessionId') ?? '');
  demand(
    !ids.some((id) => told.includes(id)),
    'GET /healthz must not tell the id of a session: whoever knows it can post into the session.',
  );
}

/** The longest session stays the longest, whether others are open or none is. */
async function checkLongest(t: TestContext, url: string, longest: number) {
  let longestMs = longest;
  for (let isShorter = false; !isShorter;) {
    const shortFrom = Date.now();
    const short = await enter(t, url, WITH_TOKEN);
    await healthIs(url, { sessions: 1, longestMs }, 'A session has started after all had ended');
    short.close();
    await healthIs(url, { sessions: 0 }, 'It has ended');
    isShorter = Date.now() - shortFrom < longestMs; // A busy machine may have kept it longer.
    if (isShorter) await healthIs(url, { longestMs }, 'A shorter session came and went alone');
    else longestMs = (await askHealth(url)).longestMs;
  }
  const open = await enter(t, url, WITH_TOKEN);
  await sleep(longestMs + 100);
  await healthIs(
    url,
    { sessions: 1, longestMs },
    'The one open session is older than the longest that has ended, and does not count yet',
  );
  open.close();
}

// Exercise 5.

const ADDRESS_TOOL = 'show_address_objects';
const ADDRESS_XPATH =
  "/config/devices/entry[@name='localhost.localdomain']/vsys/entry[@name='vsys1']/address";

/** A stand-in firewall whose reply can be changed. Without a reply, it keeps its callers waiting. */
async function startChangingFirewall(t: TestContext) {
  const state: { reply: string | undefined; status: number } = { reply: undefined, status: 200 };
  const firewall = await startFirewall(t, (_req, res) => {
    if (state.reply !== undefined) res.writeHead(state.status).end(state.reply);
  });
  return { ...firewall, state };
}

const checkAddresses: Check = async (t, stage, folder) => {
  const { env, requests, events, state } = await startChangingFirewall(t);
  const url = await serveFile(stage, folder, env);
  const stream = await enter(t, url);
  await checkAddressTool(stream);
  await checkAddressSample(t, await serveFile(stage, folder));
  await checkAddressAnswers(stream, state, requests);
  state.reply = undefined;
  await checkEndOfCall(
    events,
    'A call was cancelled by its client, and',
    'pass the signal on',
    async () => {
      const request = callTool(9_001, ADDRESS_TOOL);
      await stream.post(request);
      return () =>
        stream.post({
          jsonrpc: '2.0',
          method: 'notifications/cancelled',
          params: { requestId: 9_001 },
        });
    },
  );
  await checkEndOfCall(events, 'The client of a call left, and', 'pass the signal on', async () => {
    await stream.post(callTool(9_002, ADDRESS_TOOL));
    return () => stream.close();
  });
  await checkSameId(t, url, events);
};

async function checkAddressAnswers(
  stream: EventStream,
  state: { reply: string | undefined },
  requests: { body: string }[],
) {
  await checkAddressLists(stream, state, requests);
  await checkManyAddresses(stream, state);
  await checkAddressErrors(stream, state, requests);
}

/** The SDK's own signal fires for the last call of an id only. */
async function checkSameId(t: TestContext, url: string, events: EventEmitter) {
  const stream = await enter(t, url);
  const first = () => stream.post(callTool(9_003, ADDRESS_TOOL));
  const what = 'A client gave two calls the same id and left:';
  const cure = 'join the signal of the call and that of the session, as show_system_info does';
  await checkEndOfCall(events, what, cure, async () => {
    await first();
    return async () => {
      const asked = once(events, 'request', { signal: AbortSignal.timeout(3000) });
      asked.catch(() => {});
      await first();
      await asked.catch(() => {});
      stream.close();
    };
  });
}

async function checkAddressTool(stream: EventStream) {
  const { reply } = await stream.request('tools/list', {}, 3000);
  const { tools = [] } = (reply?.message.result ?? {}) as { tools?: Tool[] };
  const names = tools.map(({ name }) => name).join(', ');
  const tool = tools.find(({ name }) => name === ADDRESS_TOOL);
  demand(tool, `There must be a tool ${ADDRESS_TOOL}: register it in getServer().`, names);
  demand(
    tool.annotations?.readOnlyHint,
    'The annotations of the tool must say readOnlyHint: true, since the tool changes nothing.',
    JSON.stringify(tool.annotations ?? {}),
  );
}

async function checkAddressSample(t: TestContext, url: string) {
  const stream = await enter(t, url);
  const { structuredContent, content } = await callOn(stream, ADDRESS_TOOL);
  const [sample] = addressesOf(structuredContent) ?? [];
  demand(
    typeof sample?.['name'] === 'string',
    'Without a firewall, the tool must return {"addresses": […]} with a sample that has a name.',
    JSON.stringify(structuredContent ?? content),
  );
  demand(
    /sample data/i.test(JSON.stringify(content)),
    'Without a firewall, the tool must say that this is sample data, as show_system_info does.',
    JSON.stringify(content),
  );
}

function addressesOf(structured: Record<string, unknown> | undefined) {
  const addresses = structured?.['addresses'];
  return Array.isArray(addresses) ? (addresses as Record<string, unknown>[]) : undefined;
}

async function checkAddressLists(
  stream: EventStream,
  state: { reply: string | undefined },
  requests: { body: string }[],
) {
  const entries = [
    { name: '0010', fqdn: '0010.example', description: 'By name', tag: { member: 'dmz' } },
    { name: 'web', 'ip-netmask': '192.0.2.80/32' },
  ];
  for (const wanted of [entries, entries.slice(0, 1), []]) {
    state.reply = addressReply(wanted);
    const before = requests.length;
    const result = await callOn(stream, ADDRESS_TOOL);
    checkAddressRequest(requests.at(-1)?.body);
    checkAskedOnce(requests.length - before);
    const number = ['no address object', 'one address object', 'two address objects'][
      wanted.length
    ];
    demand(
      isDeepStrictEqual(addressesOf(result.structuredContent), wanted),
      `The firewall has ${number}: the tool must return ${JSON.stringify({ addresses: wanted })}.`,
      JSON.stringify(result.structuredContent ?? result.content),
    );
  }
}

async function checkManyAddresses(stream: EventStream, state: { reply: string | undefined }) {
  const entries = Array.from({ length: 12 }, (_, i) => {
    return { name: `host-${i}`, fqdn: `${i}.example` };
  });
  state.reply = addressReply(entries);
  const { structuredContent } = await callOn(stream, ADDRESS_TOOL);
  const addresses = addressesOf(structuredContent) ?? [];
  demand(
    isDeepStrictEqual(addresses, entries),
    'The firewall has twelve address objects: it must return all of them, in their order.',
    `${addresses.length} objects: ${addresses.map(({ name }) => name).join(', ')}`,
  );
}

function checkAskedOnce(times: number) {
  demand(
    times === 1,
    'Each call of the tool must ask the firewall once, whatever it answers.',
    `the firewall was asked ${times} times`,
  );
}

type Fields = { [name: string]: string | Fields };

function fieldsAsXml(fields: Fields): string {
  const elements = Object.entries(fields).map(([name, value]) => {
    return `<${name}>${typeof value === 'string' ? value : fieldsAsXml(value)}</${name}>`;
  });
  return elements.join('');
}

function addressReply(entries: Fields[]) {
  const xml = entries.map(({ name, ...fields }) => {
    return `<entry name="${name}">${fieldsAsXml(fields)}</entry>`;
  });
  return `<response status="success"><result><address>${xml.join('')}</address></result></response>`;
}

function checkAddressRequest(body = '') {
  const { type, action, xpath } = Object.fromEntries(new URLSearchParams(body));
  demand(type, 'The tool must ask the firewall with askFirewall().', 'the firewall got no request');
  demand(type === 'config', 'The tool must ask with type=config.', `type=${type}`);
  demand(
    action === 'show',
    'The tool must ask with action=show, which reads the running configuration. action=get reads '
      + 'the candidate configuration.',
    `action=${action}`,
  );
  demand(
    xpath === ADDRESS_XPATH,
    'The tool must ask with the xpath of the exercise.',
    `xpath=${xpath}`,
  );
}

async function checkAddressErrors(
  stream: EventStream,
  state: { reply: string | undefined },
  requests: { body: string }[],
) {
  state.reply = '<response status="error" code="403"><msg><line>No right</line></msg></response>';
  const before = requests.length;
  const result = await callOn(stream, ADDRESS_TOOL);
  checkAskedOnce(requests.length - before);
  const seen = JSON.stringify(result.structuredContent ?? result.content);
  demand(
    result.isError,
    'The firewall refused the call: the tool must fail, and not return a result.',
    seen,
  );
  demand(
    seen.includes('No right'),
    "The firewall refused the call: the error must hold the firewall's own "
      + 'words, as askFirewall() gives them.',
    seen,
  );
}

/** Starts a call that the firewall never answers, ends it, and waits until the firewall knows. */
async function checkEndOfCall(
  events: EventEmitter,
  what: string,
  cure: string,
  start: () => Promise<() => unknown>,
) {
  const signal = AbortSignal.timeout(3000);
  const asked = once(events, 'request', { signal });
  const end = await start();
  const [, res] = await asked.catch(() => [undefined, undefined]);
  demand(res, 'A call must ask the firewall.', 'the firewall got no request within 3 s');
  const closed = once(res as http.ServerResponse, 'close', { signal: AbortSignal.timeout(2000) });
  closed.catch(() => {});
  await end();
  const isClosed = await closed.then(
    () => true,
    () => false,
  );
  demand(
    isClosed,
    `${what} the call to the firewall must end too: ${cure}.`,
    'the firewall was still being asked 2 s later',
  );
}

// Exercise 6.

/** A server behind a front, which can take the server away and then answer 502 or nothing at all. */
async function startShakyServer(t: TestContext, folder: string, absence: 'drop' | '502') {
  const { createMcpHttpServer } = (await import(fileUrl(folder, 'server.ts'))) as ServerModule;
  const events = new EventEmitter();
  const calls: string[] = [];
  const open = new Set<string>();
  const hooks = {
    onSessionStart: ({ id }: Session) => void open.add(id),
    onSessionEnd: ({ id }: Session) => void open.delete(id),
  };
  const getServer = () => getShakyTools(events, calls);
  let backend: ReturnType<typeof createMcpHttpServer> | undefined;
  const front = http.createServer((req, res) => {
    if (backend) return void backend.server.emit('request', req, res);
    events.emit('missed', req.method);
    if (absence === 'drop') return void req.socket.destroy();
    return void res.writeHead(502).end('Bad gateway');
  });
  function comeBack() {
    backend = createMcpHttpServer({ getServer, hooks });
  }
  function goAway() {
    backend = undefined;
    front.closeAllConnections();
  }
  comeBack();
  await once(front.listen(0, '127.0.0.1'), 'listening');
  t.after(() => void front.close().closeAllConnections());
  const url = `http://127.0.0.1:${(front.address() as AddressInfo).port}/sse`;
  return { url, events, calls, open, comeBack, goAway };
}

function getShakyTools(events: EventEmitter, calls: string[]) {
  const info = { name: 'shaky', version: '1.0.0' };
  const { server } = new McpServer(info, { capabilities: { tools: {} } });
  const answer = (text: string) => ({ content: [{ type: 'text' as const, text }] });
  server.setRequestHandler(CallToolRequestSchema, async ({ params: { name } }, { signal }) => {
    calls.push(name);
    events.emit(name);
    if (name === 'count') return answer('counted');
    if (name === 'fail') return { ...answer('There is no such address.'), isError: true };
    if (name === 'long') return answer(await sleep(2500).then(() => 'done after a while'));
    if (name === 'broken') throw new McpError(ErrorCode.InternalError, 'The tool is broken.');
    if (name !== 'slow') throw new McpError(ErrorCode.InvalidParams, `There is no tool ${name}`);
    const isFirst = calls.filter((other) => other === 'slow').length === 1;
    if (isFirst) await once(signal, 'abort');
    return answer('done at last');
  });
  return { connect: (transport: Transport) => server.connect(transport) } as McpServer;
}

type Shaky = Awaited<ReturnType<typeof startShakyServer>>;
type Caller = (tool: string, limit: number) => Promise<{ text: string; isError: boolean }>;

const CLIENT_FILE = 'my-client.ts';

/** What `my-client.ts` is at first: a client that does not survive. */
const CLIENT_START = `import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import type { CallToolResult } from '@modelcontextprotocol/sdk/types.js';

/** The check of exercise 6 calls this once, and then callTool() before and after a restart. */
export async function connect(url: URL) {
  const client = await openClient(url);
  return {
    async callTool(name: string) {
      return (await client.callTool({ name })) as CallToolResult;
    },
    async close() {
      await client.close();
    },
  };
}

async function openClient(url: URL) {
  const client = new Client({ name: 'my-client', version: '1.0.0' });
  await client.connect(new SSEClientTransport(url));
  return client;
}
`;

const checkClient: Check = async (t, stage, folder) => {
  const source = existsSync(join(folder, '.workshop/server.ts'))
    ? join(folder, '.workshop')
    : folder;
  const modes = ['drop', '502'] as const;
  await Promise.all(modes.map((mode) => checkRestarts(t, stage, folder, source, mode)));
};

async function checkRestarts(
  t: TestContext,
  stage: Stage,
  folder: string,
  source: string,
  mode: 'drop' | '502',
) {
  const shaky = await startShakyServer(t, source, mode);
  const name = `${folder} ${mode}`;
  const file = fileUrl(folder, CLIENT_FILE);
  await stage.order('connect', [name, file, shaky.url], 3000).catch(({ message }) => {
    throw new NotYet(`connect(url) of ${CLIENT_FILE} must connect. Seen: ${message}`);
  });
  const call: Caller = async (tool, limit) => await stage.order('call', [name, tool], limit);
  const { text } = await call('count', 3000).catch(
    failAs('A call before any restart must succeed.'),
  );
  demand(text === 'counted', 'callTool() must return the result of the tool.', text);
  await checkInFlight(shaky, call, mode);
  const returnedAt = Date.now();
  if (mode === 'drop') await checkIdleRestart(shaky, call);
  await checkFailure(shaky, call);
  await Promise.all([checkStreamsLeft(shaky, returnedAt), checkLongCall(shaky, call)]);
  await stage.order('close', [name], 3000).catch(failAs('close() must end the client.'));
  await until(
    async () => ({ is: shaky.open.size === 0, seen: `${shaky.open.size} streams` }),
    'After close() the client must have no open stream.',
  );
}

async function checkStreamsLeft(shaky: Shaky, returnedAt: number) {
  // The SDK's client, if it is left open, tries again 3 s after its stream has ended.
  await sleep(returnedAt + 3500 - Date.now());
  await until(
    async () => ({ is: shaky.open.size === 1, seen: `${shaky.open.size} streams` }),
    'The client must have one open stream: close the client that you replace, and also a client '
      + 'whose connect() has failed, because it goes on trying.',
  );
}

async function checkLongCall(shaky: Shaky, call: Caller) {
  const missing = 'A call takes 2.5 s, and its stream is open: wait for its result.';
  const { text } = await call('long', 6000).catch(failAs(missing));
  demand(text === 'done after a while', missing, text);
  const times = shaky.calls.filter((tool) => tool === 'long').length;
  demand(times === 1, missing, `the tool was called ${times} times`);
}

function failAs(missing: string) {
  return ({ message }: Error) => {
    throw new NotYet(`${missing} Seen: ${message}`);
  };
}

/** The server goes while a call is on its way, and comes back. */
async function checkInFlight(shaky: Shaky, call: Caller, mode: 'drop' | '502') {
  const arrived = once(shaky.events, 'slow');
  const where =
    mode === 'drop'
      ? 'The server was killed'
      : 'Behind a proxy that answers 502 in the meantime, the server was killed';
  const missing = `${where} while a call was on its way, and has come back: the call must be tried again.`;
  const result = call('slow', 10_000).catch(failAs(missing));
  result.catch(() => {});
  await Promise.race([arrived, result]);
  const missed = once(shaky.events, 'missed', { signal: AbortSignal.timeout(4000) }).catch(
    () => {},
  );
  shaky.goAway();
  if (mode === '502') await missed;
  await sleep(700);
  shaky.comeBack();
  const late = sleep(4500).then(() => undefined);
  const done = await Promise.race([result, late]);
  demand(done, missing, 'no result within 4.5 s of its return');
  demand(done.text === 'done at last', missing, done.text);
  const times = shaky.calls.filter((tool) => tool === 'slow').length;
  demand(times === 2, 'The call must be tried again once.', `the tool was called ${times} times`);
}

/** The server goes and comes back while nothing is called. */
async function checkIdleRestart(shaky: Shaky, call: Caller) {
  shaky.goAway();
  await sleep(300);
  shaky.comeBack();
  const { text } = await call('count', 4500).catch(
    failAs('The server was killed and has come back: the next call must succeed.'),
  );
  demand(
    text === 'counted',
    'The server was killed and has come back: the next call must succeed.',
    text,
  );
}

/** An error of the tool or of the server is an answer: it is not to be tried again. */
async function checkFailure(shaky: Shaky, call: Caller) {
  const failed = 'A tool answered with an error: that is an answer,';
  const unknown = 'The server says that there is no such tool: that is an answer too,';
  const broken = 'The server answered with another JSON-RPC error: that is an answer too,';
  await answersOnce(shaky, call, 'fail', 'no such address', failed);
  await answersOnce(shaky, call, 'unknown', 'no tool unknown', unknown);
  await answersOnce(shaky, call, 'broken', 'tool is broken', broken);
}

async function answersOnce(
  shaky: Shaky,
  call: Caller,
  tool: string,
  words: string,
  what: string,
) {
  const before = shaky.calls.length;
  const outcome = await call(tool, 3000).then(
    ({ text }) => text,
    ({ message }: Error) => message,
  );
  const times = shaky.calls.length - before;
  demand(
    times === 1,
    `${what} and must not be tried again.`,
    `the tool was called ${times} times`,
  );
  demand(outcome.includes(words), `${what} and must reach the caller.`, outcome);
}

// Exercise 7.

const checkMcp: Check = async (t, stage, folder) => {
  const { env, events, state } = await startChangingFirewall(t);
  const url = await serveFile(stage, folder, { ...env, MCP_TOKEN: TOKEN });
  await checkGuards(url);
  state.reply = systemInfo('<hostname>fw</hostname>');
  await checkCallsTogether(t, url);
  state.reply = undefined;
  const cure = 'close what you made for the request, when its response closes';
  await checkEndOfCall(events, 'A client of /mcp left during a call, and', cure, async () => {
    const signal = new AbortController();
    postMcp(url, callTool(1, 'show_system_info'), signal.signal);
    return () => signal.abort();
  });
  state.reply = systemInfo('<hostname>fw</hostname>');
  const stream = await enter(t, url, WITH_TOKEN, 'A client of SSE, as before,');
  const { structuredContent } = await callOn(stream, 'show_system_info', 'A client of SSE');
  demand(structuredContent?.['hostname'] === 'fw', 'The tool must still answer on /sse.');
};

async function checkCallsTogether(t: TestContext, url: string) {
  const clients = await Promise.all([connectMcp(t, url), connectMcp(t, url)]);
  const callOnce = async (client: Client) => {
    const timeout = { timeout: 3000 };
    const result = await client.callTool({ name: 'show_system_info' }, undefined, timeout);
    return result.structuredContent as Record<string, unknown> | undefined;
  };
  const calls = clients.flatMap((client) => [callOnce(client), callOnce(client), callOnce(client)]);
  const results = await Promise.all(calls).catch(({ message }: Error) => {
    throw new NotYet(
      `Two clients made three calls each on /mcp at the same time: each call must succeed. Seen: ${message}`,
    );
  });
  demand(
    results.every((result) => result?.['hostname'] === 'fw'),
    'The tool must answer on /mcp as it does on /sse. Does each request have a server and a '
      + 'transport of its own?',
    JSON.stringify(results.find((result) => result?.['hostname'] !== 'fw') ?? {}),
  );
}

/** A bare POST, which is not waited for. */
function postMcp(url: string, message: object, signal: AbortSignal) {
  const headers = { ...WITH_TOKEN, ...MCP_HEADERS };
  const settings = { method: 'POST', headers, signal, agent: false as const };
  const request = http.request(`${url}/mcp`, settings, (res) => res.resume().on('error', () => {}));
  request.on('error', () => {}).end(JSON.stringify(message));
}

const MCP_HEADERS = {
  'content-type': 'application/json',
  accept: 'application/json, text/event-stream',
};

async function checkGuards(url: string) {
  const body = JSON.stringify(INITIALIZE_MCP);
  const mcp = new URL('/mcp', url);
  const post = (headers: HeaderMap) => {
    return ask(mcp, { method: 'POST', headers: { ...MCP_HEADERS, ...headers }, body, limit: 3000 });
  };
  const known = await post(WITH_TOKEN);
  demand(known.status !== 404, 'There must be a path /mcp.', seenAs(known));
  demand(
    known.status === 200,
    'POST /mcp with `initialize` and the token must get 200.',
    seenAs(known),
  );
  const foreign = await post({ ...WITH_TOKEN, origin: 'http://attacker.example' });
  demand(
    foreign.status === 403,
    'A request for /mcp with a foreign Origin must get 403: look at the path after refusalOf().',
    seenAs(foreign),
  );
  const bare = await post({});
  demand(
    bare.status === 401,
    'A request for /mcp without a token must get 401: look at the path after isAuthorized().',
    seenAs(bare),
  );
  await checkOtherGuards(url, post);
}

async function checkOtherGuards(url: string, post: (headers: HeaderMap) => Promise<Answer>) {
  const crossSite = await post({ ...WITH_TOKEN, 'sec-fetch-site': 'cross-site' });
  demand(
    crossSite.status === 403,
    'A cross-site request for /mcp must get 403: look at the path after refusalOf().',
    seenAs(crossSite),
  );
  const other = await ask(new URL('/mcpfoo', url), { method: 'POST', headers: WITH_TOKEN });
  demand(
    other.status === 404,
    'Only /mcp itself is new, so POST /mcpfoo must get 404.',
    seenAs(other),
  );
  await checkOldGuards(url);
}

/** The paths of SSE are behind the token as before. */
async function checkOldGuards(url: string) {
  for (const [method, path] of [['GET', '/sse'], ['POST', '/messages']] as const) {
    const answer = await ask(new URL(path, url), { method, limit: 3000 });
    demand(
      answer.status === 401,
      `${method} ${path} without a token must get 401 as before.`,
      seenAs(answer),
    );
  }
}

const INITIALIZE_MCP = {
  jsonrpc: '2.0',
  id: 1,
  method: 'initialize',
  params: {
    protocolVersion: '2025-03-26',
    capabilities: {},
    clientInfo: { name: 'workshop', version: '1.0.0' },
  },
};

async function connectMcp(t: TestContext, url: string) {
  const client = new Client({ name: 'workshop', version: '1.0.0' });
  const requestInit = { headers: WITH_TOKEN };
  const transport = new StreamableHTTPClientTransport(new URL('/mcp', url), { requestInit });
  t.after(() => client.close());
  await client.connect(transport, { timeout: 3000 }).catch(({ message }: Error) => {
    throw new NotYet(
      `A client of Streamable HTTP must be able to connect to /mcp. Seen: ${message}`,
    );
  });
  return client;
}

// Exercises 1 and 2 are done by hand. The check is the server too, and watches.

type ByHandOptions = {
  folder: string;
  print: (line: string) => void;
  /** Begins to read the lines that the participant types. */
  readLines: () => AsyncIterable<string>;
  /** As it is set in PORT. */
  port: string;
  seconds: number;
  /** Told where the server is; the tests play the participant here. */
  learner?: (url: string) => unknown;
};

/** Serves the server.ts that came with the folder, and shows each answer as it goes out. */
async function serveByHand(
  t: TestContext,
  options: ByHandOptions,
  watchers: {
    onEnd: (session: Session) => void;
    onStart?: (session: Session) => void;
    onAnswer: (req: http.IncomingMessage, status: number, text: string) => void;
  },
) {
  const { folder, port } = options;
  const kept = join(folder, KEPT);
  const source = existsSync(join(kept, 'server.ts')) ? kept : folder;
  const { createMcpHttpServer, getServer } = (await import(
    fileUrl(source, 'server.ts')
  )) as ServerModule;
  const hooks = {
    onSessionStart: (session: Session) => watchers.onStart?.(session),
    onSessionEnd: watchers.onEnd,
  };
  const { server } = createMcpHttpServer({ getServer: () => getServer(undefined), hooks });
  server.prependListener('request', (req, res) => {
    const { end } = res;
    res.end = (...args: unknown[]) => {
      watchers.onAnswer(req, res.statusCode, String(args[0] ?? '').trim());
      return end.apply(res, args as Parameters<typeof end>);
    };
  });
  await listenByHand(server, port);
  t.after(() => void server.close().closeAllConnections());
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function listenByHand(server: http.Server, port: string) {
  const isPort = /^\d+$/.test(port) && Number(port) <= 65535;
  demand(isPort, `PORT is "${port}". It must be a whole number from 0 to 65535.`);
  const listening = once(server.listen(Number(port), '127.0.0.1'), 'listening');
  await listening.catch(({ code, message }: NodeJS.ErrnoException) => {
    const inUse = `Port ${port} is in use, perhaps by \`npm start\`: stop that, or set another `
      + 'PORT, and start this again.';
    throw new NotYet(code === 'EADDRINUSE' ? inUse : `Port ${port} cannot be used: ${message}.`);
  });
}

/** Waits for what is to be done by hand. */
async function waitByHand(done: EventEmitter, seconds: number, missing: () => string) {
  const signal = AbortSignal.timeout(seconds * 1000);
  await once(done, 'done', { signal }).catch(() => {
    throw new NotYet(
      `${missing()} This was not done within ${Math.ceil(seconds / 60)} min: start this command again.`,
    );
  });
}

const STEPS = [
  'open a stream',
  'POST initialize, with an id, and see its reply on the stream',
  'POST notifications/initialized, without an id',
  'POST tools/call for show_system_info, with an id, and see its result on the stream',
  'end the stream with Ctrl-C',
];

/** Follows each session through the steps, and says what goes wrong. */
class SessionGuide {
  readonly done = new EventEmitter();
  private readonly print: (line: string) => void;
  /** How many steps each open session has behind it. */
  private readonly steps = new Map<string, number>();
  private readonly requests = new Map<string, string>();
  best = 0;

  constructor(print: (line: string) => void) {
    this.print = print;
  }

  start(id: string) {
    if (this.steps.size > 0) {
      this.print('  You have another stream open: each stream is a session of its own.');
    }
    this.steps.set(id, 0);
    this.reach(id, 1);
  }

  message(id: string, message: Partial<Posted>) {
    const { method } = message;
    const step = this.steps.get(id) ?? 1;
    if (method === 'initialize') this.request(id, message, 'initialize');
    else if (method === 'notifications/initialized') this.notification(id, message, step);
    else if (method === 'tools/call') this.call(id, message, step);
    else this.print(`  You posted ${method}: the server accepts it, but it is not one of the steps.`);
  }

  private request(id: string, message: Partial<Posted>, what: string) {
    if (message.id === undefined) {
      this.print(
        `  Your ${what} had no id, so nothing replied: in JSON-RPC only a message with an id gets a reply.`,
      );
      return;
    }
    this.requests.set(`${id} ${message.id}`, message.method ?? '');
  }

  private notification(id: string, message: Partial<Posted>, step: number) {
    if (message.id !== undefined) {
      this.print('  Your notification had an id, which makes it a request: leave the id out.');
    } else if (step < 2) {
      this.print('  This session has not received the reply to initialize yet: that reply comes first.');
    } else {
      this.reach(id, 3);
    }
  }

  private call(id: string, message: Partial<Posted>, step: number) {
    const tool = String(message.params?.name);
    if (step < 2) {
      const elsewhere = [...this.steps].some(([other, steps]) => other !== id && steps >= 2);
      this.print(
        elsewhere
          ? '  You called the tool on a stream that you had not initialized: use one session for all steps.'
          : '  You called the tool before initialize: initialize comes first.',
      );
    } else if (step < 3) {
      this.print('  You called the tool before notifications/initialized: that comes first.');
    } else if (tool !== 'show_system_info') {
      this.print(`  You called the tool ${tool}, but its name is show_system_info.`);
    } else {
      this.request(id, message, 'call');
    }
  }

  reply(
    id: string,
    message: { id?: unknown; result?: { isError?: boolean }; error?: { message: string } },
  ) {
    const method = this.requests.get(`${id} ${message.id}`);
    if (!method) return;
    if (message.error) {
      // The SDK's own text for wrong params is a list that fills a screen.
      const [line = ''] = message.error.message.split('\n');
      const cure = method === 'initialize'
        ? 'its params need protocolVersion, capabilities and clientInfo.'
        : 'its params need a name, and arguments, if there are any, must be an object.';
      const why = line.startsWith('[') ? cure : line;
      this.print(`  Your ${method} was answered with an error: ${why}`);
    } else if (message.result?.isError) {
      this.print('  The tool answered with an error: look at the stream.');
    } else {
      this.reach(id, method === 'initialize' ? 2 : 4);
    }
  }

  end(id: string) {
    const step = this.steps.get(id) ?? 0;
    this.steps.delete(id);
    if (step === 4) {
      this.print(`  ✔ ${STEPS[4]}`);
      this.done.emit('done');
      return;
    }
    this.print(
      '  This stream has ended, and its session with it, before all steps were done: open a '
        + 'new stream and begin again.',
    );
  }

  answer({ method, url = '', headers }: http.IncomingMessage, status: number, text: string) {
    const reason = reasonFor(method ?? '', url, headers, status);
    if (reason) {
      this.print(
        `  ${method} ${url.slice(0, 26)} got ${status} ${JSON.stringify(text.slice(0, 80))}: `
          + `${reason}`,
      );
    }
  }

  missing() {
    return `The next step is: ${STEPS[this.best]}.`;
  }

  private reach(id: string, step: number) {
    if ((this.steps.get(id) ?? 0) >= step) return;
    this.steps.set(id, step);
    this.best = Math.max(this.best, step);
    this.print(`  ✔ ${STEPS[step - 1]}`);
  }
}

type Posted = { id: unknown; method: string; params: { name?: unknown } };

/** Why a request was refused, and what to do. */
function reasonFor(method: string, url: string, headers: http.IncomingHttpHeaders, status: number) {
  if (status < 400) return undefined;
  if (status === 404 && url.includes('sessionId=')) {
    return 'no open stream has this id: is the stream still open, and is the id whole?';
  }
  if (status === 404) {
    return 'there is no such path: GET /sse, and then POST to the address in the endpoint event.';
  }
  if (status === 405) {
    return `this path does not take ${method}: GET /sse, and POST (curl -d) to the other path.`;
  }
  if (!url.includes('sessionId=')) {
    return 'it named no session: post to the whole address in the endpoint event.';
  }
  if (!headers['content-type']?.includes('json')) {
    return 'it needs the header Content-Type: application/json.';
  }
  return 'the body must be one JSON-RPC message: look at its quotes.';
}

async function followByHand(t: TestContext, options: ByHandOptions) {
  const guide = new SessionGuide(options.print);
  const { handleMessage, send } = SSEServerTransport.prototype;
  t.after(() => Object.assign(SSEServerTransport.prototype, { handleMessage, send }));
  SSEServerTransport.prototype.handleMessage = function (message, extra) {
    guide.message(this.sessionId, (message ?? {}) as Partial<Posted>);
    return handleMessage.call(this, message, extra);
  };
  SSEServerTransport.prototype.send = async function (message: JSONRPCMessage) {
    await send.call(this, message);
    guide.reply(this.sessionId, message as Parameters<SessionGuide['reply']>[1]);
  };
  const url = await serveByHand(t, options, {
    onStart: ({ id }) => guide.start(id),
    onEnd: ({ id }) => guide.end(id),
    onAnswer: (req, status, text) => guide.answer(req, status, text),
  });
  options.print(
    `The server is now at ${url}/sse. Do these steps with curl, in two other terminals:`,
  );
  for (const step of STEPS) options.print(`  ○ ${step}`);
  const done = waitByHand(guide.done, options.seconds, () => guide.missing());
  void options.learner?.(url);
  await done;
}

const REFUSALS = {
  'no id': 'a POST to /messages without an id',
  'made up': 'a POST to /messages?sessionId=… with an id that you made up',
  'no path': 'a POST to a path that does not exist, such as /message',
  ended: 'a POST to a session whose stream has ended',
};
type Refusal = keyof typeof REFUSALS;

async function refuseByHand(t: TestContext, options: ByHandOptions) {
  const { print, seconds, learner } = options;
  const predictions = new Map<Refusal, string>();
  const todo = new Set(Object.keys(REFUSALS) as Refusal[]);
  const gone = new Set<string>();
  const done = new EventEmitter();
  let right = 0;
  const url = await serveByHand(t, options, {
    onEnd: ({ id }) => void gone.add(id),
    onAnswer: (req, status, text) => {
      if (predictions.size < Object.keys(REFUSALS).length) {
        return print('  A request came before your four predictions, and it does not count.');
      }
      const refusal = refusalOf(req, status, gone);
      if (!refusal) return print(`  ${adviceFor(req, status)}`);
      if (!todo.delete(refusal)) return print(`  You have already done this one: ${REFUSALS[refusal]}.`);
      const predicted = predictions.get(refusal) ?? '';
      const isRight = predicted.startsWith(String(status));
      if (isRight) right += 1;
      const seen = `you said "${predicted}", it was ${status} "${text}"`;
      print(`  ${isRight ? '✔' : '✘'} ${REFUSALS[refusal]}: ${seen}`);
      if (todo.size === 0) done.emit('done');
    },
  });
  await askPredictions(options, predictions);
  print(`The server is now at ${url}. Send the four POSTs with curl -d '{}', in any order.`);
  const missing = () => [...todo].map((name) => REFUSALS[name]).join('; ');
  const finished = waitByHand(done, seconds, () => `Still missing: ${missing()}.`);
  void learner?.(url);
  await finished;
  print(`You predicted ${right} of 4 statuses correctly. Two of the four POSTs got the same answer. Why?`);
}

/** Asks for a prediction of each refusal, until it has a status and a few words. */
async function askPredictions(
  { print, readLines }: ByHandOptions,
  predictions: Map<Refusal, string>,
) {
  const lines = readLines()[Symbol.asyncIterator]();
  print(
    'First type what you expect: the status, and a few words of the text. For example: 200 here you are',
  );
  for (const [name, what] of Object.entries(REFUSALS)) {
    print(`What does the server answer to ${what}?`);
    for (;;) {
      const { value, done } = await lines.next();
      demand(!done, 'Each of the four POSTs needs a prediction: type it here.');
      const prediction = String(value).trim();
      if (/^[1-5]\d\d\b.*[a-z]/i.test(prediction)) {
        predictions.set(name as Refusal, prediction);
        break;
      }
      print('Begin with a status of three digits, and go on with a few words of the text.');
    }
  }
}

function refusalOf(
  { method, url = '' }: http.IncomingMessage,
  status: number,
  gone: Set<string>,
): Refusal | undefined {
  const { pathname, searchParams } = new URL(url, 'http://localhost');
  if (method !== 'POST' || status < 400) return undefined;
  if (status === 404 && !/^\/messages\/?$/.test(pathname)) return 'no path';
  const sessionId = searchParams.get('sessionId');
  if (status === 400 && !sessionId) return 'no id';
  if (status === 404) return gone.has(sessionId ?? '') ? 'ended' : 'made up';
  return undefined;
}

/** What to do after a request that is not one of the four. */
function adviceFor({ method, url }: http.IncomingMessage, status: number) {
  const seen = `${method} ${url?.slice(0, 26)} got ${status}:`;
  if (method !== 'POST') return `${seen} that was a ${method}. To POST, give curl a body: -d '{}'.`;
  if (status < 400) {
    return `${seen} it was accepted, so its stream is still open. End the stream first.`;
  }
  return `${seen} that is not one of the four. If the stream is still open, end it first.`;
}

// ---- The exercises ---------------------------------------------------------------------------

const KEPT = '.workshop';

type Exercise = {
  title: string;
  file?: 'server.ts' | typeof CLIENT_FILE;
  check?: Check;
  byHand?: (t: TestContext, options: ByHandOptions) => Promise<void>;
  hints: string[];
};

const FIND_HINTS = [
  'Run the server (`npm start`), and in a second terminal `npm run doctor`. Its first finding '
    + 'is the one to follow.',
  'In openSession(), a transport goes through five steps: it is made, filed, connected, used and '
    + 'removed. For each step, say who takes it, under which id, and when.',
];

const EXERCISES: Record<string, Exercise> = {
  1: {
    title: 'Follow a session by hand',
    byHand: followByHand,
    hints: [
      'Keep one terminal for the stream (`curl -N` with the address of /sse), and post from '
        + 'another one.',
      'The endpoint event on the stream names the path to post to, with the id of your session '
        + 'in it.',
      'A POST is answered with Accepted and no more. The reply comes on the stream if the '
        + 'message had an id.',
    ],
  },
  2: {
    title: 'Four refusals',
    byHand: refuseByHand,
    hints: [
      'Ask yourself for each one: does the server know what is meant? The status 400 says that '
        + 'the request is incomplete, and 404 says that what the request names does not exist.',
      'For the fourth, open a stream, copy its id, end it with Ctrl-C, and post to that id.',
    ],
  },
  '3a': {
    title: 'Repair lost sessions: the first fault',
    file: 'server.ts',
    check: checkSessions,
    hints: [
      ...FIND_HINTS,
      'Compare the id in the endpoint event with the id under which the transport is kept. Who '
        + 'makes each?',
    ],
  },
  '3b': {
    title: 'Repair lost sessions: the second fault',
    file: 'server.ts',
    check: checkSessions,
    hints: [
      ...FIND_HINTS,
      'When does the client know its id, and when does the server? Look at each await between '
        + 'the two, and at a client that leaves meanwhile.',
    ],
  },
  '3c': {
    title: 'Repair lost sessions: the third fault',
    file: 'server.ts',
    check: checkSessions,
    hints: [
      ...FIND_HINTS,
      'The request of a stream is over long before its response is. Which of the two lasts as '
        + 'long as the session?',
    ],
  },
  '3d': {
    title: 'Repair lost sessions: the fourth fault',
    file: 'server.ts',
    check: checkSessions,
    hints: [
      ...FIND_HINTS,
      "Read the server's log when the second client comes. How many transports can one "
        + 'McpServer have, and how many servers are made?',
    ],
  },
  '3e': {
    title: 'Repair lost sessions: the fifth fault',
    file: 'server.ts',
    check: checkSessions,
    hints: [
      `${FIND_HINTS[0]} A risk, with \`!\`, is a finding too. Let the doctor watch for its 40 `
        + 'seconds: with `--watch 2` it cannot see this fault.',
      ...FIND_HINTS.slice(1),
      'What goes over an idle stream in a minute? Watch one with `curl -N`. A proxy in between '
        + 'sees nothing else.',
    ],
  },
  4: {
    title: 'Make sessions visible',
    file: 'server.ts',
    check: checkHealth,
    hints: [
      'Answer /healthz in route(), after refusalOf() and before the paths are compared: '
        + 'reply() takes a status, a text and headers.',
      'Keep three numbers beside logHooks. onSessionStart adds, and onSessionEnd subtracts: both '
        + 'are called once for each session that really started.',
      'Do not count in openSession(), and do not ask for transports.size: both see streams '
        + 'that never become sessions.',
      'onSessionEnd already works out how long the session lasted. Keep the largest of these '
        + 'numbers.',
    ],
  },
  5: {
    title: 'A call that ends with its session',
    file: 'server.ts',
    check: checkAddresses,
    hints: [
      'Copy showSystemInfo, askSystemInfo() and their registerTool(), then change them: the '
        + 'call is new URLSearchParams({ type, action, xpath }).',
      'askFirewall() takes a signal and stops when the signal fires. Pass it the same signal as '
        + 'show_system_info does.',
      'The parser makes an object of one <entry>, an array of several, and nothing of none: '
        + '[entries ?? []].flat() makes a list of any of these.',
      'Do not catch the errors of askFirewall(): the SDK makes an isError result of what a tool '
        + 'throws. Return the objects with all their fields.',
    ],
  },
  6: {
    title: 'A client that survives a restart',
    file: CLIENT_FILE,
    check: checkClient,
    hints: [
      'client.onerror is called when the stream breaks. A call that is waiting at that '
        + 'moment will never get its reply: let the call and the error race.',
      "After any answer other than 200 the SDK's EventSource gives up. Close the client and "
        + 'make a new one, with a short pause between the tries. Also close a client whose '
        + 'connect() has failed.',
      'Tell two failures apart: a result with isError is an answer and must be returned. A '
        + 'lost stream, HTTP 404 or a refused connection means that the call got no answer.',
      'Give the call a promise that client.onerror rejects: Promise.race([client.callTool({ '
        + 'name }), lost]). Put a loop around this that replaces the client.',
    ],
  },
  7: {
    title: 'Streamable HTTP beside SSE',
    file: 'server.ts',
    check: checkMcp,
    hints: [
      'Let /mcp through where the paths are compared, and serve it after isAuthorized().',
      'A StreamableHTTPServerTransport without a sessionIdGenerator keeps no sessions: use one '
        + 'transport and one getServer() for each request. Call its constructor without options: '
        + '{ sessionIdGenerator: undefined }, as in older examples, does not pass the type check.',
      "Close the transport when the response closes: res.once('close', …). That ends the calls "
        + 'of a client that has left.',
      'The same rule holds here as for SSE: an McpServer can have only one transport. Make a '
        + 'server for each request, and connect() it before transport.handleRequest(req, res).',
    ],
  },
};

// ---- The command line ------------------------------------------------------------------------

type State = { passed: string[]; hints: Record<string, number>; fault?: string };

async function readState(folder: string): Promise<State> {
  const text = await readFile(join(folder, KEPT, 'state.json'), 'utf8').catch(() => '{}');
  return { passed: [], hints: {}, ...(JSON.parse(text) as Partial<State>) };
}

/** Reads the state again before it is written: another command may have changed it meanwhile. */
async function changeState(folder: string, change: (state: State) => void) {
  const state = await readState(folder);
  change(state);
  await writeFile(join(folder, KEPT, 'state.json'), `${JSON.stringify(state, null, 2)}\n`);
}

/** Keeps server.ts as it is when the workshop begins: that is what a reset brings back. */
async function keepServer(folder: string, print: (line: string) => void) {
  const kept = join(folder, KEPT, 'server.ts');
  if (existsSync(kept)) return;
  demand(
    existsSync(join(folder, 'server.ts')),
    `server.ts is not there, and ${KEPT} has no copy of it: put the original in place.`,
  );
  await mkdir(join(folder, KEPT), { recursive: true });
  await copyFile(join(folder, 'server.ts'), kept);
  print(`A copy of server.ts as it is now is kept in ${KEPT}: \`npm run reset\` brings it back.`);
  const source = await readFile(kept, 'utf8');
  const isChanged = Object.values(FAULTS).some(({ changes }) => {
    return Object.keys(changes).some((from) => source.split(from).length !== 2);
  });
  if (!isChanged) return;
  print(
    `server.ts has been changed already. To begin with the original, put the original in place, `
      + `delete ${KEPT} and start again.`,
  );
}

/** Puts the kept server.ts back; what was there is kept beside it. Returns the name of that copy. */
async function restoreServer(folder: string) {
  const file = join(folder, 'server.ts');
  const kept = await readFile(join(folder, KEPT, 'server.ts'), 'utf8');
  const attempt = await readFile(file, 'utf8').catch(() => kept);
  let name: string | undefined;
  if (attempt !== kept) {
    const others = (await readdir(folder)).map((other) => /^attempt-(\d+)\.ts$/.exec(other)?.[1]);
    name = `attempt-${Math.max(0, ...others.map(Number).filter(Number.isFinite)) + 1}.ts`;
    await writeFile(join(folder, name), attempt);
  }
  await writeFile(file, kept);
  return name;
}

/** The first error that the compiler finds in a file, or undefined. */
async function findTypeError(t: TestContext, folder: string, files: string[]) {
  const { scripts } = JSON.parse(await readFile(join(folder, 'package.json'), 'utf8'));
  const options = (scripts.typecheck as string).split(' ').slice(1);
  const flags = options.filter((option) => !option.endsWith('.ts'));
  const compiler = join(import.meta.dirname, 'node_modules/typescript/bin/tsc');
  const { lines, exit } = runNode(
    t,
    [compiler, ...flags, '--pretty', 'false', ...files],
    {},
    folder,
  );
  if ((await exit) === 0) return undefined;
  const [, file, line, message] =
    /^(.+)\((\d+),\d+\): error TS\d+: (.+)$/m.exec(lines.join('\n')) ?? [];
  return file
    ? `${file} does not pass the type check: line ${line}: ${message}`
    : `The type check did not pass: ${lines[0]}`;
}

/** Checks one exercise with code; returns what is missing, or undefined. */
async function checkFiles({ folder, limit }: Workshop, { file = 'server.ts', check }: Exercise) {
  return withCleanUp(async (t) => {
    const late = `Something in your code never answers: the check gave up after ${seconds(limit)}.`;
    const tooLong = new Promise<string>((resolve) => {
      const timer = setTimeout(resolve, limit, late);
      t.after(() => clearTimeout(timer));
    });
    const typeError = findMissing(folder, file)
      .then(() => findTypeError(t, folder, [file]))
      .catch(missingFrom);
    const checked = typeError.then((error) => error ?? (check && checkOnStage(t, folder, check)));
    return Promise.race([checked, tooLong]);
  });
}

/** Says what the compiler would say in other words. */
async function findMissing(folder: string, file: string) {
  const source = await readFile(join(folder, file), 'utf8').catch(() => undefined);
  demand(source !== undefined, `${file} is not there: \`npm run reset\` brings it back.`);
  if (file !== CLIENT_FILE) return;
  const isExported = /^export\b[^;]*?\bconnect\b/m.test(source);
  demand(isExported, `${CLIENT_FILE} must export a function connect(url).`);
}

async function checkOnStage(t: TestContext, folder: string, check: Check) {
  const stage = await openStage(t, join(folder, KEPT));
  try {
    if (check === checkSessions) await stage.order('hurry', []);
    await check(t, stage, folder);
    return undefined;
  } catch (error) {
    return (await stage.whyEnded())?.message ?? missingFrom(error as Error);
  }
}

function missingFrom(error: Error) {
  const [line = ''] = error.message.split('\n');
  return error instanceof NotYet ? line : `The check met something that it did not expect: ${line}`;
}

/** What the commands are given; `limit` is that of one check, in milliseconds. */
type Workshop = ByHandOptions & { limit: number };

/** The commands `npm run exercise`, `hint` and `reset`. Returns the exit code. */
async function runWorkshop(command: string, args: string[], workshop: Workshop) {
  const { folder, print } = workshop;
  const options = args.filter((arg) => arg.startsWith('-'));
  const words = args.filter((arg) => !arg.startsWith('-'));
  const name = words.join('').toLowerCase();
  const mistake = mistakeIn(command, options, words, name);
  if (mistake) {
    print(mistake);
    return 2;
  }
  await keepServer(folder, print);
  if (command === 'reset') return reset(workshop);
  const exercise = EXERCISES[name];
  if (!exercise) return list(workshop, name);
  if (command === 'hint') return hint(workshop, name, exercise);
  if (exercise.byHand) return doByHand(workshop, name, exercise);
  const isNew = await prepare(workshop, name, exercise);
  const isWatched = options.length > 0;
  if (isNew && !isWatched) return 0;
  if (isWatched) return watchFile(workshop, name, exercise);
  return checkOnce(workshop, name, exercise);
}

/** What is wrong with the words behind a command; undefined if nothing is. */
function mistakeIn(command: string, options: string[], words: string[], name: string) {
  const unknown = options.find((option) => command !== 'exercise' || option !== '--watch');
  if (unknown) {
    return `\`npm run ${command}\` has no option ${unknown}. The only option is --watch, as in `
      + '`npm run exercise 4 -- --watch`.';
  }
  if (command === 'reset') {
    return words.length === 0 ? undefined
      : '`npm run reset` stands alone: leave out what follows it.';
  }
  if (Object.hasOwn(EXERCISES, name)) {
    if (!options.length || EXERCISES[name]?.check) return undefined;
    return `Exercise ${name} is done by hand, so there is no file for --watch.`;
  }
  const isList = command === 'exercise' && options.length === 0;
  if (name === '3') {
    return isList ? undefined
      : `Exercise 3 has five faults: name one, as in \`npm run ${command} 3 a\`.`;
  }
  if (name === '') {
    return isList ? undefined : `Name the exercise, as in \`npm run ${command} 4\`.`;
  }
  return `There is no exercise "${words.join(' ')}". \`npm run exercise\` lists them; the third `
    + 'has letters, as in 3 a.';
}

const spell = (name: string) => name.replace(/^(\d)(\w)/, '$1 $2');

async function list({ folder, print }: Workshop, prefix: string) {
  const state = await readState(folder);
  const names = Object.keys(EXERCISES)
    .toSorted()
    .filter((name) => name.startsWith(prefix));
  for (const name of names) {
    const title = EXERCISES[name]?.title;
    print(`${state.passed.includes(name) ? '✔' : '○'} ${spell(name).padEnd(4)} ${title}`);
  }
  const next = names.find((name) => !state.passed.includes(name));
  if (next) print(`The next one: npm run exercise ${spell(next)}`);
  return 0;
}

async function reset({ folder, print }: Workshop) {
  const wasThere = existsSync(join(folder, 'server.ts'));
  const attempt = await restoreServer(folder);
  await changeState(folder, (state) => void delete state.fault);
  if (attempt) {
    print(`server.ts is as it was at the beginning. Your attempt is kept in ${attempt}.`);
  } else if (wasThere) {
    print('server.ts is as it was at the beginning: there was nothing to put back.');
  } else {
    print('server.ts is back, as it was at the beginning.');
  }
  return 0;
}

async function hint({ folder, print }: Workshop, name: string, { hints }: Exercise) {
  const given = (await readState(folder)).hints[name] ?? 0;
  const number = given >= hints.length ? 1 : given + 1;
  print(`Hint ${number} of ${hints.length}: ${hints[number - 1]}`);
  if (number === hints.length) {
    print('That was the last hint. Look for the solution in README.md, under Workshop.');
  }
  await changeState(folder, (state) => {
    state.hints[name] = number;
  });
  return 0;
}

async function markDone({ folder, print }: Workshop, name: string) {
  await changeState(folder, (state) => {
    if (!state.passed.includes(name)) state.passed.push(name);
    delete state.fault;
  });
  print(`✔ Exercise ${spell(name)} is done: ${EXERCISES[name]?.title}.`);
  return 0;
}

function fail({ print }: Workshop, name: string, missing: string) {
  print(`✘ Not yet: ${missing}`);
  print(`  For a hint: npm run hint ${spell(name)}`);
  return 1;
}

async function doByHand(workshop: Workshop, name: string, { byHand }: Exercise) {
  const missing = await withCleanUp(async (t) => byHand?.(t, workshop)).then(
    () => undefined,
    missingFrom,
  );
  return missing === undefined ? markDone(workshop, name) : fail(workshop, name, missing);
}

async function checkOnce(workshop: Workshop, name: string, exercise: Exercise) {
  const missing = await checkFiles(workshop, exercise);
  return missing === undefined ? markDone(workshop, name) : fail(workshop, name, missing);
}

/** Checks at each save, until the exercise is done. */
async function watchFile(workshop: Workshop, name: string, exercise: Exercise) {
  const { folder, print } = workshop;
  const file = join(folder, exercise.file ?? 'server.ts');
  const saved = new EventEmitter();
  // The folder is watched, because many editors save by putting a new file in place.
  const watcher = watch(folder, () => saved.emit('saved'));
  try {
    for (;;) {
      const source = await readFile(file, 'utf8').catch(() => '');
      const code = await checkOnce(workshop, name, exercise);
      if (code === 0) return code;
      print(`  Watching ${exercise.file}: save it to check again, or end with Ctrl-C.`);
      await untilChanged(file, source, saved, workshop.seconds);
    }
  } finally {
    watcher.close();
  }
}

async function untilChanged(file: string, source: string, saved: EventEmitter, limit: number) {
  const signal = AbortSignal.timeout(limit * 1000);
  for (;;) {
    const nextSave = once(saved, 'saved', { signal }); // Before the file is read: none is missed.
    nextSave.catch(() => {});
    const text = await readFile(file, 'utf8').catch(() => source);
    if (text !== source && text !== '') return;
    await nextSave.catch(() => {
      throw new NotYet(`Nothing was saved for ${seconds(limit * 1000)}: start this command again.`);
    });
  }
}

/** Puts the fault or the first client in place, if it is not there yet. Returns whether it did. */
async function prepare(workshop: Workshop, name: string, { file }: Exercise) {
  const { folder, print } = workshop;
  const letter = /^3(\w)$/.exec(name)?.[1];
  if (letter && (await readState(folder)).fault !== letter) {
    await placeFault(workshop, letter);
    return true;
  }
  if (file === CLIENT_FILE && !existsSync(join(folder, CLIENT_FILE))) {
    await writeFile(join(folder, CLIENT_FILE), CLIENT_START);
    print(
      `${CLIENT_FILE} is yours now. This client does not survive a restart yet: change it, and `
        + `then run this command again.`,
    );
    return true;
  }
  return false;
}

async function placeFault(workshop: Workshop, letter: string) {
  const { folder, print } = workshop;
  const attempt = await restoreServer(folder);
  if (attempt) print(`Your server.ts is kept in ${attempt}.`);
  const file = join(folder, 'server.ts');
  const source = applyChanges(await readFile(file, 'utf8'), FAULTS[letter]?.changes ?? {});
  await writeFile(file, source);
  await changeState(folder, (state) => {
    state.fault = letter;
  });
  print('server.ts has a fault now. This is what its users see:');
  await withCleanUp((t) => showSymptoms(t, workshop));
  print(
    'Find the fault (npm start, npm run doctor), say in one sentence why sessions are lost, and '
      + 'repair the fault.',
  );
  print(`Then check your repair: npm run exercise 3 ${letter}`);
}

function applyChanges(source: string, changes: Record<string, string>) {
  return Object.entries(changes).reduce((text, [from, to]) => {
    demand(
      text.split(from).length === 2,
      `The server.ts in ${KEPT} is not the original: it has to contain this text once.`,
      from,
    );
    return text.replace(from, () => to);
  }, source);
}

/** Lets two clients of the SDK call the tool, and shows what they and the server's log say. */
async function showSymptoms(t: TestContext, { folder, print }: Workshop) {
  const stage = await openStage(t, join(folder, KEPT));
  await stage.order('hurry', []);
  const proxy = await startImpatientProxy(t, await serveFile(stage, folder), 2000);
  let idle = true;
  const broken = new EventEmitter();
  for (const number of [1, 2]) {
    const client = new Client({ name: `client-${number}`, version: '1.0.0' });
    t.after(() => client.close());
    const said = await useClient(client, proxy);
    print(`  Client ${number}: ${said ?? 'called the tool and got its result'}`);
    if (said) idle = false;
    else client.onerror = ({ message }) => broken.emit('broken', number, message.split('\n')[0]);
  }
  if (idle) {
    const [number, message] = await once(broken, 'broken', {
      signal: AbortSignal.timeout(5000),
    }).catch(() => []);
    if (message) print(`  Client ${number}, idle for a minute behind a proxy: ${message}`);
  }
  for (const line of stage.lines
    .filter((line) => /^(Session|Error|\w+ failed)/.test(line))
    .slice(0, 8)) {
    print(`  Server's log: ${line}`);
  }
}

async function useClient(client: Client, url: string) {
  try {
    await client.connect(new SSEClientTransport(new URL('/sse', url)), { timeout: 3000 });
    await client.callTool({ name: 'show_system_info' }, undefined, { timeout: 3000 });
    return undefined;
  } catch (error) {
    return (error as Error).message.split('\n')[0];
  }
}

if (isTask('exercise') || isTask('hint') || isTask('reset')) {
  // Ctrl-C has to end the stage as well, even if that is blocked.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(1));
  // A reader that goes away, as in `npm run exercise 3 a | head -1`, does not end the command.
  process.stdout.on('error', () => undefined);
  const workshop: Workshop = {
    folder: import.meta.dirname,
    print: console.log,
    readLines: () => createInterface(process.stdin),
    port: process.env['PORT']?.trim() || '3000',
    seconds: 1800,
    limit: 13_000,
  };
  const code = await runWorkshop(task ?? '', process.argv.slice(3), workshop).catch((error: Error) => {
    console.log(`✘ ${missingFrom(error)}`);
    return 1;
  });
  process.stdout.write('', () => process.exit(code));
}

// ---- The proofs ------------------------------------------------------------------------------

/** What a participant might write: changes to the fault (3), or to the printed solution (4 to 7). */
type Variant = { what: string; changes: Record<string, string>; says?: RegExp };
type Variants = { right: Variant[]; wrong: Variant[] };

const SET = '    this.transports.set(sessionId, transport);\n';
const MADE_ID = 'const sessionId = globalThis.crypto.randomUUID();';
const LATE = '      await lookUpUser(req);\n      this.transports.set(sessionId, transport);\n';
const MADE_TRANSPORT =
  '    const transport = new SSEServerTransport(this.options.messagesPath, res);\n';
const GET_CLOSED =
  "    req.resume();\n    req.on('close', () => this.transports.delete(sessionId));\n";
const OWN_SERVER = '    this.mcpServer = options.getServer();\n';
const SHARED = 'await this.mcpServer.connect(transport);';
const NO_COMMENT =
  '  closeIfUnread(transport, res);\n}\n\n/** Ends the session of a client that has stopped';
const COMMENT = (line: string) => NO_COMMENT.replace('}\n', `${line}}\n`);
const END = 'if (!this.transports.delete(sessionId)) return;';

const ANSWERED =
  "    return reply(res, 200, JSON.stringify(health), { 'Content-Type': 'application/json' });\n";
const COUNT_UP = '    health.sessions += 1;\n    health.started += 1;\n';
const COUNT_DOWN =
  '    health.sessions -= 1;\n    health.longestMs = Math.max(health.longestMs, lasted);\n';
const ENTRIES = '  const entries = [data?.address.entry ?? []].flat();\n';
const SERVED = "  if (path === '/mcp') return handleMcp(sessions.options.getServer(), req, res);\n";
const CLOSE = '    await client.close();\n';
const OPEN = '    session = await openSession(url);\n';
const wait = (ms: number) => `    await new Promise((resolve) => setTimeout(resolve, ${ms}));\n`;
const CONNECTED = `  const transport = new StreamableHTTPServerTransport();
  res.once('close', () => void transport.close());
  await server.connect(transport);
`;

const VARIANTS: Record<string, Variants> = {
  '3a': {
    right: [
      {
        what: 'the id is read from the transport',
        changes: { [MADE_ID]: 'const sessionId = transport.sessionId;' },
      },
      {
        what: "the transport is given the server's id before it starts",
        changes: {
          [MADE_ID]: `${MADE_ID}\n    Object.assign(transport, { _sessionId: sessionId });`,
        },
      },
    ],
    wrong: [
      { what: 'nothing is changed', changes: {}, says: /POST must be accepted\. Seen: 404/ },
      {
        what: 'it is filed under both ids, and removed under one',
        changes: { [SET]: `${SET}    this.transports.set(transport.sessionId, transport);\n` },
        says: /a POST with its id must get 404/,
      },
      {
        what: 'it is filed once more, under an id that nobody knows',
        changes: {
          [MADE_ID]: 'const { sessionId } = transport;',
          [SET]: `${SET}    this.transports.set(globalThis.crypto.randomUUID(), transport);\n`,
        },
        says: /no transport may be kept: .* Seen: \d+ transports are kept/,
      },
      {
        what: 'an unknown id gets the newest transport',
        changes: { '= this.transports.get(sessionId);': '= [...this.transports.values()].at(-1);' },
        says: /POST must be accepted\. Seen: 400/,
      },
      {
        what: 'an unknown id gets the first transport',
        changes: { '= this.transports.get(sessionId);': '= [...this.transports.values()][0];' },
        says: /POST must be accepted\. Seen: 400/,
      },
      {
        what: "it is filed under the client's address",
        changes: { [MADE_ID]: 'const sessionId = String(req.socket.remoteAddress);' },
        says: /POST must be accepted\. Seen: 404/,
      },
      {
        what: "the made id is put into the path, where the SDK's own replaces it",
        changes: {
          [`${MADE_TRANSPORT}    ${MADE_ID}\n`]: `    ${MADE_ID}\n${MADE_TRANSPORT.replace('this.options.messagesPath', '`${this.options.messagesPath}?sessionId=${sessionId}`')}`,
        },
        says: /POST must be accepted\. Seen: 404/,
      },
    ],
  },
  '3b': {
    right: [
      {
        what: 'it is filed first, and the look-up follows',
        changes: {
          [LATE]: '      await lookUpUser(req);\n',
          [MADE_TRANSPORT]: MADE_TRANSPORT,
          '    const session = {': `${SET}    const session = {`,
        },
      },
      {
        what: 'the look-up comes before the transport, with a look at who is still there',
        changes: {
          [MADE_TRANSPORT]: `    await lookUpUser(req);\n    if (res.closed) return;\n${MADE_TRANSPORT}`,
          [LATE]: '',
          '    const session = {': `${SET}    const session = {`,
        },
      },
    ],
    wrong: [
      {
        what: 'nothing is changed',
        changes: {},
        says: /without waiting, .*must be accepted\. Seen: 404|must get 404|hooks must have counted/,
      },
      {
        what: 'the look-up is only made quicker',
        changes: { 'setTimeout(resolve, 200)': 'setTimeout(resolve, 100)' },
        says: /without waiting, .*must be accepted\. Seen: 404|must get 404|hooks must have counted/,
      },
      {
        what: 'it is filed before the look-up and once more after it',
        changes: { '    const session = {': `${SET}    const session = {` },
        says: /left as soon as .* must get 404|hooks must have counted/,
      },
      {
        what: 'the look-up comes before the transport, and nobody looks who is still there',
        changes: {
          [MADE_TRANSPORT]: `    await lookUpUser(req);\n${MADE_TRANSPORT}`,
          [LATE]: '',
          '    const session = {': `${SET}    const session = {`,
        },
        says: /hooks must have counted \d open sessions/,
      },
      {
        what: 'the look-up is not awaited, and files when it is through',
        changes: {
          [LATE]:
            '      void lookUpUser(req).then(() => this.transports.set(sessionId, transport));\n',
        },
        says: /without waiting, .*must be accepted\. Seen: 404|must get 404|hooks must have counted/,
      },
      {
        what: 'it is filed after the start hook',
        changes: {
          [LATE]: '      await lookUpUser(req);\n',
          '    if (this.transports.has(sessionId)) started = ': `    await this.callHook('onSessionStart', session);\n${SET}    if (this.transports.has(sessionId)) started = `,
        },
        says: /without waiting, .*must be accepted\. Seen: 404|must get 404|hooks must have counted/,
      },
    ],
  },
  '3c': {
    right: [
      { what: 'onclose alone removes it', changes: { [GET_CLOSED]: '' } },
      {
        what: "the response's close ends it",
        changes: { [GET_CLOSED]: "    res.on('close', () => void transport.close());\n" },
      },
    ],
    wrong: [
      { what: 'nothing is changed', changes: {}, says: /POST must be accepted\. Seen: 404/ },
      {
        what: "the request's close ends the transport",
        changes: {
          "'close', () => this.transports.delete(sessionId)":
            "'close', () => void transport.close()",
        },
        says: /must be accepted|own stream|must get/,
      },
      {
        what: "the request's end removes it",
        changes: { "req.on('close'": "req.on('end'" },
        says: /POST must be accepted\. Seen: 404/,
      },
      {
        what: 'it is removed a second later',
        changes: {
          [GET_CLOSED]: '    setTimeout(() => this.transports.delete(sessionId), 1000);\n',
        },
        says: /must be accepted\. Seen: 404|hooks must have counted/,
      },
      {
        what: 'it is removed 20 s later',
        changes: {
          [GET_CLOSED]:
            '    setTimeout(() => this.transports.delete(sessionId), 20_000).unref();\n',
        },
        says: /must be accepted\. Seen: 404|hooks must have counted/,
      },
      {
        what: 'it is removed a minute later',
        changes: {
          [GET_CLOSED]:
            '    setTimeout(() => this.transports.delete(sessionId), 60_000).unref();\n',
        },
        says: /idle for a minute .*must be accepted\. Seen: 404|hooks must have counted/,
      },
      {
        what: 'the transport is closed 45 s later',
        changes: { [GET_CLOSED]: '    setTimeout(() => transport.close(), 45_000).unref();\n' },
        says: /must not end the stream of an idle client|hooks must have counted|must be accepted/,
      },
      {
        what: 'nothing removes it',
        changes: { [GET_CLOSED]: '', [END]: 'if (!this.transports.has(sessionId)) return;' },
        says: /must get 404/,
      },
      {
        what: 'it is removed where the hooks do not learn of it',
        changes: {
          [GET_CLOSED]:
            "    res.prependListener('close', () => this.transports.delete(sessionId));\n",
        },
        says: /hooks must have counted 2 open sessions\. Seen: 5 calls of onSessionStart and 0/,
      },
    ],
  },
  '3d': {
    right: [
      {
        what: 'a server is made where the transport is connected',
        changes: {
          [SHARED]: 'await this.options.getServer().connect(transport);',
          [OWN_SERVER]: '',
          '  private readonly mcpServer: McpServer;\n': '',
        },
      },
      {
        what: 'a function makes the server',
        changes: {
          '  private readonly mcpServer: McpServer;\n':
            '  private readonly makeServer: () => McpServer;\n',
          [OWN_SERVER]: '    this.makeServer = options.getServer;\n',
          [SHARED]:
            'const mcpServer = this.makeServer();\n      await mcpServer.connect(transport);',
        },
      },
    ],
    wrong: [
      {
        what: 'nothing is changed',
        changes: {},
        says: /must get a stream from GET \/sse\. Seen: 500/,
      },
      {
        what: 'the server is closed before the next client',
        changes: { [SHARED]: `await this.mcpServer.close();\n      ${SHARED}` },
        says: /must get|must come|must be accepted/,
      },
      {
        what: 'the error is swallowed',
        changes: {
          [SHARED]: 'await this.mcpServer.connect(transport).catch(() => transport.start());',
        },
        says: /must come on its own stream/,
      },
      {
        what: 'two servers take turns',
        changes: {
          [OWN_SERVER]: `${OWN_SERVER}    this.spareServer = options.getServer();\n`,
          '  private readonly mcpServer: McpServer;\n':
            '  private readonly mcpServer: McpServer;\n  private readonly spareServer: '
            + 'McpServer;\n',
          [SHARED]:
            'await (this.transports.size % 2 ? this.mcpServer : '
            + 'this.spareServer).connect(transport);',
        },
        says: /must get a stream from GET \/sse\. Seen: 500/,
      },
      {
        what: 'one server for each address',
        changes: {
          '  private readonly mcpServer: McpServer;\n':
            '  private readonly mcpServers = new Map<string, McpServer>();\n',
          [OWN_SERVER]: '',
          [SHARED]: `const address = String(req.socket.remoteAddress);
      const mcpServer = this.mcpServers.get(address) ?? this.options.getServer();
      this.mcpServers.set(address, mcpServer);
      await mcpServer.connect(transport);`,
        },
        says: /must get a stream from GET \/sse\. Seen: 500/,
      },
      {
        what: 'eight servers take turns',
        changes: {
          '  private readonly mcpServer: McpServer;\n':
            '  private readonly pool: McpServer[] = [];\n  private taken = 0;\n',
          [OWN_SERVER]: '',
          [SHARED]: `this.taken += 1;
      const mcpServer = (this.pool[this.taken % 8] ??= this.options.getServer());
      await mcpServer.connect(transport);`,
        },
        says: /McpServer of its own: .* called 8 times for|many clients.* must get a stream/,
      },
      {
        what: 'the server is replaced only while it has a client',
        changes: {
          '  private readonly mcpServer': '  private mcpServer',
          [SHARED]: `if (this.mcpServer.isConnected()) this.mcpServer = this.options.getServer();
      ${SHARED}`,
        },
        says: /McpServer of its own: .* Seen: getServer\(\) was called \d+ times/,
      },
      {
        what: 'the transport of the one before is forgotten, not closed',
        changes: {
          [SHARED]: `Object.assign(this.mcpServer.server, { _transport: undefined });\n      ${SHARED}`,
        },
        says: /must come on its own stream/,
      },
    ],
  },
  '3e': {
    right: [
      {
        what: 'a comment at each interval',
        changes: {
          [NO_COMMENT]: COMMENT("  if (!res.writableEnded) res.write(': still here\\n\\n');\n"),
        },
      },
      {
        what: 'a comment from a timer that starts itself again',
        changes: {
          [NO_COMMENT]: COMMENT("  if (!res.writableEnded) res.write(': still here\\n\\n');\n"),
          'const keepAlive = setInterval(() => sendKeepAlive(transport, res), KEEP_ALIVE_MS);': `const beat = () => {
      sendKeepAlive(transport, res);
      keepAlive = setTimeout(beat, KEEP_ALIVE_MS);
    };
    let keepAlive = setTimeout(beat, KEEP_ALIVE_MS);`,
        },
      },
      {
        what: 'a ping of MCP at each interval',
        changes: {
          [NO_COMMENT]: COMMENT(
            "  if (!res.writableEnded) void transport.send({ jsonrpc: '2.0', id: "
              + "`ping-${Date.now()}`, method: 'ping' });\n",
          ),
        },
      },
    ],
    wrong: [
      { what: 'nothing is changed', changes: {}, says: /outlive a proxy .*0 comments/ },
      {
        what: 'a comment, each two minutes',
        changes: {
          [NO_COMMENT]: COMMENT("  if (!res.writableEnded) res.write(': still here\\n\\n');\n"),
          'KEEP_ALIVE_MS = 15_000': 'KEEP_ALIVE_MS = 120_000',
        },
        says: /outlive a proxy .*0 comments/,
      },
      {
        what: 'data in place of a comment',
        changes: {
          [NO_COMMENT]: COMMENT("  if (!res.writableEnded) res.write('data: still here\\n\\n');\n"),
        },
        says: /doctor must find nothing\. Seen: heartbeat-as-data/,
      },
      {
        what: 'a comment once',
        changes: {
          '    const keepAlive = setInterval(':
            "    setTimeout(() => res.write(': still here\\n\\n'), 100);\n    const keepAlive "
            + '= setInterval(',
        },
        says: /outlive a proxy .*1 comments/,
      },
      {
        what: 'the first four comments only',
        changes: {
          '    const keepAlive = setInterval(': `    let comments = 0;
    const sendKeepAlive = (transport: SSEServerTransport, res: ServerResponse) => {
      closeIfUnread(transport, res);
      comments += 1;
      if (comments <= 4 && !res.writableEnded) res.write(': still here\\n\\n');
    };
    const keepAlive = setInterval(`,
          [`/** Looks after a stream that is open. */
function sendKeepAlive(transport: SSEServerTransport, res: ServerResponse) {
${NO_COMMENT.split('/**')[0]}`]: '',
        },
        says: /outlive a proxy .*4 comments|must be accepted|own stream/,
      },
      {
        what: 'a timer that outlives its session',
        changes: {
          [NO_COMMENT]: COMMENT("  if (!res.writableEnded) res.write(': still here\\n\\n');\n"),
          'clearInterval(keepAlive)': 'void keepAlive',
        },
        says: /timers must end too: .* Seen: \d+ timers were still running/,
      },
      {
        what: "the socket's keep-alive, which no proxy sees",
        changes: {
          '    const keepAlive = setInterval(':
            '    req.socket.setKeepAlive(true, 1000);\n    const keepAlive = setInterval(',
        },
        says: /outlive a proxy .*0 comments/,
      },
      {
        what: 'a comment that stays in a buffer',
        changes: { [NO_COMMENT]: COMMENT("  res.cork();\n  res.write(': still here\\n\\n');\n") },
        says: /outlive a proxy .*0 comments|must/,
      },
    ],
  },
  4: {
    right: [
      {
        what: 'the hooks are wrapped in main(), around a set of the open ones',
        changes: {
          [COUNT_UP]: '',
          [COUNT_DOWN]: '',
          '      hooks: logHooks,\n': `      hooks: {
        onSessionStart(session) {
          open.add(session);
          health.started += 1;
          return logHooks.onSessionStart?.(session);
        },
        onSessionEnd(session) {
          open.delete(session);
          const lasted = Date.now() - session.startedAt.getTime();
          if (lasted > health.longestMs) health.longestMs = lasted;
          return logHooks.onSessionEnd?.(session);
        },
      },
`,
          'const health = {': 'const open = new Set<Session>();\nconst health = {',
          'JSON.stringify(health)': 'JSON.stringify({ ...health, sessions: open.size })',
        },
      },
      {
        what: 'the hooks are wrapped where the server is made, and the answer is written by hand',
        changes: {
          [COUNT_UP]: '',
          [COUNT_DOWN]: '',
          'const sessions = new Sessions(withDefaults(options));': `const { hooks } = options;
  const sessions = new Sessions(withDefaults({ ...options, hooks: {
    async onSessionStart(session) {
      health.sessions++;
      health.started++;
      await hooks?.onSessionStart?.(session);
    },
    async onSessionEnd(session) {
      health.sessions--;
      health.longestMs = Math.max(health.longestMs, Date.now() - session.startedAt.getTime());
      await hooks?.onSessionEnd?.(session);
    },
  } }));`,
          [ANSWERED]: `    res.setHeader('Content-Type', 'application/json; charset=utf-8');
    res.end(JSON.stringify({ ok: true, ...health }));
    return;
`,
        },
      },
    ],
    wrong: [
      {
        what: 'sessions is transports.size',
        changes: {
          'JSON.stringify(health)':
            "JSON.stringify({ ...health, sessions: sessions['transports'].size })",
        },
        says: /still opening, .*"sessions":0.* Seen: \{"sessions":1/,
      },
      {
        what: 'counted at the top of openSession()',
        changes: {
          [COUNT_UP]: '',
          [SET]: `${SET}    health.sessions += 1;\n    health.started += 1;\n`,
        },
        says: /failed while it opened, so no hook was called/,
      },
      {
        what: 'counted in openSession() after connect()',
        changes: {
          [COUNT_UP]: '',
          '    if (this.transports.has(sessionId)) started':
            '    health.sessions += 1;\n    health.started += 1;\n    if '
            + '(this.transports.has(sessionId)) started',
        },
        says: /ended while it opened, so no hook was called/,
      },
      {
        what: 'each GET /sse is counted in route()',
        changes: {
          '    health.started += 1;\n': '',
          "  if (path === ssePath && req.method === 'GET') {\n":
            "  if (path === ssePath && req.method === 'GET') {\n    health.started += 1;\n",
        },
        says: /failed while it opened, so no hook was called/,
      },
      {
        what: 'the requests are counted before anybody looks at their token',
        changes: {
          '    health.started += 1;\n': '',
          '  if (!isAuthorized(req, token)) {\n':
            '  if (path === ssePath) health.started += 1;\n  if (!isAuthorized(req, token)) {\n',
        },
        says: /refused: GET \/healthz must say/,
      },
      {
        what: '/healthz before the host check',
        changes: {
          '  if (!res.socket) {':
            "  if (req.url === '/healthz') {\n    return reply(res, 200, JSON.stringify(health), { 'Content-Type': 'application/json' });\n  }\n  if "
            + '(!res.socket) {',
        },
        says: /foreign Host must get 403/,
      },
      {
        what: '/healthz behind the token',
        changes: {
          "  if (path === '/healthz') {":
            "  if (!isAuthorized(req, token)) return reply(res, 401, 'Bearer token needed');\n "
            + " if (path === '/healthz') {",
        },
        says: /answered without a token/,
      },
      {
        what: 'nobody counts down',
        changes: { '    health.sessions -= 1;\n': '' },
        says: /One of two streams has ended: .*"sessions":1/,
      },
      {
        what: 'the last one in place of the longest',
        changes: { 'Math.max(health.longestMs, lasted)': 'lasted' },
        says: /A shorter session came and went/,
      },
      {
        what: 'the open session counts for the longest',
        changes: {
          'const health = {': 'let since = 0;\nconst health = {',
          [COUNT_UP]: `${COUNT_UP}    since = Date.now();\n`,
          'JSON.stringify(health)': `JSON.stringify({
      ...health,
      longestMs: Math.max(health.longestMs, health.sessions > 0 ? Date.now() - since : 0),
    })`,
        },
        says: /older than the longest that|A shorter session came and went|must be how many/,
      },
      {
        what: 'the longest is forgotten when all have ended',
        changes: {
          [COUNT_DOWN]: COUNT_DOWN.replace(
            '    health.longestMs',
            '    if (health.sessions === 0) health.longestMs = 0;\n    health.longestMs',
          ),
        },
        says: /A shorter session came and went alone/,
      },
      {
        what: 'the longest is forgotten when the next one starts',
        changes: {
          [COUNT_UP]: `${COUNT_UP}    if (health.sessions === 1) health.longestMs = 0;\n`,
        },
        says: /A session has started after all had ended/,
      },
      {
        what: 'the id of a session is told',
        changes: {
          'const health = {': "let newest = '';\nconst health = {",
          [COUNT_UP]: `${COUNT_UP}    newest = session.id;\n`,
          'JSON.stringify(health)': 'JSON.stringify({ ...health, newest })',
        },
        says: /must not tell the id of a session/,
      },
      {
        what: 'seconds in place of milliseconds',
        changes: {
          'Math.max(health.longestMs, lasted)': 'Math.max(health.longestMs, lasted / 1000)',
        },
        says: /longestMs must be how many milliseconds/,
      },
      {
        what: 'an answer that never comes',
        changes: {
          [ANSWERED]: '    return;\n',
        },
        says: /GET \/healthz must be answered: .*no answer within 3 s/,
      },
      {
        what: 'text in place of JSON',
        changes: { "{ 'Content-Type': 'application/json' }": '{}' },
        says: /Content-Type must be application\/json/,
      },
    ],
  },
  5: {
    right: [
      {
        what: 'Array.isArray() in place of flat()',
        changes: {
          [ENTRIES]: `  const entry = data?.address.entry;
  if (entry === undefined) return [];
  const entries = Array.isArray(entry) ? entry : [entry];
`,
        },
      },
      {
        what: 'a schema that takes all three forms',
        changes: {
          '  const { data } = addressesSchema.safeParse(result);\n': '',
          '  // The parser makes an object of one entry, a list of several, and nothing of none.\n  const entries = [data?.address.entry ?? []].flat();\n  return z.array(addressSchema).parse(entries);\n':
            '  return addressesSchema.parse(result).address;\n',
          'const addressesSchema = z.object({ address: z.object({ entry: z.unknown() }) });': `const addressesSchema = z.object({
  address: z.union([
    z.object({ entry: z.array(addressSchema) }).transform(({ entry }) => entry),
    z.object({ entry: addressSchema }).transform(({ entry }) => [entry]),
    z.literal('').transform(() => []),
  ]),
});`,
        },
      },
    ],
    wrong: [
      {
        what: 'another name',
        changes: { "registerTool('show_address_objects'": "registerTool('show_addresses'" },
        says: /must be a tool show_address_objects.* Seen: show_system_info, show_addresses/,
      },
      {
        what: 'another vsys',
        changes: { "@name='vsys1']/address": "@name='vsys2']/address" },
        says: /with the xpath of the exercise\. Seen: .*vsys2/,
      },
      {
        what: 'the candidate configuration',
        changes: { "action: 'show'": "action: 'get'" },
        says: /action=show.* Seen: action=get/,
      },
      {
        what: 'no signal',
        changes: {
          'askFirewall(firewall, call, signal);\n  const { data } = addressesSchema':
            'askFirewall(firewall, call, new AbortController().signal);\n  const { data } = '
            + 'addressesSchema',
        },
        says: /cancelled by its client, and the call to the firewall must end too/,
      },
      {
        what: 'the signal of the session only',
        changes: {
          'await askAddresses(firewall, signal)':
            'await askAddresses(firewall, AbortSignal.any([signal.aborted ? signal : '
            + 'sessionEnd.signal]))',
        },
        says: /cancelled by its client, and the call to the firewall must end too/,
      },
      {
        what: 'a call that goes on when its client leaves',
        changes: {
          'const addresses = firewall ? await askAddresses(firewall, signal)': `const cancelled = new AbortController();
    signal.onabort = () => setTimeout(() => sessionEnd.signal.aborted || cancelled.abort(), 50);
    const addresses = firewall ? await askAddresses(firewall, cancelled.signal)`,
        },
        says: /The client of a call left, and the call to the firewall must end too/,
      },
      {
        what: 'the signal of the call only',
        changes: {
          'await askAddresses(firewall, signal)':
            'await askAddresses(firewall, signal.aborted ? signal : extra.signal)',
        },
        says: /two calls the same id and left: the call to the firewall must end too/,
      },
      {
        what: 'it asks twice',
        changes: {
          '  const { data } = addressesSchema':
            '  await askFirewall(firewall, call, signal);\n  const { data } = addressesSchema',
        },
        says: /must ask the firewall once, .* Seen: the firewall was asked 2 times/,
      },
      {
        what: 'an error is asked again',
        changes: {
          'await askFirewall(firewall, call, signal);\n  const { data } = addressesSchema': `await askFirewall(firewall, call, signal).catch(() => {
    return askFirewall(firewall, call, signal);
  });
  const { data } = addressesSchema`,
        },
        says: /must ask the firewall once, .* Seen: the firewall was asked 2 times/,
      },
      {
        what: 'the first three only',
        changes: { 'parse(entries);': 'parse(entries.slice(0, 3));' },
        says: /twelve address objects: .* Seen: 3 objects/,
      },
      {
        what: 'some of the fields only',
        changes: {
          'z.array(addressSchema).parse(entries)': `z.array(addressSchema).parse(entries).map((address) => {
    return { ...address, description: undefined };
  })`,
        },
        says: /has two address objects/,
      },
      {
        what: 'errors become an empty list',
        changes: {
          'await askFirewall(firewall, call, signal);\n  const { data } = addressesSchema':
            'await askFirewall(firewall, call, signal).catch(() => undefined);\n  const { data '
            + '} = addressesSchema',
        },
        says: /the tool must fail, and not return a result\. Seen: \{"addresses":\[\]\}/,
      },
      {
        what: 'errors lose their words',
        changes: {
          'await askFirewall(firewall, call, signal);\n  const { data } = addressesSchema':
            "await askFirewall(firewall, call, signal).catch(() => {\n    throw new Error('It "
            + "failed.');\n  });\n  const { data } = addressesSchema",
        },
        says: /error must hold the firewall's own words/,
      },
      {
        what: 'one entry is no list',
        changes: { '[data?.address.entry ?? []].flat()': 'data?.address.entry ?? []' },
        says: /has one address object/,
      },
      {
        what: 'none is an error',
        changes: { 'addressesSchema.safeParse(result)': '{ data: addressesSchema.parse(result) }' },
        says: /has no address object/,
      },
      {
        what: 'the names alone',
        changes: {
          'z.array(addressSchema).parse(entries)':
            'z.array(z.object({ name: z.string() })).parse(entries)',
        },
        says: /has two address objects/,
      },
      {
        what: 'no sample',
        changes: { ': SAMPLE_ADDRESSES;': ': SAMPLE_ADDRESSES.slice(1);' },
        says: /Without a firewall, the tool must return/,
      },
      {
        what: 'a sample that does not say so',
        changes: {
          '    const addresses = firewall ?':
            "    const SAMPLE_NOTE = 'Some addresses';\n    const addresses = firewall ?",
        },
        says: /must say that this is sample data/,
      },
      {
        what: 'a call that never ends',
        changes: {
          ': SAMPLE_ADDRESSES;': ': await new Promise<typeof SAMPLE_ADDRESSES>(() => {});',
        },
        says: /called show_address_objects, .*no reply within 3 s/,
      },
    ],
  },
  6: {
    right: [
      {
        what: 'a new client whenever the old one has broken, and onclose in place of a race',
        changes: {
          '      client.onerror = reject;\n':
            '      client.onerror = () => void client.close();\n      client.onclose = () => '
            + "reject(new Error('The stream has ended.'));\n",
          'if (error instanceof McpError) throw error;':
            'if (error instanceof McpError && error.code !== ErrorCode.ConnectionClosed) throw '
            + 'error;',
          'McpError }': 'ErrorCode, McpError }',
        },
      },
      {
        what: 'a client for each call',
        changes: {
          '    const { client, lost } = session;\n':
            `    await session.client.close();\n${OPEN}    const { client, lost } = session;\n`,
        },
      },
    ],
    wrong: [
      {
        what: 'the client that it begins with',
        changes: {
          'await Promise.race([client.callTool({ name }), lost])':
            "await (name === '' ? lost : client.callTool({ name }))",
        },
        says: /must be tried again\. Seen: no result within 4\.5 s/,
      },
      {
        what: 'the same client is asked again',
        changes: { [`${CLOSE}${OPEN}`]: `    if (name === '') {\n  ${OPEN}    }\n${wait(250)}` },
        says: /must be tried again/,
      },
      {
        what: 'a lost call is reported, not tried again',
        changes: {
          'throw error; // The server has answered.\n':
            `throw error;\n${CLOSE}${OPEN}      throw error;\n`,
        },
        says: /was on its way, and has come back: the call must be tried again/,
      },
      {
        what: 'one try to reconnect',
        changes: { [`  ${wait(250)}`]: "      throw new Error('The server is not back.');\n" },
        says: /must be tried again\. Seen: The server is not back/,
      },
      {
        what: 'the SDK reconnects, and the call is tried again after that',
        changes: {
          [`${CLOSE}${OPEN}`]: `    if (name === '') {\n  ${OPEN}    }\n${wait(3500)}`
            + '    session.lost = new Promise<never>(() => {});\n',
        },
        says: /has come back: the call must be tried again/,
      },
      {
        what: 'the old clients stay open',
        changes: { [`${CLOSE}${OPEN}`]: OPEN },
        says: /one open stream: close the client that you replace|must be tried again once|no open stream/,
      },
      {
        what: "a tool's error is tried again",
        changes: {
          'return (await Promise.race([client.callTool({ name }), lost])) as CallToolResult;':
            'const call = client.callTool({ name });\n      '
            + 'const result = (await Promise.race([call, lost])) as CallToolResult;\n      '
            + "if (!result.isError) return result;",
        },
        says: /that is an answer, and must not be tried again/,
      },
      {
        what: 'what the server refuses is tried again for ever',
        changes: {
          'catch (error) {\n      if (error instanceof McpError) throw error; // The server has answered.':
            'catch {\n      // Whatever it was, it is tried again.',
          'CallToolResult, McpError }': 'CallToolResult }',
        },
        says: /no such tool: that is an answer too/,
      },
      {
        what: 'the first errors of the server are tried again',
        changes: {
          '  let session =': '  let tries = 0;\n  let session =',
          'if (error instanceof McpError) throw':
            'if (error instanceof McpError && tries++ > 2) throw',
        },
        says: /no such tool: that is an answer too, and must not be tried again\. Seen: .* 4 times/,
      },
      {
        what: 'a slow call is tried again',
        changes: {
          'client.callTool({ name })': 'client.callTool({ name }, undefined, { timeout: 1000 })',
          'if (error instanceof McpError) throw':
            'if (error instanceof McpError && error.code !== -32001) throw',
        },
        says: /A call takes 2\.5 s, and its stream is open/,
      },
      {
        what: 'only one kind of error is an answer',
        changes: {
          'if (error instanceof McpError) throw':
            'if (error instanceof McpError && error.code === -32602) throw',
        },
        says: /another JSON-RPC error: that is an answer too, and must not be tried again/,
      },
      {
        what: 'close() does nothing',
        changes: { 'close: () => session.client.close()': 'close: async () => {}' },
        says: /After close\(\) the client must have no open stream/,
      },
    ],
  },
  7: {
    right: [
      {
        what: 'sessions of Streamable HTTP, by a reply of JSON for each',
        changes: {
          'new StreamableHTTPServerTransport()':
            'new StreamableHTTPServerTransport({ enableJsonResponse: true })',
        },
      },
      {
        what: 'POST only, and all that goes on in route()',
        changes: {
          [SERVED]: `  if (path === '/mcp') {
    if (req.method !== 'POST') return reply(res, 405, 'Use POST', { Allow: 'POST' });
    const mcpServer = sessions.options.getServer();
    res.on('close', () => void mcpServer.close());
    return handleMcp(mcpServer, req, res);
  }
`,
          "  res.once('close', () => void transport.close());\n": '',
        },
      },
    ],
    wrong: [
      {
        what: 'no path',
        changes: { "&& path !== '/mcp'": "&& path !== '/other'" },
        says: /There must be a path \/mcp/,
      },
      {
        what: 'before the token is looked at',
        changes: {
          [SERVED]: '',
          '  if (!isAuthorized(req, token)) {\n':
            "  if (path === '/mcp') return handleMcp(sessions.options.getServer(), req, "
            + 'res);\n  if (!isAuthorized(req, token)) {\n',
        },
        says: /for \/mcp without a token must get 401/,
      },
      {
        what: 'the token is no longer needed for the stream',
        changes: { '  if (!isAuthorized(': '  if (path !== ssePath && !isAuthorized(' },
        says: /GET \/sse without a token must get 401 as before\. Seen: 200/,
      },
      {
        what: 'the token is no longer needed to post',
        changes: { '  if (!isAuthorized(': '  if (path !== messagesPath && !isAuthorized(' },
        says: /POST \/messages without a token must get 401 as before\. Seen: 400/,
      },
      {
        what: 'the token is needed for /mcp alone',
        changes: { '  if (!isAuthorized(': "  if (path === '/mcp' && !isAuthorized(" },
        says: /GET \/sse without a token must get 401 as before\. Seen: 200/,
      },
      {
        what: 'each path that begins with /mcp',
        changes: {
          "&& path !== '/mcp'": "&& !path?.startsWith('/mcp')",
          "path === '/mcp') return": "path?.startsWith('/mcp')) return",
        },
        says: /POST \/mcpfoo must get 404/,
      },
      {
        what: 'before the cross-site check',
        changes: {
          'if (refusal) return reply(res, 403,':
            "if (refusal && !(url?.pathname === '/mcp' && isCrossSite(req))) return reply(res, 403,",
        },
        says: /cross-site request for \/mcp must get 403/,
      },
      {
        what: 'before the host is looked at',
        changes: {
          '  if (!res.socket) {':
            "  if (req.url === '/mcp') return handleMcp(sessions.options.getServer(), req, "
            + 'res);\n  if (!res.socket) {',
        },
        says: /with a foreign Origin must get 403/,
      },
      {
        what: 'one McpServer for all requests',
        changes: {
          'return handleMcp(sessions.options.getServer(), req':
            'return handleMcp((shared ??= sessions.options.getServer()), req',
          '/** Serves Streamable HTTP without':
            'let shared: McpServer | undefined;\n\n/** Serves Streamable HTTP without',
        },
        says: /at the same time: each call must succeed|must be able to connect|must get 200/,
      },
      {
        what: 'one transport for all requests',
        changes: {
          [CONNECTED]: `  if (!shared) {
    shared = new StreamableHTTPServerTransport();
    await server.connect(shared);
  }
  const transport = shared;
`,
          '/** Serves Streamable HTTP without':
            'let shared: StreamableHTTPServerTransport | undefined;\n\n/** Serves Streamable '
            + 'HTTP without',
        },
        says: /must/,
      },
      {
        what: 'nothing is closed',
        changes: { "  res.once('close', () => void transport.close());\n": '' },
        says: /left during a call, and the call to the firewall must end too/,
      },
      {
        what: 'in place of SSE',
        changes: {
          "  if (path === ssePath && req.method === 'GET') {\n":
            "  if (path === '/no-sse' && req.method === 'GET') {\n",
        },
        says: /A client of SSE, as before, must get a stream/,
      },
      {
        what: 'an answer that never comes',
        changes: { '  await transport.handleRequest(req, res);\n': '  void transport;\n' },
        says: /`initialize` and the token must get 200\. Seen: no answer within 3 s/,
      },
    ],
  },
};

// The starting points, and the folders in which the variants stand.

/** The solutions that README.md prints: a diff for server.ts, or a whole file. */
async function readSolutions() {
  const readme = await readFile(join(import.meta.dirname, 'README.md'), 'utf8');
  const solutions: Record<string, string> = {};
  for (const part of readme.split(/^### Exercise /m).slice(1)) {
    const [, code] = /^```(?:diff|ts)\n([^]*?)\n```$/m.exec(part.split(/^##+ /m)[0] ?? '') ?? [];
    if (code) solutions[part[0] ?? ''] = `${code}\n`;
  }
  return solutions;
}

/** Changes a text as a diff says. The old lines of each hunk have to stand where it says. */
function applyDiff(source: string, diff: string) {
  const result = source.split('\n');
  let shift = 0;
  for (const [hunk, start] of diff.matchAll(/^@@ -(\d+).*\n(?:[ +-].*\n|\n)*/gm)) {
    const lines = hunk.trimEnd().split('\n').slice(1);
    const before = lines.filter((line) => !line.startsWith('+')).map((line) => line.slice(1));
    const after = lines.filter((line) => !line.startsWith('-')).map((line) => line.slice(1));
    const at = Number(start) - 1 + shift;
    assert.deepEqual(result.slice(at, at + before.length), before, `this does not fit:\n${hunk}`);
    result.splice(at, before.length, ...after);
    shift += after.length - before.length;
  }
  return result.join('\n');
}

function change(source: string, from: string, to: string) {
  assert.equal(source.split(from).length, 2, `this has to be there once:\n${from}`);
  return source.replace(from, () => to);
}

function changeAll(source: string, changes: Record<string, string>) {
  return Object.entries(changes).reduce((text, [from, to]) => change(text, from, to), source);
}

/** What the variants of an exercise change: the faulty server.ts, or the printed solution. */
function startingPoint(name: string, source: string, solutions: Record<string, string>) {
  if (name.startsWith('3')) return changeAll(source, FAULTS[name.slice(1)]?.changes ?? {});
  if (name === '6') return solutions[name] ?? '';
  return applyDiff(source, solutions[name] ?? '');
}

/** Writes each variant into a folder of its own below one root; returns the files to compile. */
async function writeVariants(root: string) {
  const source = await readFile(join(import.meta.dirname, 'server.ts'), 'utf8');
  const solutions = await readSolutions();
  const files: string[] = [];
  for (const [name, variants] of Object.entries(VARIANTS)) {
    const start = startingPoint(name, source, solutions);
    const printed = name.startsWith('3') ? source : start;
    const all = [{ what: PRINTED, changes: {} }, ...variants.right, ...variants.wrong];
    for (const variant of all) {
      const folder = variantFolder(root, name, variant.what);
      await mkdir(folder);
      await writeFile(join(folder, 'server.ts'), source);
      const text = variant.what === PRINTED ? printed : changeAll(start, variant.changes);
      const file = join(folder, EXERCISES[name]?.file ?? 'server.ts');
      await writeFile(file, text);
      files.push(file);
    }
  }
  return files;
}

const PRINTED = 'the printed solution';

function variantFolder(root: string, name: string, what: string) {
  return join(root, `${name} ${what}`.replace(/\W+/g, '-'));
}

function testChecks() {
  const cleanUps: (() => unknown)[] = [];
  const shared = { after: (cleanUp: () => unknown) => void cleanUps.push(cleanUp) } as TestContext;
  let root = '';
  let stages: { quick: Stage; normal: Stage };

  before(async () => {
    root = await copyProject(shared);
    await writeVariants(root).then((files) =>
      writeFile(join(root, 'files.json'), JSON.stringify(files)),
    );
    const [quick, normal] = await Promise.all([openStage(shared, root), openStage(shared, root)]);
    await quick.order('hurry', []);
    stages = { quick, normal };
  });

  after(async () => {
    for (const cleanUp of cleanUps.toReversed()) await cleanUp();
  });

  async function checkVariant(name: string, what: string) {
    const { check } = EXERCISES[name] ?? {};
    assert.ok(check);
    const stage = check === checkSessions ? stages.quick : stages.normal;
    return withCleanUp((t) => check(t, stage, variantFolder(root, name, what))).then(
      () => undefined,
      missingFrom,
    );
  }

  for (const [name, { right, wrong }] of Object.entries(VARIANTS)) {
    // For each letter of exercise 3 the printed solution is the same: server.ts as it was.
    const printed = /^3[b-e]/.test(name) ? [] : [{ what: PRINTED }];
    for (const { what } of [...printed, ...right]) {
      test(`${spell(name)} accepts: ${what}`, async () => {
        assert.equal(await checkVariant(name, what), undefined);
      });
    }
    for (const { what, says } of wrong) {
      test(`${spell(name)} refuses: ${what}`, async () => {
        const missing = await checkVariant(name, what);
        assert.match(missing ?? 'it was accepted', says ?? /./);
        assert.doesNotMatch(missing ?? '', /\n|did not expect/);
      });
    }
  }

  test('all variants compile, so the checks judge only their behaviour', async (t) => {
    const files = JSON.parse(await readFile(join(root, 'files.json'), 'utf8')) as string[];
    assert.equal(await findTypeError(t, root, files), undefined);
  });
}

describe('The exercises: by hand', () => {
  /** Plays a participant of exercise 1 or 2; returns what was printed, and what is missing. */
  async function play(
    byHand: NonNullable<Exercise['byHand']>,
    learner: (url: string, t: TestContext, printed: string[]) => unknown,
    typed: string[] = [],
    seconds = 20,
  ) {
    const printed: string[] = [];
    const missing = await withCleanUp((t) =>
      byHand(t, {
        folder: import.meta.dirname,
        port: '0',
        seconds,
        print: (line) => printed.push(line),
        readLines: () => Readable.from(typed),
        learner: (url) => learner(url, t, printed),
      }),
    ).then(() => undefined, missingFrom);
    return { missing, text: printed.join('\n') };
  }

  const initialize = { ...initializeMessage(), id: 1 };
  const initialized = { jsonrpc: '2.0', method: 'notifications/initialized' };
  const call = callTool(2, 'show_system_info');

  async function doAllSteps(url: string, t: TestContext) {
    const { post, next, close } = await openStream(t, url);
    await post(initialize);
    await next();
    await post(initialized);
    await post(call);
    await next();
    close();
  }

  test('1: all steps in one session complete the exercise', async () => {
    const { missing, text } = await play(followByHand, doAllSteps);
    assert.equal(missing, undefined, text);
    for (const step of STEPS) assert.ok(text.includes(`✔ ${step}`), text);
  });

  type Open = Awaited<ReturnType<typeof openStream>>;
  const { id: _id, ...withoutId } = call;
  const mistakes: Record<
    string,
    { says: RegExp; make: (open: Open, url: string, t: TestContext) => unknown }
  > = {
    'a call without an id': {
      says: /Your call had no id, so nothing replied/,
      make: async ({ post }) =>
        void (await post(initialize), await post(initialized), await post(withoutId)),
    },
    'initialize without an id': {
      says: /Your initialize had no id, so nothing replied/,
      make: async ({ post }) => void (await post({ ...initialize, id: undefined })),
    },
    'a call before initialize': {
      says: /You called the tool before initialize/,
      make: async ({ post }) => void (await post(call)),
    },
    'a call on another stream': {
      says: /on a stream that you had not initialized/,
      make: async ({ post }, url, t) => {
        await post(initialize);
        await post(initialized);
        await (await openStream(t, url)).post(call);
      },
    },
    'a call before the notification': {
      says: /before notifications\/initialized/,
      make: async ({ post }) => void (await post(initialize), await post(call)),
    },
    'a notification with an id': {
      says: /Your notification had an id/,
      make: async ({ post }) =>
        void (await post(initialize), await post({ ...initialized, id: 5 })),
    },
    'a misspelt tool': {
      says: /You called the tool show_system, but its name is show_system_info/,
      make: async ({ post }) => {
        await post(initialize);
        await post(initialized);
        await post(callTool(2, 'show_system'));
      },
    },
    'initialize that the server answers with an error': {
      says: /Your initialize was answered with an error: its params need protocolVersion, cap/,
      make: async ({ post }) => void (await post({ jsonrpc: '2.0', id: 1, method: 'initialize' })),
    },
    'a stream that ends too early': {
      says: /ended, and its session with it, before all steps were done/,
      make: async ({ post, close }) => {
        await post(initialize);
        close();
      },
    },
    'no id in the address': {
      says: /it named no session: post to the whole address/,
      make: (_open, url) => ask(new URL('/messages', url), { method: 'POST', body: '{}' }),
    },
    'an id that is cut': {
      says: /no open stream has this id/,
      make: (_open, url) =>
        ask(new URL('/messages?sessionId=6fa1', url), { method: 'POST', body: '{}' }),
    },
    "curl's own content type": {
      says: /needs the header Content-Type: application\/json/,
      make: ({ post }) =>
        post(initialize, { headers: { 'content-type': 'application/x-www-form-urlencoded' } }),
    },
    'quotes that the shell has eaten': {
      says: /must be one JSON-RPC message: look at its quotes/,
      make: ({ post }) => post('{jsonrpc:2.0}'),
    },
  };
  test('1: the check explains each mistake, and the right steps still count', async () => {
    const { missing, text } = await play(followByHand, async (url, t, printed) => {
      for (const [what, { says, make }] of Object.entries(mistakes)) {
        const before = printed.length;
        const open = await openStream(t, url);
        await make(open, url, t);
        await eventually(async () => says.test(printed.slice(before).join('\n')), what);
        open.close();
      }
      await doAllSteps(url, t);
    });
    assert.equal(missing, undefined, text);
  });

  test('1: after too few steps, the check names the next one', async () => {
    const { missing } = await play(followByHand, () => {}, [], 0.2);
    assert.match(missing ?? '', /^The next step is: open a stream\./);
  });

  const PREDICTIONS = ['400 missing', 'soon', '404 unknown session', '404 not found', '410 gone'];

  async function meetRefusals(url: string, t: TestContext) {
    const { post, close } = await openStream(t, url);
    await post(initialize);
    await ask(new URL('/messages?sessionId=mine', url));
    close();
    await eventually(async () => (await post(ping(3))).status === 404);
    for (const path of ['/messages', '/messages?sessionId=mine', '/message']) {
      await ask(new URL(path, url), { method: 'POST' });
    }
  }

  test('2: four predictions and four refusals complete the exercise', async () => {
    const { missing, text } = await play(refuseByHand, meetRefusals, PREDICTIONS);
    assert.equal(missing, undefined, text);
    assert.match(text, /Begin with a status of three digits/);
    assert.match(
      text,
      /✘ a POST to a session whose stream has ended: you said "410 gone", it was 404 "Session not found/,
    );
    assert.match(
      text,
      /POST \/messages\?sessionId=\S* got 202: it was accepted, so its stream is still open/,
    );
    assert.match(text, /GET \/messages\?sessionId=mine got 405: that was a GET/);
    assert.match(text, /You predicted 3 of 4 statuses/);
  });

  test('2: without predictions or refusals, the exercise is not complete', async () => {
    const early = await play(refuseByHand, () => {}, ['400 missing']);
    assert.match(early.missing ?? '', /^Each of the four POSTs needs a prediction/);
    const idle = await play(refuseByHand, () => {}, PREDICTIONS, 0.2);
    assert.match(
      idle.missing ?? '',
      /^Still missing: .*without an id; .*made up; .*not exist.*; .*ended/,
    );
  });

  test('a port that cannot be used is told before anything else', async (t) => {
    const inUse = String((await startServer(t)).port);
    const says = {
      [inUse]: /^Port \d+ is in use, perhaps by `npm start`: stop that, or set another PORT/,
      abc: /^PORT is "abc"\. It must be a whole number from 0 to 65535\.$/,
      65536: /^PORT is "65536"\. It must be/,
    };
    for (const byHand of [followByHand, refuseByHand]) {
      for (const [port, sentence] of Object.entries(says)) {
        const options = {
          folder: import.meta.dirname,
          port,
          seconds: 1,
          print: () => {},
          readLines: () => assert.fail('nothing is asked before the port is open'),
        };
        const missing = await withCleanUp((scope) => byHand(scope, options)).catch(missingFrom);
        assert.match(String(missing), sentence);
      }
    }
  });
});

function initializeMessage() {
  const clientInfo = { name: 'learner', version: '1.0.0' };
  const params = { protocolVersion: '2024-11-05', capabilities: {}, clientInfo };
  return { jsonrpc: '2.0', method: 'initialize', params };
}

function testCommands() {
  /** A folder of a participant's own, and the commands in it. */
  async function startWorkshop(t: TestContext, changes: Record<string, string> = {}) {
    const folder = await copyProject(t, changes);
    const file = join(folder, 'server.ts');
    const printing = new EventEmitter();
    async function run(command: string, ...args: string[]) {
      const printed: string[] = [];
      const code = await runWorkshop(command, args, {
        folder,
        port: '0',
        seconds: 50,
        limit: 50_000,
        readLines: () => Readable.from([]),
        print: (line) => void (printed.push(line), printing.emit(line.trim().slice(0, 8))),
      });
      return { code, text: printed.join('\n') };
    }
    return { folder, file, printing, run };
  }

  test('the list has a sign for each exercise, and names the next one', async (t) => {
    const { run } = await startWorkshop(t);
    const { code, text } = await run('exercise');
    assert.equal(code, 0);
    const signs = [...text.matchAll(/^(✔|○) (\d(?: \w)?) /gm)].map(
      ([, sign, name]) => `${sign}${name}`,
    );
    assert.deepEqual(signs, [
      '○1',
      '○2',
      '○3 a',
      '○3 b',
      '○3 c',
      '○3 d',
      '○3 e',
      '○4',
      '○5',
      '○6',
      '○7',
    ]);
    assert.match(text, /The next one: npm run exercise 1$/);
    assert.match(
      (await run('exercise', '3')).text,
      /^○ 3 a .*\n.*next one: npm run exercise 3 a$/s,
    );
  });

  test('a wrong name gets a sentence', async (t) => {
    const { run } = await startWorkshop(t);
    for (const args of [['8'], ['3', 'f'], ['four'], ['__proto__']]) {
      const { code, text } = await run('exercise', ...args);
      assert.equal(code, 2);
      assert.match(text, /There is no exercise ".+"\. `npm run exercise` lists them/);
    }
    const sentences: Record<string, RegExp> = {
      hint: /^Name the exercise, as in `npm run hint 4`\.$/,
      'hint 3': /^Exercise 3 has five faults: name one, as in `npm run hint 3 a`\.$/,
      'hint 4 --watch': /^`npm run hint` has no option --watch\./,
      'exercise 4 --foo': /^`npm run exercise` has no option --foo\. The only option is --watch/,
      'exercise --watch': /^Name the exercise, as in `npm run exercise 4`\.$/,
      'exercise 1 --watch': /^Exercise 1 is done by hand/,
      'reset foo': /^`npm run reset` stands alone/,
    };
    for (const [line, sentence] of Object.entries(sentences)) {
      const [command = '', ...args] = line.split(' ');
      const { code, text } = await run(command, ...args);
      assert.equal(code, 2);
      assert.match(text, sentence);
    }
  });

  test('a file that is not there, or exports nothing, gets a sentence', async (t) => {
    const { folder, file, run } = await startWorkshop(t);
    await run('exercise', '6');
    const client = join(folder, CLIENT_FILE);
    await writeFile(client, CLIENT_START.replace('export ', ''));
    assert.match((await run('exercise', '6')).text, /my-client\.ts must export a function connect/);
    await rm(file);
    assert.match(
      (await run('exercise', '4')).text,
      /Not yet: server\.ts is not there: `npm run reset` brings it back\./,
    );
  });

  test('hints come one after the other, and begin again after the last', async (t) => {
    const { run } = await startWorkshop(t);
    const { hints = [] } = EXERCISES['4'] ?? {};
    for (const [i, hint] of [...hints, hints[0]].entries()) {
      const { text } = await run('hint', '4');
      assert.ok(text.includes(`Hint ${(i % hints.length) + 1} of ${hints.length}: ${hint}`), text);
    }
    assert.match((await run('hint', '3', 'a')).text, /Hint 1 of/);
  });

  test('a fault is put in place and shown, and the attempt is kept', async (t) => {
    const { folder, file, run } = await startWorkshop(t);
    const original = await readFile(file, 'utf8');
    await run('exercise');
    await writeFile(file, `${original}// My own.\n`);
    const first = await run('exercise', '3', 'd');
    assert.equal(first.code, 0);
    assert.match(
      first.text,
      /Client 1: called the tool.*Client 2: SSE error: Non-200 status code \(500\)/s,
    );
    assert.match(first.text, /Server's log: .*Already connected to a transport/);
    assert.equal(await readFile(file, 'utf8'), changeAll(original, FAULTS['d']?.changes ?? {}));
    assert.match(await readFile(join(folder, 'attempt-1.ts'), 'utf8'), /My own/);
  });

  test('a fault is put in place, shown, and checked', async (t) => {
    const { file, run } = await startWorkshop(t);
    const original = await readFile(file, 'utf8');
    const first = await run('exercise', '3', 'e');
    assert.match(
      first.text,
      /Client \d, idle for a minute behind a proxy: SSE error: .*terminated/,
    );
    await writeFile(file, original);
    const { code, text } = await run('exercise', '3', 'e');
    assert.equal(code, 0, text);
    assert.match((await run('exercise')).text, /✔ 3 e/);
  });

  test('a reset puts server.ts back, and keeps the attempt beside it', async (t) => {
    const { folder, file, run } = await startWorkshop(t);
    const original = await readFile(file, 'utf8');
    await run('exercise');
    for (const [i, attempt] of ['first', 'second'].entries()) {
      await writeFile(file, attempt);
      const name = `attempt-${i + 1}.ts`;
      assert.match((await run('reset')).text, new RegExp(`Your attempt is kept in ${name}`));
      assert.equal(await readFile(file, 'utf8'), original);
      assert.equal(await readFile(join(folder, name), 'utf8'), attempt);
    }
    assert.match((await run('reset')).text, /nothing to put back/);
    await rm(file);
    assert.match((await run('reset')).text, /server\.ts is back/);
    assert.equal(await readFile(file, 'utf8'), original);
  });

  test('if server.ts was changed before the first command, the workshop says so', async (t) => {
    const { run } = await startWorkshop(t, {
      'const { sessionId } = transport;': 'const sessionId = transport.sessionId;',
    });
    assert.match((await run('exercise')).text, /server\.ts has been changed already/);
    await assert.rejects(
      run('exercise', '3', 'a'),
      /is not the original: it has to contain this text once/,
    );
  });

  test('a server.ts that ends, or is blocked, does not stop the check', async (t) => {
    const route = '  const url = requestedUrl(req);\n';
    const faults = [
      { [route]: `${route}  setImmediate(() => {\n    throw new Error('Oh');\n  });\n  return;\n` },
      { [route]: `  while (req.url) continue;\n${route}` },
    ];
    const missing = await Promise.all(
      faults.map(async (changes) => {
        const { folder, run } = await startWorkshop(t, changes);
        await run('exercise');
        return withCleanUp((scope) => checkOnStage(scope, folder, checkHealth));
      }),
    );
    assert.match(missing[0] ?? '', /^The process that runs your file has ended\. Seen: Error: Oh$/);
    assert.match(missing[1] ?? '', /^GET \/healthz must be answered: .* no answer within 3 s/);
  });

  test('--watch checks at each save, until it is done', async (t) => {
    const { file, printing, run } = await startWorkshop(t);
    const solutions = await readSolutions();
    const original = await readFile(file, 'utf8');
    await run('exercise');
    await writeFile(file, original.replace('KEEP_ALIVE_MS = 15_000', "KEEP_ALIVE_MS: number = ''"));
    const isWatching = once(printing, 'Watching');
    const watching = run('exercise', '4', '--watch');
    await isWatching;
    await run('hint', '5');
    await writeFile(file, applyDiff(original, solutions['4'] ?? ''));
    const { code, text } = await watching;
    assert.equal(code, 0);
    assert.match(
      text,
      /✘ Not yet: server\.ts does not pass the type check: line \d+: Type 'string' is not .*Watching server\.ts.*✔ Exercise 4 is done/s,
    );
    assert.match((await run('hint', '5')).text, /^Hint 2/);
  });

  test('npm run exercise and reset work where server.ts is broken', async (t) => {
    const { folder, file, run } = await startWorkshop(t);
    await copyFile(join(import.meta.dirname, 'server.test.ts'), join(folder, 'server.test.ts'));
    await run('exercise');
    await writeFile(file, 'const {');
    const { scripts } = JSON.parse(await readFile(join(folder, 'package.json'), 'utf8'));
    async function runScript(script: string, ...args: string[]) {
      const words = (scripts[script] as string).split(' ').slice(3);
      const { exit, lines } = runNode(t, [...words, ...args], {}, folder);
      return { code: await exit, text: lines.join('\n') };
    }
    const exercise = await runScript('exercise', '4');
    assert.equal(exercise.code, 1);
    assert.match(
      exercise.text,
      /^✘ Not yet: server\.ts does not pass the type check: line 1: .*\n.*npm run hint 4$/,
    );
    assert.match((await runScript('reset')).text, /server\.ts is as it was/);
  });
}

// The longest of these tests wait most of the time, so they run side by side.
describe(
  'The exercises: checks and commands',
  () => {
    void nodeDescribe('what the checks accept and refuse', { concurrency: 40 }, testChecks);
    void nodeDescribe('the commands', { concurrency: 6 }, testCommands);
  },
  { concurrency: 2 },
);

// ==== From here on, delete what you do not need: the load and the README ======================

import { spawnSync } from 'node:child_process';

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

/** Opens `count` sessions, 50 at a time, calls the tool on each, and closes them all. */
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

if (isTask('load')) {
  void nodeTest('load', async (t) => console.log(await runLoad(t, Number(process.argv[3] ?? 1000))));
}

describe('The README', async () => {
  const readme = await readFile(join(import.meta.dirname, 'README.md'), 'utf8');
  const source = await readFile(join(import.meta.dirname, 'server.ts'), 'utf8');

  /** The text under a heading, up to the next one of the same level. */
  function section(heading: string) {
    const [, text] = readme.split(`\n${heading}\n`);
    assert.ok(text, `README.md has no heading ${heading}`);
    const [level = ''] = heading.split(' ');
    return text.split(new RegExp(`^${level} `, 'm'))[0] ?? '';
  }

  /** The code blocks of a text, in their order. */
  function blocks(text: string) {
    return [...text.matchAll(/^```\w+\n([^]*?)\n```$/gm)].map(([, code = '']) => code);
  }

  /** The rows of the first table in a text, as lists of their cells. */
  function rows(text: string) {
    const [, table = ''] = /^\| --- .*\n((?:\|.*\n)+)/m.exec(text) ?? [];
    return table.trim().split('\n').map((row) => {
      return row.split('|').slice(1, -1).map((cell) => cell.trim());
    });
  }

  // It takes longest, so it begins first and the others run beside it.
  test('behind nginx, POSTs reach their replica, and a client survives a restart', async (t) => {
    if (isMissing('nginx', '-v')) return t.skip('nginx is not installed');
    const [config = ''] = blocks(section('## Behind a proxy, and in several processes'));
    const one = await runServer(t, { MESSAGES_PATH: '/a/messages', ALLOWED_HOSTS: 'mcp.example.com' });
    const two = await runServer(t, { MESSAGES_PATH: '/b/messages', ALLOWED_HOSTS: 'mcp.example.com' });
    const url = await startNginx(t, config, one.url, two.url);
    for (let i = 0; i < 6; i += 1) {
      const { post, next } = await openStream(t, url);
      await post(ping(i));
      assert.deepEqual(await next(), replyTo(i));
    }
    const client = await connectClient(t, url);
    changeTimers(t, 'setTimeout', 3000, 100); // The client waits so long before it tries again.
    const errors: string[] = [];
    const failed = new EventEmitter();
    client.onerror = ({ message }) => {
      errors.push(message);
      failed.emit('error text');
    };
    one.child.kill('SIGKILL');
    two.child.kill('SIGKILL');
    while (!errors.some((text) => text.includes('fetch failed'))) {
      await within(once(failed, 'error text'), `the client gave up: ${errors.join('; ')}`);
    }
    const { port } = new URL(one.url);
    const again = await runServer(t, { PORT: port, MESSAGES_PATH: '/a/messages' });
    await again.line(/^Session \w+ started/);
    await eventually(() => client.ping().then(() => true, () => false));
    assert.ok(errors.every((text) => !text.includes('502')), errors.join('\n'));
  });

  test('each link inside the page leads to a heading', () => {
    const anchors = [...readme.matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) => {
      return heading.toLowerCase().replace(/[^\w -]/g, '').replaceAll(' ', '-');
    });
    const links = [...readme.matchAll(/\]\(#([^)]*)\)/g)].map(([, anchor = '']) => anchor);
    assert.ok(links.length > 5);
    for (const link of links) assert.ok(anchors.includes(link), `no heading for #${link}`);
  });

  test('a task that no section knows is named, with exit code 2', async (t) => {
    const { lines, exit } = runNode(t, ['server.test.ts', 'docter'], {}, import.meta.dirname);
    assert.equal(await exit, 2);
    assert.match(lines.join('\n'), /^There is no task "docter" in server\.test\.ts\./);
  });

  test('each command exists', async () => {
    const file = join(import.meta.dirname, 'package.json');
    const { scripts } = JSON.parse(await readFile(file, 'utf8'));
    const found = readme.matchAll(/npm (?:run )?(start|test|doctor|load|reset|(?:exercise|hint) \d)/g);
    const commands = [...found].map(([, command = '']) => command);
    assert.ok(commands.includes('start') && commands.includes('doctor'));
    for (const command of commands) {
      const [script = '', number = ''] = command.split(' ');
      assert.ok(scripts[script], `npm run ${script}`);
      if (number !== '') assert.ok(number in EXERCISES || number === '3', `exercise ${number}`);
    }
  });

  test('each package is named, and no other', async () => {
    const file = join(import.meta.dirname, 'package.json');
    const { dependencies, devDependencies } = JSON.parse(await readFile(file, 'utf8'));
    const named = section('## Packages').matchAll(/`(@?[\w-]+(?:\/[\w-]+)?)`/g);
    const all = [...named].map(([, name]) => name).filter((name) => name !== 'console');
    const names = [...new Set(all)];
    const expected = Object.keys({ ...dependencies, ...devDependencies });
    assert.deepEqual(names.toSorted(), expected.toSorted());
  });

  test('the start prints what is shown', async (t) => {
    const [, output = ''] = blocks(readme);
    const { lines } = await runServer(t);
    assert.equal(mask(lines.join('\n')), mask(output));
  });

  test('a session is logged as shown', async (t) => {
    const [, log = ''] = blocks(section('## How a session works'));
    const { url, lines, line } = await runServer(t);
    const { close } = await openStream(t, url);
    close();
    await line(/^Session .* ended/);
    const masked = (text: string) => text.replace(/Session \w{8}/g, 'ID').replace(/\d+ ms/, 'TIME');
    assert.equal(masked(lines.slice(-2).join('\n')), masked(log));
  });

  test('the wrong code loses its sessions, and the right code keeps them', async (t) => {
    const [wrong = '', , right = ''] = blocks(section('## The failure'));
    const folder = await copyProject(t);
    for (const [code, status] of [[wrong, 404], [right, 202]] as const) {
      await writeFile(join(folder, 'example.ts'), exampleServer(code));
      const { line } = runNode(t, ['example.ts'], {}, folder);
      const url = await line(/^http/);
      const { post } = await openStream(t, url);
      assert.equal((await post(ping(1))).status, status);
    }
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

  test('the walk shows lines of server.ts, word for word', () => {
    const excerpts = blocks(section('## A walk through `server.ts`'));
    assert.ok(excerpts.length >= 2);
    for (const code of excerpts) {
      assert.ok(source.includes(`${code}\n`), `server.ts does not hold\n${code}`);
    }
  });

  test('the doctor prints on a faulty server what is shown', async (t) => {
    const transports: Transports = new Map();
    const open = async (_req: http.IncomingMessage, res: http.ServerResponse) => {
      const transport = new SSEServerTransport('/messages', res);
      transports.set(randomUUID(), transport);
      await getFaultyServer().connect(transport);
    };
    const url = await serve(t, routes(open, sdkPost(transports)));
    const [command = '', output = ''] = blocks(section('## When it breaks'));
    const [, , , , , ...options] = command.split(' ');
    const lines: string[] = [];
    const print = (line: string) => void lines.push(line);
    const code = await runDoctor([`${url}/sse`, ...options], print, print, { pause: 80 });
    assert.equal(code, 1);
    const ids = /(?<==)\w{8}…/g;
    assert.match(lines.join('\n').replace(ids, 'ID'), asPattern(output.replace(ids, 'ID')));
  });

  test('each finding of the doctor has its row, word for word', () => {
    const table = rows(section('## When it breaks'));
    for (const [name, { heading, means, cure }] of Object.entries(FINDINGS)) {
      const row = table.find(([, cause]) => cause?.endsWith(`(\`${name}\`)`)) ?? [];
      assert.ok(row[0]?.startsWith(`**${heading}**`), `${name} has no row that begins with its heading`);
      assert.equal(row[1], `${means} (\`${name}\`)`);
      assert.equal(row[2], cure);
    }
  });

  test('each text that people see is one that a program shows', async (t) => {
    const cells = rows(section('## When it breaks')).map(([seen = '']) => seen);
    const texts = cells.flatMap((cell) => [...cell.matchAll(/\*\*(.+?)\*\*|`(.+?)`/g)])
      .map(([, bold, code]) => bold?.replaceAll('`', '') ?? code ?? '');
    const shown = [...(await showErrors(t)), ...(await readSources())].join('\n');
    const unproven = new Set(texts.filter((text) => !shown.includes(text)));
    assert.deepEqual([...unproven].filter((text) => !ELSEWHERE.includes(text)), []);
    assert.deepEqual(ELSEWHERE.filter((text) => !unproven.has(text)), []);
  });

  test('the client runs as printed, and prints what its comments say', async (t) => {
    const { url } = await startTool(t, {}, { token: 't0ken' });
    const [client = ''] = blocks(section('## Connect a client'));
    const folder = await copyProject(t);
    await writeFile(join(folder, 'client.ts'), client.replace('http://127.0.0.1:3000', url));
    const { lines, exit } = runNode(t, ['client.ts'], { MCP_TOKEN: 't0ken' }, folder);
    const comments = [...client.matchAll(/^console.*; \/\/ (.*)$/gm)].map(([, text = '']) => text);
    assert.equal(await exit, 0, lines.join('\n'));
    const printed = lines.join('').replace(/\s+/g, ' ');
    assert.match(printed, asPattern(comments.join('').replace(/\s+/g, ' ')));
    assert.equal(await findTypeError(t, folder, ['client.ts']), undefined);
  });

  test('the entry for other clients is JSON', () => {
    const [, entry = ''] = blocks(section('## Connect a client'));
    const { firewall } = JSON.parse(entry).mcpServers;
    assert.deepEqual(Object.keys(firewall), ['type', 'url', 'headers']);
  });

  test('the build that is shown runs', async (t) => {
    const [, options = ''] = /`npx tsc (.*?)`/.exec(section('## Replace the tool')) ?? [];
    const folder = await copyProject(t);
    const compiler = join(import.meta.dirname, 'node_modules/typescript/bin/tsc');
    const build = runNode(t, [compiler, ...options.split(' ')], {}, folder);
    assert.equal(await build.exit, 0, build.lines.join('\n'));
    await runNode(t, [join(folder, 'dist', 'server.js')], START, tmpdir()).line(/^Try: /);
  });

  test('the Docker image has the files and the settings that the server needs', async () => {
    const [docker = ''] = blocks(section('## Replace the tool'));
    for (const [, files = ''] of docker.matchAll(/^COPY (.*) \.\/$/gm)) {
      for (const file of files.split(' ')) await readFile(join(import.meta.dirname, file));
    }
    const env = Object.fromEntries([...docker.matchAll(/^ENV (\w+)=(.*)$/gm)].map(([, ...pair]) => pair));
    assert.throws(() => readSettings(env), /Set MCP_TOKEN as well/);
    assert.equal(readSettings({ ...env, MCP_TOKEN: 't' }).HOST, '0.0.0.0');
    assert.match(docker, /^CMD \["node", "server.ts"\]$/m);
  });

  test('systemd has nothing against the lines for it', async (t) => {
    if (isMissing('systemd-analyze')) return t.skip('systemd is not installed');
    const [, unit = ''] = blocks(section('## Replace the tool'));
    const folder = await copyProject(t);
    const file = join(folder, 'mcp.service');
    await writeFile(file, unit.replace('/usr/bin/node', process.execPath));
    const { stderr } = spawnSync('systemd-analyze', ['verify', file], { encoding: 'utf8' });
    const complaints = stderr.split('\n').filter((line) => line.includes('mcp.service'));
    assert.deepEqual(complaints, []);
  });

  test('the settings are those that server.ts reads, with their defaults', () => {
    const documented = Object.fromEntries(rows(section('## Settings')).map(([name = '', value = '']) => {
      return [name.replaceAll('`', ''), value.replaceAll('`', '').trim()];
    }));
    const read = [...source.matchAll(/^  ([A-Z_]{4,}): /gm)].map(([, name = '']) => name);
    const defaults: Record<string, unknown> = readSettings({});
    const expected = Object.fromEntries(read.map((name) => [name, String(defaults[name] ?? '')]));
    assert.deepEqual(documented, expected);
  });

  test('the limits are those of server.ts', () => {
    const text = section('## Settings');
    const limits = {
      '10,000 sessions': 'MAX_SESSIONS = 10_000;',
      '1 MiB that': 'MAX_UNREAD_BYTES = 1024 * 1024;',
      '64 MiB of': 'MAX_POSTED_BYTES = 64 * 1024 * 1024;',
      'five calls': 'connections: 5,',
      '50 calls that wait': 'MAX_QUEUED_CALLS = 50;',
    };
    for (const [words, line] of Object.entries(limits)) {
      assert.ok(text.includes(words), words);
      assert.ok(source.includes(line), line);
    }
  });

  test('200 sessions open, call and close, and nothing fails', async (t) => {
    const { failed, 'exit code': code, 'lines of complaint': complaints } = await runLoad(t, 200);
    assert.deepEqual({ failed, code, complaints }, { failed: 0, code: 0, complaints: 0 });
  });

}, { concurrency: 6 });

/** Texts of other programs, and descriptions: no run here can show them. */
const ELSEWHERE = [
  '"code": "invalid_union"', '--workers', '-32001 Request timed out', '421 Invalid Host header',
  'A call hangs, or ends with the function', 'All connection attempts failed',
  'Body Timeout Error', 'CERTIFICATE_VERIFY_FAILED', 'Calls hang after a restart of the server',
  'Cannot POST /sse', 'ClosedResourceError', 'Could not find session',
  'Could not find session, with workers or replicas',
  'Dynamic Client Registration rejected (HTTP 404)', 'Failed to fetch', 'HTTP_PROXY',
  'Headers Timeout Error', 'Invalid session ID', 'MCP error -32602: Invalid request parameters',
  'Memory grows with each session', 'Method Not Allowed', 'No transport found for sessionId',
  'Proxy response (502) !== 200', 'Received request before initialization was complete',
  'SSE error: TypeError: terminated: Body Timeout Error',
  'Session not found after one bad message', 'The client connects, and no reply arrives',
  'The client hangs while connecting', 'The first POST fails, or no event is read',
  'Waiting for server to respond to initialize request', 'blocked by CORS policy',
  'fetch failed, connect ECONNREFUSED', 'getaddrinfo ENOTFOUND', 'max duration reached',
  'needs authentication', 'self-signed certificate in certificate chain',
  'unable to verify the first certificate',
];

/** The errors that the SDK's clients and this server show, each provoked for real. */
async function showErrors(t: TestContext) {
  const { url } = await startServer(t);
  const tls = await startTlsFirewall(t);
  const urls = [
    ...[400, 401, 403, 404, 405, 406, 421, 502, 503, 504].map((status) => `/status/${status}`),
    ...[401, 404, 405].map((status) => `/post/${status}`),
    '/cut', '/end', '/heartbeat',
  ];
  const bad = await serve(t, showError, false);
  const errors = await Promise.all([
    ...urls.map((path) => connectionError(t, new URL(path, bad))),
    connectionError(t, new URL('/sse', await closedUrl())),
    connectionError(t, new URL(`https://127.0.0.1:${tls.port}/sse`)),
    connectionError(t, new URL(url.replace('http:', 'https:'))),
  ]);
  const client = await connectClient(t, url);
  const late = client.callTool({ name: 'wait' }, undefined, { timeout: 50 });
  const streamable = new Client({ name: 'test', version: '1.0.0' })
    .connect(new StreamableHTTPClientTransport(new URL('/sse', url)) as Transport);
  for (const outcome of await Promise.allSettled([late, streamable])) {
    if (outcome.status === 'rejected') errors.push((outcome.reason as Error).message);
  }
  const { port } = new URL(url);
  const { lines, exit } = runNode(t, ['server.ts'], { ...START, PORT: port }, import.meta.dirname);
  await exit;
  const start = lines.join('\n').replace(port, '3000').replace(/: [^:]*EADDRINUSE/, ': … EADDRINUSE');
  const shown = errors.map((text) => text.replace(/127\.0\.0\.1:\d+/, '127.0.0.1:3000'));
  return [...shown, start, await bodyError(t)];
}

/** A URL at which nobody listens. */
async function closedUrl() {
  const server = http.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return `http://127.0.0.1:${port}`;
}

/** What the SDK answers if somebody else has read the body of a POST. */
async function bodyError(t: TestContext) {
  const transports: Transports = new Map();
  const post: Handler = async (req, res) => {
    for await (const chunk of req) void chunk;
    await transports.get(idOf(req))?.handlePostMessage(req, res);
  };
  const url = await serve(t, routes(sdkOpen(transports), post));
  const { post: postTo } = await openStream(t, url);
  return (await postTo(ping(1))).text;
}

/** Answers with the status, cuts or ends the stream, or refuses the POST, as the path says. */
const showError: Handler = (req, res): unknown => {
  const [, kind = '', status = '200'] = (req.url ?? '').split('/');
  if (req.method === 'POST' && kind === 'post') return res.writeHead(Number(status)).end('No');
  if (req.method === 'POST') return res.writeHead(202).end();
  if (kind === 'status') return res.writeHead(Number(status)).end('No');
  res.writeHead(200, { 'content-type': 'text/event-stream' });
  res.write(`event: endpoint\ndata: ${req.url}\n\n`);
  if (kind === 'heartbeat') res.write('data: ping\n\n');
  if (kind === 'cut') setTimeout(() => res.destroy(), 100);
  if (kind === 'end') setTimeout(() => res.end(), 100);
  return undefined;
};

/** The first error that the SDK's client shows at this URL. */
async function connectionError(t: TestContext, url: URL) {
  const client = new Client({ name: 'test', version: '1.0.0' });
  t.after(() => client.close());
  const first = new Promise<Error>((resolve) => {
    client.onerror = resolve;
  });
  const connected = client.connect(new SSEClientTransport(url));
  const error = connected.then(() => first, (reason: Error) => reason);
  const { message } = await Promise.race([first, error]);
  await client.close();
  return message;
}

/** The sources of the programs whose texts the page quotes. */
async function readSources() {
  const files = [
    'server.ts',
    'node_modules/@modelcontextprotocol/sdk/dist/esm/client/sse.js',
    'node_modules/@modelcontextprotocol/sdk/dist/esm/server/sse.js',
    'node_modules/@modelcontextprotocol/sdk/dist/esm/shared/protocol.js',
    'node_modules/eventsource/dist/index.js',
    'node_modules/raw-body/index.js',
  ];
  const sources = await Promise.all(files.map((file) => readFile(join(import.meta.dirname, file), 'utf8')));
  const constants = {
    MAX_SESSIONS: '10000', MAX_QUEUED_CALLS: '50', ssePath: '/sse', messagesPath: '/messages',
    name: 'fw.example.com', reason: '…',
  };
  return sources.map((text) => {
    return text.replace(/\$\{(\w+)\}/g, (all, name: keyof typeof constants) => constants[name] ?? all);
  });
}

/** The page's wrong or right code, in a server of Express. */
function exampleServer(code: string) {
  return `
    import { randomUUID } from 'node:crypto';
    import { createMcpExpressApp } from '@modelcontextprotocol/sdk/server/express.js';
    import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
    import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
    const app = createMcpExpressApp();
    const sessions = {};
    const transports = sessions;
    const getServer = () => new McpServer({ name: 'example', version: '1.0.0' });
    const server = getServer();
    ${code}
    app.post('/messages', async (req, res) => {
      const transport = sessions[req.query.sessionId];
      if (!transport) return void res.status(404).send('Could not find session');
      await transport.handlePostMessage(req, res, req.body);
    });
    const listener = app.listen(0, '127.0.0.1', () => {
      console.log('http://127.0.0.1:' + listener.address().port);
    });
  `;
}

/** Starts nginx with the page's configuration, on a free port and before these replicas. */
async function startNginx(t: TestContext, config: string, one: string, two: string) {
  const folder = await mkdtemp(join(tmpdir(), 'nginx-'));
  const probe = http.createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address() as AddressInfo;
  probe.close();
  const replaced = config.replace('127.0.0.1:8080', `127.0.0.1:${port}`)
    .replaceAll('http://127.0.0.1:3001', one).replaceAll('http://127.0.0.1:3002', two)
    .replace('127.0.0.1:3001', new URL(one).host).replace('127.0.0.1:3002', new URL(two).host);
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map((name) => `${name}_temp_path ${folder};`).join(' ');
  await writeFile(join(folder, 'nginx.conf'), `
    daemon off; pid ${folder}/pid; error_log stderr crit;
    events {}
    http { access_log off; ${temporary}\n${replaced}\n}
  `);
  const nginx = spawn('nginx', ['-p', folder, '-c', join(folder, 'nginx.conf')]);
  t.after(async () => {
    nginx.kill();
    await once(nginx, 'exit');
    await rm(folder, { recursive: true });
  });
  const url = `http://127.0.0.1:${port}`;
  await eventually(() => fetch(url).then(() => true, () => false), 'nginx does not start');
  return url;
}

/** Ids and ports differ from run to run. */
function mask(text: string) {
  const uuid = /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g;
  return text.replace(uuid, 'ID').replace(/127\.0\.0\.1:\d+/g, 'HOST').trim();
}

/** A printed text as a pattern, in which `…` stands for whatever was left out. */
function asPattern(text: string) {
  const literal = text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  return new RegExp(`${literal.replaceAll('…', '[^]*')}$`);
}

function isMissing(command: string, option = '--version') {
  return spawnSync(command, [option]).error !== undefined;
}

/** A shell; `printed` waits until the last that it printed is this, but for ids and blank lines. */
function openShell(t: TestContext, ...args: string[]) {
  const child = spawn('sh', args);
  t.after(() => child.kill('SIGKILL'));
  let output = '';
  const changed = new EventEmitter();
  child.stdout.on('data', (chunk) => {
    output += chunk;
    changed.emit('output');
  });
  const plain = (text: string) => mask(text.replace(/\n+/g, '\n'));
  async function printed(text: string) {
    const pattern = asPattern(plain(text));
    while (!pattern.test(plain(output))) {
      const sentence = `the shell has to print\n${text}\nbut it printed\n${output}`;
      await within(once(changed, 'output'), sentence);
    }
    return output;
  }
  function run(line: string) {
    output = '';
    child.stdin.write(`${line}\n`);
  }
  return { child, printed, run };
}
