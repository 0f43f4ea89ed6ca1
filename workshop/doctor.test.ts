// SPDX-License-Identifier: MIT-0
/**
 * The doctor names each fault of a faulty server and no other, and finds nothing on a healthy one,
 * however slow or strange that is.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { createMcpHandler, getServer } from '../server.ts';
import { adviceOn, examine, messageIn, type Options } from './doctor.ts';

const run = promisify(execFile);
const servers: http.Server[] = [];
after(() => {
  for (const server of servers) server.close().closeAllConnections();
});

// ---- Servers -----------------------------------------------------------------------------------

/** A request, and the session that it belongs to. */
type Call = { id: string; stream: Response; req: Request; res: Response };
type Request = http.IncomingMessage;
type Response = http.ServerResponse;

/** A healthy server by hand, whose results are empty. Each fault below replaces a part of it. */
class Healthy {
  options: Options = {};
  protocol = 'http:';
  eventName = 'message';
  streams = new Map<string, Response>();
  requests = 0;
  gets = 0;
  server = http.createServer((req, res) => this.handle(req, res));

  get origin() {
    return `${this.protocol}//127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  handle(req: Request, res: Response): unknown {
    this.requests += 1;
    if (!req.headers.host?.startsWith('127.0.0.1:')) return this.meetStranger(res);
    const [path, id = ''] = String(req.url).split(/\?\w+=/);
    if (path === '/mcp/sse' && req.method === 'GET') return this.open(res);
    if (path !== '/mcp/messages') return res.writeHead(404).end(`Cannot ${req.method} ${path}`);
    const stream = this.find(id);
    return stream ? this.take({ id, stream, req, res }) : this.refuse(res);
  }

  meetStranger(res: Response): unknown {
    return res.writeHead(403).end('Forbidden');
  }

  open(res: Response): unknown {
    this.gets += 1;
    const id = randomUUID();
    this.streams.set(id, res);
    res.writeHead(200, { 'content-type': 'text/event-stream' });
    this.write(res, 'endpoint', this.endpoint(id));
    const timer = setInterval(() => this.beat(res), 50);
    return res.on('close', () => {
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

  refuse(res: Response): unknown {
    return res.writeHead(404).end('Session not found');
  }

  write(res: Response, event: string, data: string) {
    res.write(`event: ${event}\ndata: ${data}\n\n`);
  }

  beat(res: Response) {
    res.write(': keep-alive\n\n');
  }

  /** What happens when the doctor says that it watches. */
  rest() {}

  async take(call: Call): Promise<unknown> {
    const message = messageIn(await text(call.req));
    if (!message) return this.reject(call);
    this.accept(call);
    const { id, method = '' } = message;
    const reply = { jsonrpc: '2.0', id, ...this.reply(method, call) };
    return id && this.send(call, JSON.stringify(reply));
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

  /** Ends as a process does that dies. */
  die() {
    return this.server.close().closeAllConnections();
  }
}

type Fault = Partial<Healthy> & ThisType<Healthy>;

const { open } = Healthy.prototype;
const answering = (status: number, body = 'No: <token>', headers = {}): Fault => ({
  handle: (_req, res) => res.writeHead(status, headers).end(body),
});
const refusing = (status: number, body: string): Fault => ({
  refuse: (res) => res.writeHead(status).end(body),
  find: () => undefined,
});
const limiting = (status: number, body: string): Fault => ({
  open(res) {
    if (this.gets === 3) return res.writeHead(status).end(body);
    return open.call(this, res);
  },
});
/** The ids that have been here before. */
const known = new Set<unknown>();
const streamable: Fault = {
  async handle({ method }, res) {
    await sleep(300);
    res.writeHead(method === 'POST' ? 200 : 405).end('{"jsonrpc":"2.0","id":1,"result":{}}');
  },
};
const killed: Fault = {
  reject({ id, res }) {
    this.remove(id);
    res.writeHead(400).end();
  },
};

const FAULTS: Record<string, Fault[]> = {
  unreachable: [{ handle: (req) => req.destroy() }],
  'untrusted-certificate': [{ protocol: 'https:' }],
  unauthorized: [
    answering(401),
    answering(400, '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}'),
    refusing(401, ''),
  ],
  'host-refused': [answering(421), answering(403)],
  'streamable-http': [streamable],
  'wrong-url': [answering(404), answering(200, '<p>Hello</p>', { 'content-type': 'text/html' })],
  'bad-gateway': [answering(502)],
  'server-error': [answering(500, 'Error creating server')],
  redirected: [answering(307, '', { location: 'http://elsewhere.example/sse' })],
  limited: [answering(429), limiting(429, 'Slow down'), limiting(503, 'Busy')],
  buffered: [{ write() {}, beat() {}, options: { patience: 1_000 } }],
  'other-origin': [{ endpoint: (id) => `http://mcp.internal/mcp/messages?sessionId=${id}` }],
  'post-refused': [refusing(403, '{"error":"Forbidden"}'), refusing(419, 'Page Expired')],
  'endpoint-not-served': [{ endpoint: (id) => `/mcp/message?sessionId=${id}` }],
  'missing-prefix': [{ endpoint: (id) => `/messages?sessionId=${id}` }],
  'id-not-filed': [{ endpoint: () => `/mcp/messages?sessionId=${randomUUID()}` }],
  'filed-late': [
    {
      find(id) {
        if (known.has(id)) return this.streams.get(id);
        known.add(id);
        return undefined;
      },
    },
  ],
  'removed-early': [
    {
      accept({ id, res }) {
        this.remove(id);
        res.writeHead(202).end();
      },
    },
  ],
  'several-processes': [
    {
      find(id) {
        return this.requests % 2 ? undefined : this.streams.get(id);
      },
    },
  ],
  'body-already-read': [
    {
      accept({ res }) {
        res.writeHead(400).end('InternalServerError: stream is not readable');
      },
    },
  ],
  'shared-server': [
    {
      send(_call, reply) {
        this.streams.forEach((stream) => this.write(stream, 'message', reply));
      },
    },
    {
      open(res) {
        if (this.streams.size > 0) return res.writeHead(500).end();
        return open.call(this, res);
      },
    },
  ],
  'reply-lost': [{ send() {}, options: { reply: 300 } }],
  'wrong-event-name': [{ eventName: 'reply' }],
  'heartbeat-as-data': [{ beat: (res) => res.write('data: ping\n\n') }],
  'killed-by-bad-message': [killed],
  died: [
    {
      reject() {
        this.die();
      },
    },
    {
      remove() {
        this.die();
      },
    },
    {
      open(res) {
        return this.gets === 3 ? this.die() : open.call(this, res);
      },
    },
  ],
  'cut-off': [
    {
      rest() {
        setTimeout(() => this.server.closeAllConnections(), 200);
      },
      options: { watch: 10_000 },
    },
  ],
  'silent-stream': [{ beat() {}, options: { watch: 2_000 } }],
  'not-before-initialize': [
    {
      reply(method, { id }) {
        if (method === 'initialize') known.add(id);
        return known.has(id) ? { result: {} } : { error: { code: -32602 } };
      },
    },
  ],
  'unknown-id-accepted': [{ refuse: (res) => res.writeHead(202).end() }],
  'ended-id-accepted': [{ remove() {} }],
  'any-host-accepted': [{ meetStranger: (res) => res.writeHead(200).end() }],
};

/** Servers that serve their clients well, and nobody may accuse. */
const STRANGE: Record<string, Fault> = {
  'other spellings': {
    write: (res, event, data) => res.write(`event: ${event}\r\ndata: ${data}\r\n\r\n`),
    accept: ({ res }) => res.writeHead(204).end(),
    endpoint(id) {
      return `${this.origin}/mcp/messages?session_id=${id}`;
    },
    meetStranger: (res) => res.writeHead(500).end(),
  },
  'slow answers': {
    async open(res) {
      await sleep(200);
      return open.call(this, res);
    },
  },
  'a redirect within the origin': {
    handle(req, res) {
      if (req.url === '/mcp/sse') return res.writeHead(307, { location: '/mcp/sse/' }).end();
      if (req.url === '/mcp/sse/') req.url = '/mcp/sse';
      return Healthy.prototype.handle.call(this, req, res);
    },
  },
  'a session that ends at a request before notifications/initialized': {
    reply(method, { id, stream }) {
      if (method === 'notifications/initialized') known.add(id);
      else if (method === 'ping' && !known.has(id)) stream.end();
      return { result: {} };
    },
  },
};

async function serve(fault: Fault) {
  const made = Object.assign(new Healthy(), fault);
  servers.push(made.server.listen(0, '127.0.0.1'));
  await once(made.server, 'listening');
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
  const options = { pause: 100, watch: 200, print, ...made.options };
  const { findings } = await examine(`${made.origin}/mcp/sse`, options);
  const names = findings.map(({ name }) => name);
  const told = lines.join('\n');
  assert.deepEqual(names, expected, told);
  assert.doesNotMatch(told, /[\da-f]{8}-[\da-f]{4}/, 'a whole session id is shown');
  assert.ok(made.requests <= 80, `${made.requests} requests`);
  return told;
}

/** Runs the doctor as a command. */
async function runDoctor(...args: string[]) {
  const command = ['--import', 'tsx', 'workshop/doctor.ts', ...args];
  const { stdout, stderr, code } = await run(process.execPath, command).catch((error) => error);
  return { out: stdout, error: stderr, code };
}

describe('The doctor', { concurrency: 40, timeout: 120_000 }, () => {
  test('is a command that shows no token', async () => {
    const { origin } = await serve({
      handle: ({ headers }, res) => res.writeHead(401).end(`No: ${headers.authorization}`),
    });
    const { out, error, code } = await runDoctor(
      origin,
      '--json',
      '--header',
      'Authorization: Bearer secret-of-mine',
    );
    const seen = `the stream opens, and says where to POST: GET ${origin}/ gets 401 "No: *** ***"`;
    const findings = [{ name: 'unauthorized', kind: 'problem', seen }];
    assert.deepEqual(JSON.parse(out), { url: origin, findings });
    assert.deepEqual([code, error], [1, '']);
  });

  const mistakes = {
    'check host and port': ['http://127.0.0.1:99999/sse'],
    'no user and password': ['http://a:b@127.0.0.1/sse'],
    'number of seconds': ['http://127.0.0.1/sse', '--watch=-1'],
    'one URL': ['http://127.0.0.1/sse', 'Bearer'],
    'option is wrong': ['http://127.0.0.1/sse', '--header=secret'],
  };
  for (const [reason, args] of Object.entries(mistakes)) {
    test(`says of a wrong command: ${reason}`, async () => {
      const { out, error, code } = await runDoctor(...args);
      assert.match(error, new RegExp(`${reason}[^]*Usage: npm run doctor -- URL`));
      assert.doesNotMatch(error, /secret/);
      assert.deepEqual([out, code], ['', 2]);
    });
  }

  for (const [name, faults] of Object.entries(FAULTS)) {
    for (const [number, fault] of faults.entries()) {
      test(`finds ${name}, and nothing else: ${number + 1}`, async () => {
        await expectFindings(fault, [name]);
      });
    }
    test(`prints the advice of the README on ${name}`, () => {
      assert.match(adviceOn(name), /: .+\n  What to do: .+\n  More: search README.md for /);
    });
  }

  for (const [what, fault] of Object.entries(STRANGE)) {
    test(`finds nothing wrong in ${what}`, async () => {
      await expectFindings(fault, []);
    });
  }

  test('finds nothing on the server of this project with a token', async () => {
    const token = 'secret-of-mine';
    const { handleRequest } = createMcpHandler({
      getServer: () => getServer(),
      token,
      ssePath: '/mcp/sse',
      messagesPath: '/mcp/messages',
    });
    const options = { headers: { authorization: `Bearer ${token}` } };
    const told = await expectFindings({ server: http.createServer(handleRequest), options }, []);
    assert.match(told, /✔ a bad message is survived/);
  });

  test('shows an answer as it is, and sends no header to another origin', async () => {
    const told = await expectFindings(answering(404, 'Send a <token>'), ['wrong-url']);
    assert.match(told, /404 "Send a <token>"/);
    const elsewhere = await serve({});
    const location = `${elsewhere.origin}/mcp/sse`;
    await expectFindings(answering(307, '', { location }), ['redirected']);
    assert.equal(elsewhere.requests, 0);
  });
});
