// SPDX-License-Identifier: MIT-0
import { randomUUID } from 'node:crypto';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';
import { messageIn, type Options } from './doctor.ts';
import { ignore } from './helpers.ts';

// ---- Faulty servers --------------------------------------------------------------------------

export type ServerResponse = http.ServerResponse;

/** A request, and the session that it belongs to. */
export type Call = {
  id: string;
  stream: ServerResponse;
  req: http.IncomingMessage;
  res: ServerResponse;
};

/** A healthy server by hand, whose results are empty. Each fault below replaces a part of it. */
export class Healthy {
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

export type Fault = Partial<Healthy> & ThisType<Healthy>;

export const answering = (status: number): Fault => ({
  handle: ({ headers }, res) => res.writeHead(status).end(`No: ${headers.authorization}`),
});
/** The ids that have been here before. */
const known = new Set<unknown>();

export const FAULTS: Record<string, Fault> = {
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
