// SPDX-License-Identifier: MIT-0
/**
 * The doctor names each fault of a faulty server and no other, and finds nothing on a healthy one,
 * however slow or strange that is.
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import http from 'node:http';
import { text } from 'node:stream/consumers';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { createMcpHandler, getServer } from '../server.ts';
import { examine, messageIn, type Options } from './doctor.ts';
import { cleanUp, listen } from './helpers.ts';

// ---- Servers -----------------------------------------------------------------------------------

type Response = http.ServerResponse;
/** A request, the path that it asks for, and the id of its session. */
type Call = { req: http.IncomingMessage; res: Response; path: string; id: string };

const answer =
  (status: number, body = 'No: <token>', headers = {}) =>
  ({ res }: Call): unknown =>
    res.writeHead(status, headers).end(body);

/** A healthy server by hand, whose results are empty. Each fault below replaces a part of it. */
class Healthy {
  options: Options = {};
  protocol = 'http:';
  origin = '';
  streams = new Map<string, Response>();
  requests = 0;
  gets = 0;
  meetStranger = answer(403);
  refuse = answer(404, 'Session not found');
  accept = answer(202);
  reject = answer(400);
  server = http.createServer((req, res) => {
    this.requests += 1;
    const [path = '', id = ''] = `${req.url}`.split(/\?\w+=/);
    this.handle({ req, res, path, id });
  });

  handle(call: Call): unknown {
    const { req, path, id } = call;
    if (!req.headers.host?.startsWith('127.0.0.1:')) return this.meetStranger(call);
    if (path === '/mcp/sse' && req.method === 'GET') return this.open(call);
    if (path !== '/mcp/messages') return answer(404, `Cannot ${req.method} ${path}`)(call);
    const stream = this.find(id);
    return stream ? this.take(call, stream) : this.refuse(call);
  }

  open({ res }: Call): unknown {
    this.gets += 1;
    const id = randomUUID().slice(24);
    this.streams.set(id, res);
    res.writeHead(200, { 'content-type': 'text/event-stream' });
    this.write(res, 'endpoint', this.endpoint(id));
    const timer = setInterval(() => this.beat(res), 50);
    return res.on('close', () => {
      clearInterval(timer);
      this.remove(id);
    });
  }

  endpoint(id: string) {
    return `/mcp/messages?sessionId=${id}`;
  }

  find(id: string) {
    return this.streams.get(id);
  }

  remove(id: string) {
    this.streams.delete(id);
  }

  write(stream: Response, event: string, data: string) {
    stream.write(`event: ${event}\ndata: ${data}\n\n`);
  }

  beat(stream: Response) {
    stream.write(': keep-alive\n\n');
  }

  /** What happens when the doctor says that it watches. */
  whileWatched() {}

  async take(call: Call, stream: Response) {
    const message = messageIn(await text(call.req));
    if (!message) return this.reject(call);
    this.accept(call);
    const { id, method = '' } = message;
    const reply = { jsonrpc: '2.0', id, ...this.reply(method, call.id) };
    return id && this.send(stream, JSON.stringify(reply));
  }

  reply(_method: string, _id: string): object {
    return { result: {} };
  }

  send(stream: Response, reply: string) {
    this.write(stream, 'message', reply);
  }

  /** Ends as a process does that dies. */
  die() {
    return this.server.close().closeAllConnections();
  }
}

type Fault = Partial<Healthy> & ThisType<Healthy>;

const { die, handle, open, write } = Healthy.prototype;
const refusing = (status: number, body?: string): Fault => ({
  find: () => undefined,
  refuse: answer(status, body),
});
/** The third stream is one too many. */
const limiting = (refuse: Healthy['open']): Fault => ({
  open(call) {
    return (this.gets === 3 ? refuse : open).call(this, call);
  },
});
/** The ids that have been here before. */
const known = new Set<unknown>();

const FAULTS: Record<string, Fault[]> = {
  unreachable: [{ handle: ({ req }) => req.destroy() }],
  'untrusted-certificate': [{ protocol: 'https:' }],
  unauthorized: [
    { handle: answer(401) },
    {
      handle: answer(
        400,
        '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}',
      ),
    },
    refusing(401),
  ],
  'host-refused': [{ handle: answer(421) }, { handle: answer(403) }],
  'streamable-http': [
    {
      async handle(call) {
        await sleep(300);
        const status = call.req.method === 'POST' ? 200 : 405;
        answer(status, '{"jsonrpc":"2.0","id":1,"result":{}}')(call);
      },
    },
  ],
  'wrong-url': [
    { handle: answer(404) },
    { handle: answer(200, '<p>Hello</p>', { 'content-type': 'text/html' }) },
  ],
  'bad-gateway': [{ handle: answer(502) }],
  'server-error': [{ handle: answer(500, 'Error creating server') }],
  redirected: [{ handle: answer(307, '', { location: 'http://elsewhere.example/sse' }) }],
  limited: [{ handle: answer(429) }, limiting(answer(429)), limiting(answer(503))],
  buffered: [{ write() {}, beat() {}, options: { patienceMs: 1_000 } }],
  'other-origin': [{ endpoint: (id) => `http://mcp.internal/mcp/messages?sessionId=${id}` }],
  'post-refused': [refusing(403), refusing(419, 'Page Expired')],
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
      accept(call) {
        this.remove(call.id);
        return answer(202)(call);
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
  'body-already-read': [{ accept: answer(400, 'InternalServerError: stream is not readable') }],
  'shared-server': [
    {
      send(_stream, reply) {
        this.write([...this.streams.values()].pop()!, 'message', reply);
      },
    },
    {
      open(call) {
        return this.streams.size > 0 ? answer(500)(call) : open.call(this, call);
      },
    },
  ],
  'reply-lost': [{ send() {}, options: { replyMs: 2_000 } }],
  'wrong-event-name': [{ send: (stream, reply) => write(stream, 'reply', reply) }],
  'heartbeat-as-data': [{ beat: (stream) => stream.write('data: ping\n\n') }],
  'killed-by-bad-message': [
    {
      reject(call) {
        this.remove(call.id);
        return answer(400)(call);
      },
    },
  ],
  died: [{ reject: die }, { remove: die }, limiting(die)],
  'cut-off': [
    {
      whileWatched() {
        setTimeout(() => this.server.closeAllConnections(), 200);
      },
      options: { watchMs: 10_000 },
    },
  ],
  'silent-stream': [{ beat() {}, options: { watchMs: 2_000 } }],
  'not-before-initialize': [
    {
      reply(method, id) {
        if (method === 'initialize') known.add(id);
        return known.has(id) ? { result: {} } : { error: { code: -32602 } };
      },
    },
  ],
  'unknown-id-accepted': [{ refuse: answer(202) }],
  'ended-id-accepted': [{ remove() {} }],
  'any-host-accepted': [{ meetStranger: answer(200) }],
};

/** Servers that serve their clients well, and nobody may accuse. */
const STRANGE: Record<string, Fault> = {
  'other spellings': {
    write: (stream, event, data) => stream.write(`event: ${event}\r\ndata: ${data}\r\n\r\n`),
    accept: answer(204, ''),
    endpoint(id) {
      return `${this.origin}/mcp/messages?session_id=${id}`;
    },
    meetStranger: answer(500),
  },
  'a redirect within the origin': {
    handle(call) {
      if (call.path === '/mcp/sse') return answer(307, '', { location: '/mcp/sse/' })(call);
      return handle.call(this, { ...call, path: call.path.replace(/\/$/, '') });
    },
  },
  'a session that ends at a request before notifications/initialized': {
    reply(method, id) {
      if (method === 'notifications/initialized') known.add(id);
      else if (method === 'ping' && !known.has(id)) this.streams.get(id)?.end();
      return { result: {} };
    },
  },
};

async function serve(fault: Fault) {
  const made = Object.assign(new Healthy(), fault);
  made.origin = (await listen(made.server)).replace('http:', made.protocol);
  return made;
}

async function expectFindings(fault: Fault, expected: string[]) {
  const made = await serve(fault);
  let told = '';
  const print = (line: string) => {
    told += `${line}\n`;
    if (line.startsWith('…')) made.whileWatched();
  };
  // Waits are short; limits are wide, since only a fault reaches them.
  const options = { pauseMs: 100, watchMs: 200, print, ...made.options };
  const { findings } = await examine(`${made.origin}/mcp/sse`, options);
  assert.deepEqual(
    findings.map(({ name }) => name),
    expected,
    told,
  );
  assert.doesNotMatch(told, /[\da-f]{12}/, 'a whole session id is shown');
  assert.ok(made.requests <= 80, `${made.requests} requests`);
  return told;
}

/** Runs the doctor as a command. */
function runDoctor(...args: string[]) {
  const command = ['--import', 'tsx', 'workshop/doctor.ts', ...args];
  return promisify(execFile)(process.execPath, command).catch((error) => error);
}

describe('The doctor', { concurrency: 40, timeout: 120_000 }, () => {
  after(cleanUp);

  test('is a command that shows no token', async () => {
    const { origin } = await serve({
      handle: (call) => answer(401, `No <token>: ${call.req.headers.authorization}`)(call),
    });
    const { stdout, stderr, code } = await runDoctor(
      origin,
      '--json',
      '--header',
      'Authorization: Bearer secret-of-mine',
    );
    const seen = `the stream opens, and says where to POST: GET ${origin}/ gets 401 "No <token>: *** ***"`;
    const findings = [{ name: 'unauthorized', kind: 'problem', seen }];
    assert.deepEqual(JSON.parse(stdout), { url: origin, findings });
    assert.deepEqual([code, stderr], [1, '']);
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
      const { stdout, stderr, code } = await runDoctor(...args);
      assert.match(stderr, new RegExp(`${reason}[^]*Usage: npm run doctor -- URL`));
      assert.doesNotMatch(stderr, /secret/);
      assert.deepEqual([stdout, code], ['', 2]);
    });
  }

  for (const [name, faults] of Object.entries(FAULTS)) {
    for (const [number, fault] of faults.entries()) {
      test(`finds ${name}, nothing else, and the advice of the README: ${number + 1}`, async () => {
        const told = await expectFindings(fault, [name]);
        assert.match(told, /: .+\n  What to do: .+\n  More: search README.md for /);
      });
    }
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

  test('sends nothing to another origin', async () => {
    const elsewhere = await serve({});
    const location = `${elsewhere.origin}/mcp/sse`;
    await expectFindings({ handle: answer(307, '', { location }) }, ['redirected']);
    assert.equal(elsewhere.requests, 0);
  });
});
