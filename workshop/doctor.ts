// SPDX-License-Identifier: MIT-0
/**
 * The doctor looks at an MCP server over HTTP+SSE from outside, as a client would, and says why
 * its sessions fail. It needs nothing of the server but its URL, whatever language that is
 * written in. Copied elsewhere, this file needs only `undici` and `eventsource-parser`.
 *
 * Read it from the end: the command line, the examination, the checks in their order, and then
 * what each check is made of.
 */
import { randomInt } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { dirname } from 'node:path/posix';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { createParser } from 'eventsource-parser';
import { request } from 'undici';

/** What a check throws when something is wrong. Without a name, it is told and accuses nobody. */
class Finding extends Error {
  constructor(name: string, seen: string) {
    super(seen);
    this.name = name;
  }
}

/** These make nobody lose a session today. All other findings are problems. */
const RISKS = [
  'silent-stream',
  'not-before-initialize',
  'unknown-id-accepted',
  'ended-id-accepted',
  'any-host-accepted',
];

const TIMEOUT = 'TIMEOUT';
const PROXY = process.env['HTTP_PROXY'] ? ' (HTTP_PROXY is set)' : '';
const ACCEPT = 'text/event-stream, application/json';
const INITIALIZED = { jsonrpc: '2.0', method: 'notifications/initialized' };
const JSON_TYPE = 'application/json';
const BAD_MESSAGES = [
  ['text that is not JSON', 'This is not JSON.', JSON_TYPE],
  ['JSON that is no message', '{}', JSON_TYPE],
  ['another content type', '{"jsonrpc":"2.0","id":0,"method":"ping"}', 'text/plain'],
] as const;
/** A session id is in a parameter of that name, or else in the last part that has digits. */
const ID = /(?<=[?&]\w*(session|id)\w*=)[^&]+|[^/?&=]*\d[^/?&=]*(?=\D*$)/i;

/** Signs in `METHOD STATUS text` of an answer, and their names. The first that fits decides. */
const SIGNS: [RegExp, string][] = [
  [/stream is not readable|encoding should not be set|\[object Object\]/, 'body-already-read'],
  [/already (connected|started)/i, 'shared-server'],
  [/^\w+ 429|too many|(rate|session|connection)s? limit|max\w* (session|conn|client)/i, 'limited'],
  [/^\w+ 401/, 'unauthorized'],
  [
    /^\w+ (200|400|403) \{.*(unauthori[sz]ed|(token|api.?key|credential|authentication))/i,
    'unauthorized',
  ],
  [
    /^\w+ 421|^\w+ 4.*((host|origin)\b.*(header|allowed|invalid)|(invalid|unknown) (host|origin))/i,
    'host-refused',
  ],
  [/^GET 403/, 'host-refused'],
  [/^GET 5(0[234]|2\d)/, 'bad-gateway'],
  [/^GET 5/, 'server-error'],
  [/^GET/, 'wrong-url'],
  [/^POST 5/, 'server-error'],
  [/^POST 40[45]/, 'endpoint-not-served'],
  [/^POST/, 'post-refused'],
];

type Message = { id?: unknown; method?: string; result?: object; error?: object };

/** One request and its answer. If an event stream answers a GET, this is that stream, too. */
class Exchange {
  method: string;
  url: URL;
  controller = new AbortController();
  /** Without an answer the status is 0, and the code says why. */
  status = 0;
  code = '';
  type = '';
  text = '';
  /** The other origin that a redirect names. */
  elsewhere = '';
  /** Where to POST, and the same with an id that nobody was given: see `takeEndpoint`. */
  endpoint: URL;
  madeUp: URL | undefined;
  openedAt = Date.now();
  lastByteAt = 0;
  endedAt = 0;

  constructor(method: string, url: URL) {
    this.method = method;
    this.url = url;
    this.endpoint = url;
  }

  get isStream() {
    return this.status === 200 && this.type.startsWith('text/event-stream');
  }

  get isAccepted() {
    return (this.status >= 200 && this.status < 300) || this.code === TIMEOUT;
  }
}

export type Options = Partial<Examination>;

/** A look at one server: what is known of it, and what each check is made of. */
class Examination {
  url: URL;
  headers: Record<string, string> = {};
  print: (line: string) => void = ignore;
  /** How many milliseconds a stream's head may take, and again its first event. */
  patience = 15_000;
  /** How many milliseconds a POST may take, and again the reply on the stream. */
  reply = 10_000;
  /** How many milliseconds "a moment later" means. */
  pause = 1_000;
  /** How many milliseconds an open stream is watched. */
  watch = 40_000;
  /** Tokens and session ids, which are not shown. */
  secrets: string[];
  /** The streams of the check that is running. */
  streams: Exchange[] = [];
  /** Each reply, with the stream that it came on. */
  replies = new Map<unknown, Message & { stream: Exchange }>();
  /** What was done last: if the server dies, it has died of that. */
  deed = '';
  hasAnswered = false;
  hasStream = false;
  hasSession = false;
  /** What a made-up id gets: this is how the server says that a session is unknown. */
  unknown: Exchange | undefined;
  /** What a path gets that nobody serves. */
  nowhere: Exchange | undefined;
  otherOrigin = '';
  /** What the path in the `endpoint` event lacks. */
  prefix = '';
  strangeName = '';
  strangeData = '';

  constructor(url: string, options: Options) {
    Object.assign(this, options);
    this.url = new URL(url);
    this.secrets = Object.values(this.headers).join(' ').split(' ');
  }

  // ---- From signs to names ---------------------------------------------------------------------

  nameOfRows(rows: string[], refusal: Exchange) {
    const isEach = (pattern: RegExp) => rows.every((row) => pattern.test(row));
    const name = nameOf(refusal);
    // If the same path is answered at other times, somebody serves it.
    const isServed = !isEach(/^-+$/) && name === 'endpoint-not-served';
    if (!isServed && !this.isUnknown(refusal)) return this.otherOrigin ? 'other-origin' : name;
    if (isEach(/^-+$/)) return 'id-not-filed';
    if (isEach(/^-*\++$/)) return 'filed-late';
    if (isEach(/^\++-+$/)) return 'removed-early';
    return 'several-processes';
  }

  /** Whether an answer says that the session is unknown, on a path that somebody serves. */
  isUnknown(answer: Exchange) {
    const { unknown, nowhere } = this;
    if (![400, 404, 410, 500, 503].includes(answer.status)) return false;
    if (/session|transport|connection not/i.test(withoutPaths(answer.text))) return true;
    return this.isLike(answer, unknown) && !this.isLike(answer, nowhere);
  }

  /** Whether two answers are alike; ids, numbers and paths in their texts may differ. */
  isLike(answer: Exchange, other: Exchange | undefined) {
    const plain = ({ status, text }: Exchange) => status + withoutPaths(this.hide(text));
    return other !== undefined && plain(answer) === plain(other);
  }

  /** Why a request got no stream, or no answer at all. */
  async explain(stream: Exchange): Promise<Finding> {
    const { method, url, code, status, type, elsewhere } = stream;
    const seen = `${method} ${url.origin}${url.pathname} gets ${told(stream)} ${type}`.trim();
    if (elsewhere) return new Finding('redirected', `${seen}, to ${elsewhere}`);
    if (code && code !== TIMEOUT) {
      if (await this.isDead()) return new Finding('died', `after ${this.deed}, ${seen}`);
      return new Finding(this.hasAnswered ? '' : nameOfFailure(stream), seen);
    }
    const name = nameOf(stream);
    if (['limited', 'shared-server', 'unauthorized'].includes(name)) return new Finding(name, seen);
    // The first GET was answered otherwise, and that disproves most causes.
    if (this.hasStream) {
      const laterName = { 500: 'server-error', 503: 'limited' }[status] ?? '';
      return new Finding(laterName, `a later ${seen}`);
    }
    if (stream.isStream && stream.endedAt) return new Finding('cut-off', `${seen}, and ends`);
    const posted = await this.post(this.url, this.message('initialize'));
    if (isMcp(posted)) return new Finding('streamable-http', `${seen}; a POST is answered by MCP`);
    const isRefused = nameOf(posted) === 'unauthorized';
    if (isRefused) return new Finding('unauthorized', `${seen}; a POST gets ${told(posted)}`);
    if (status && !stream.isStream) {
      const beside = name === 'wrong-url' ? `; ${await this.findBeside()}` : '';
      return new Finding(name, seen + beside);
    }
    const isAnswering = stream.isStream || posted.status || (await this.get('/')).status;
    return new Finding(isAnswering ? 'buffered' : 'unreachable', `${seen}, no endpoint event`);
  }

  async findBeside() {
    const seen: string[] = [];
    for (const path of ['/sse', '/mcp', '/mcp/sse']) {
      const answer = await this.get(path);
      const posted = await this.post(new URL(path, this.url), this.message('initialize'));
      if (answer.isStream) seen.push(`${path} is an event stream`);
      else if (isMcp(posted)) seen.push(`${path} is Streamable HTTP`);
    }
    return seen.join(', ') || 'neither /sse nor /mcp nor /mcp/sse is MCP';
  }

  /** Whether the server answered before, and refuses connections now and a second later. */
  async isDead() {
    for (let tries = 0; tries < 2; tries += 1) {
      const { code } = await this.get('/');
      if (!this.hasAnswered || code !== 'ECONNREFUSED') return false;
      await sleep(this.pause);
    }
    return true;
  }

  async endOf(stream: Exchange) {
    const age = stream.endedAt - stream.openedAt;
    const seen = `the stream ended by itself after ${seconds(age)}`;
    if (await this.isDead()) return new Finding('died', `after ${this.deed}, ${seen}`);
    return new Finding(age < 1.5 * this.pause ? 'removed-early' : 'cut-off', seen);
  }

  // ---- Sessions and messages -------------------------------------------------------------------

  /** Opens a stream and waits for its `endpoint` event. */
  async open() {
    const stream = await this.send('GET', this.url, 'a new stream');
    const isDone = () => stream.madeUp || stream.endedAt || !stream.isStream;
    await waitFor(isDone, this.patience);
    if (!stream.madeUp) throw await this.explain(stream);
    return stream;
  }

  /** Opens a stream and does what each client does first. */
  async start() {
    const stream = await this.open();
    await this.call(stream, 'initialize');
    await this.post(stream.endpoint, INITIALIZED);
    return stream;
  }

  /** Sends a request. Unless it is refused, its reply has to come on the same stream. */
  async tryOn(stream: Exchange, method: string) {
    const message = this.message(method);
    const answer = await this.post(stream.endpoint, message);
    const isDone = () => this.replies.has(message.id) || stream.endedAt;
    if (answer.isAccepted) await waitFor(isDone, this.reply);
    const reply = this.replies.get(message.id);
    if (reply?.stream === stream) return { answer, reply };
    if (stream.endedAt) throw await this.endOf(stream);
    if (!answer.isAccepted && !answer.status) throw await this.explain(answer);
    const seen = `${method} gets ${told(answer)}`;
    if (nameOf(answer) === 'limited') throw new Finding('limited', seen);
    if (reply) throw new Finding('shared-server', `${seen}, and the reply comes on another stream`);
    if (!answer.isAccepted) return { answer, reply };
    throw new Finding('reply-lost', `${seen}, and no reply comes on the stream`);
  }

  /** Sends a request that must not be refused, and returns its reply. */
  async call(stream: Exchange, method: string) {
    const { answer, reply } = await this.tryOn(stream, method);
    if (reply) return reply;
    const name = this.isUnknown(answer) ? 'removed-early' : nameOf(answer);
    throw new Finding(name, `${method} gets ${told(answer)}`);
  }

  message(method: string) {
    const clientInfo = { name: 'doctor', version: '1.0.0' };
    const params = { protocolVersion: '2024-11-05', capabilities: {}, clientInfo };
    return {
      jsonrpc: '2.0',
      id: randomInt(1e9),
      method,
      ...(method === 'initialize' && { params }),
    };
  }

  hear(stream: Exchange, event: string, data: string) {
    if (event === 'endpoint' && !stream.madeUp) return this.takeEndpoint(stream, data);
    const message = messageIn(data);
    if (!message) {
      if (event === 'message') this.strangeData = `one was ${quote(data)}`;
      return;
    }
    const { id, method } = message;
    const pong = { jsonrpc: '2.0', id, result: {} };
    if (method === 'ping') void this.post(stream.endpoint, pong);
    if (method || this.replies.has(id)) return;
    this.replies.set(id, { ...message, stream });
    if (event !== 'message') this.strangeName = `a reply came as the event ${event}`;
  }

  /** Nothing is sent to another origin, lest a token gets there. */
  takeEndpoint(stream: Exchange, data: string) {
    const { origin, pathname, search } = new URL(data, stream.url);
    if (origin !== stream.url.origin) this.otherOrigin = origin;
    const path = this.prefix + pathname + search;
    const [id = ''] = ID.exec(path) ?? [];
    const madeUp = id.replace(/\w{1,8}(?=\W*$)/, String(randomInt(1e7, 1e8)));
    this.secrets.push(id, madeUp);
    stream.endpoint = new URL(stream.url.origin + path);
    stream.madeUp = new URL(stream.url.origin + path.replace(ID, madeUp));
  }

  // ---- HTTP ------------------------------------------------------------------------------------

  get(path: string) {
    return this.send('GET', new URL(path, this.url), 'a request');
  }

  post(url: URL, message: object | string, deed = 'a message', type = JSON_TYPE) {
    const body = typeof message === 'string' ? message : JSON.stringify(message);
    return this.send('POST', url, deed, { body, headers: { 'content-type': type } });
  }

  /** Sends a request. If an event stream answers a GET, it is listened to. */
  async send(method: string, url: URL, deed: string, init: RequestInit = {}) {
    const stream = new Exchange(method, url);
    const { controller } = stream;
    const giveUp = () => controller.abort({ code: TIMEOUT, message: 'it takes too long' });
    const timer = setTimeout(giveUp, method === 'GET' ? this.patience : this.reply);
    this.streams.push(stream);
    try {
      const response = await this.follow(stream, init);
      this.hasAnswered = true;
      stream.status = response.status;
      stream.type = response.headers.get('content-type') ?? '';
      if (stream.isStream && method === 'GET') void this.listen(stream, response);
      else if (!stream.isStream) await read(stream, response);
    } catch (error) {
      const { cause = error } = error as Error;
      const { name, code = name, message } = cause as NodeJS.ErrnoException;
      if (!stream.status) Object.assign(stream, { code, text: `${code} ${message}${PROXY}` });
    }
    clearTimeout(timer);
    if (stream.code !== 'ECONNREFUSED') this.deed = deed;
    return stream;
  }

  /** Follows redirects as clients do, but within the origin only: headers may be secrets. */
  async follow(stream: Exchange, init: RequestInit) {
    const headers = {
      accept: ACCEPT,
      ...init.headers,
      ...this.headers,
      connection: 'close',
    };
    const { method, controller } = stream;
    const { signal } = controller;
    for (let hops = 0; ; hops += 1) {
      const response = await fetch(stream.url, {
        ...init,
        method,
        headers,
        signal,
        redirect: 'manual',
      });
      const location = response.headers.get('location');
      const isRedirect = [301, 302, 303, 307, 308].includes(response.status) && location;
      if (!isRedirect || hops === 5 || !URL.canParse(location, stream.url)) return response;
      const target = new URL(location, stream.url);
      if (target.origin !== this.url.origin) stream.elsewhere = target.origin;
      // A POST that is redirected by another status becomes a GET.
      if (stream.elsewhere || (method === 'POST' && response.status < 307)) return response;
      await response.body?.cancel();
      stream.url = target;
      stream.endpoint = target;
    }
  }

  async listen(stream: Exchange, { body }: Response) {
    const onEvent = ({ event = 'message', data }: { event?: string; data: string }) =>
      this.hear(stream, event, data);
    const parser = createParser({ onEvent });
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

  async closeStreams() {
    // The server needs time to see that a stream has come, and that it has gone.
    await sleep(this.pause / 10);
    for (const { controller, isStream, endedAt } of this.streams.splice(0)) {
      if (isStream && !endedAt) this.deed = 'a stream that was closed';
      controller.abort();
    }
    await sleep(this.pause / 10);
  }

  /** Hides tokens and session ids, and whatever else looks like one. */
  hide(text: string) {
    let hidden = text;
    for (const secret of this.secrets) {
      // A shorter one may be a part of anything.
      if (secret.length > 3) hidden = hidden.replaceAll(secret, '***');
    }
    return hidden.replace(/(?=[\w-]*\d)([\w-]{8})[\w-]{12,}/g, '$1…');
  }
}

// ---- Words and signs ---------------------------------------------------------------------------

function ignore() {}

const nameOf = ({ method, status, text }: Exchange) =>
  SIGNS.find(([sign]) => sign.test(`${method} ${status} ${text}`))?.[1] ?? '';

/** The codes of the network are like ECONNREFUSED; those of TLS follow no rule. */
function nameOfFailure({ url, code, text }: Exchange) {
  if (code.startsWith('HPE_')) return 'wrong-url';
  const isNetwork = /^(E(?!PROTO)[A-Z]+|EAI_\w+|UND_\w+)$/.test(code) && !/TLS/.test(text);
  return url.protocol === 'https:' && !isNetwork ? 'untrusted-certificate' : 'unreachable';
}

function isMcp({ status, type, text }: Exchange) {
  if (status === 200 && type.startsWith('text/event-stream')) return true;
  const { result, error } = messageIn(text) ?? {};
  return (
    result !== undefined || (error !== undefined && status <= 406 && ![401, 403].includes(status))
  );
}

/** The message in a text, if it is JSON-RPC. */
export function messageIn(text: string): Message | undefined {
  try {
    const message = JSON.parse(text);
    return message.jsonrpc ? message : undefined;
  } catch {
    return undefined;
  }
}

/** Reads a body, which may be endless: at most 64 KB of it, until the time of the request is over. */
async function read(answer: Exchange, { body }: Response) {
  for await (const chunk of body?.pipeThrough(new TextDecoderStream()) ?? []) {
    answer.text += chunk;
    if (answer.text.length > 65_536) return answer.controller.abort();
  }
}

function withoutPaths(text: string) {
  return text.replace(/\/[^\s"]*|[\da-f-]{8,}|\d+/gi, '');
}

async function waitFor(isReached: () => unknown, limit: number) {
  const end = Date.now() + limit;
  while (!isReached() && Date.now() < end) await sleep(5);
}

function told({ status, text }: Exchange) {
  return status ? `${status} ${quote(text)}` : `no answer: ${text}`;
}

/** A text in one short line without control characters. */
function quote(text: string) {
  const line = text.replace(/[\p{C}\s]+/gu, ' ').trim();
  return `"${line.slice(0, 100)}"`;
}

const seconds = (ms: number) => `${(ms / 1_000).toFixed(1)} s`;

// ---- Checks ------------------------------------------------------------------------------------

type Check = (look: Examination) => Promise<string | void>;

/**
 * In their order: what may hurt a server or its clients comes last. Each returns what it saw, or
 * nothing where it does not apply, or throws a finding.
 */
const CHECKS: Record<string, Check> = {
  async 'the stream opens, and says where to POST'(look) {
    const { url, endpoint } = await look.open();
    look.hasStream = true;
    const seen = `GET ${url.pathname} is told ${endpoint.pathname}${endpoint.search}`;
    if (!look.otherOrigin) return seen;
    throw new Finding('other-origin', `${seen} at ${look.otherOrigin}, not at ${endpoint.origin}`);
  },

  /** Learns how the server refuses, from an id that nobody was given and from a path beside. */
  async 'an unknown id is refused'(look) {
    const { endpoint, madeUp } = await look.open();
    look.nowhere = await look.post(new URL('nowhere', endpoint), look.message('ping'));
    if (!madeUp || madeUp.href === endpoint.href) return;
    look.unknown = await look.post(madeUp, look.message('ping'));
    const seen = `a made-up one gets ${told(look.unknown)}`;
    if (look.unknown.isAccepted) throw new Finding('unknown-id-accepted', seen);
    return seen;
  },

  /** Looks for the endpoint below the folders of the stream's own path. */
  async 'the path of the endpoint leads to the server'(look) {
    look.prefix = '';
    const stream = await look.open();
    const { pathname } = stream.endpoint;
    const folder = dirname(stream.url.pathname);
    if (folder === '/' || pathname.startsWith(`${folder}/`)) return;
    const { answer } = await look.tryOn(stream, 'initialize');
    if (answer.isAccepted) return;
    for (let prefix = folder; prefix !== '/'; prefix = dirname(prefix)) {
      stream.endpoint.pathname = prefix + pathname;
      const attempt = await look.tryOn(stream, 'initialize');
      if (!attempt.answer.isAccepted) continue;
      look.prefix = prefix;
      const seen = `POST ${pathname} gets ${told(answer)}, and below ${prefix} it is accepted`;
      throw new Finding('missing-prefix', seen);
    }
  },

  /** Each stream gets a row of marks: + for a request that was answered, - for one refused. */
  async 'messages are answered, at once and later'(look) {
    const rows: string[] = [];
    let refusal: Exchange | undefined;
    while (rows.length < 2) {
      const stream = await look.open();
      let row = '';
      // With a round robin of eight processes, one of nine POSTs reaches the right one.
      while (row.length < (refusal ? 10 : 5)) {
        if (row.length === 3) await sleep(look.pause);
        const isStarted = row.includes('+');
        const { answer } = await look.tryOn(stream, isStarted ? 'ping' : 'initialize');
        row += answer.isAccepted ? '+' : '-';
        if (!answer.isAccepted) refusal = answer;
        else if (!isStarted) await look.post(stream.endpoint, INITIALIZED);
      }
      rows.push(row);
      await look.closeStreams();
    }
    const seen = `on new streams, messages are answered (+) or refused (-): ${rows.join(' ')}`;
    look.hasSession = !refusal;
    if (!refusal) return seen;
    throw new Finding(look.nameOfRows(rows, refusal), `${seen}, with ${told(refusal)}`);
  },

  async 'a client may go on without initialize'(look) {
    if (!look.hasSession) return;
    const stream = await look.open();
    const refused = ({ message }: Error): Message => ({ error: { message } });
    const { result, error } = await look.call(stream, 'tools/list').catch(refused);
    if (result) return 'tools/list is answered';
    await look.closeStreams();
    const later = await look.call(await look.start(), 'tools/list');
    if (!later.result) return;
    throw new Finding('not-before-initialize', `tools/list gets ${quote(JSON.stringify(error))}`);
  },

  /** A web page can make its own name lead to 127.0.0.1, and then the browser sends that name. */
  async 'a foreign Host is refused'(look) {
    if (!/^http:\/\/(localhost|127\.[\d.]+|\[::1\])[:/]/.test(look.url.href)) return;
    const headers = { ...look.headers, host: 'rebinding.example' };
    // fetch() sends the URL's own Host, whatever it is told.
    const signal = AbortSignal.timeout(look.patience);
    const response = await request(look.url, { headers, signal }).catch(ignore);
    response?.body.on('error', ignore).destroy();
    const status = response?.statusCode ?? 0;
    if (status === 200) throw new Finding('any-host-accepted', 'GET gets 200');
    if (status >= 400 && status < 500) return `GET gets ${status}`;
  },

  async 'the stream stays open'(look) {
    const stream = await (look.hasSession ? look.start() : look.open());
    const { watch } = look;
    look.print(`… an open stream is watched for ${seconds(watch)}`);
    const start = Date.now();
    await waitFor(() => stream.endedAt, watch);
    if (stream.endedAt) throw await look.endOf(stream);
    const silence = Date.now() - Math.max(start, stream.lastByteAt);
    if (look.hasSession) await look.call(stream, 'ping');
    // A shorter watch says nothing about silence: many servers write once in 15 s.
    if (watch >= 20 * look.pause && silence >= 0.9 * watch) {
      throw new Finding('silent-stream', `for ${seconds(watch)}, and no byte came`);
    }
    return `for ${seconds(watch)}`;
  },

  async 'each message event is JSON-RPC, and each reply such an event'(look) {
    if (look.strangeData) throw new Finding('heartbeat-as-data', look.strangeData);
    if (look.strangeName) throw new Finding('wrong-event-name', look.strangeName);
    return 'nothing else came';
  },

  async 'two sessions stay apart'(look) {
    if (!look.hasSession) return;
    const first = await look.start();
    try {
      const second = await look.start();
      for (const stream of [first, second, first, second]) await look.call(stream, 'ping');
    } catch (error) {
      const { name, message } = error as Finding;
      if (['limited', 'died'].includes(name)) throw error;
      await look.closeStreams();
      await look.start(); // What fails here, too, does not come from the other session.
      throw new Finding('shared-server', `with two sessions open, ${message}`);
    }
    return 'each gets its own replies';
  },

  async 'an ended id is refused'(look) {
    if (!look.hasSession || !look.unknown || look.unknown.isAccepted) return;
    const { controller, endpoint } = await look.start();
    controller.abort();
    await sleep(look.pause);
    const answer = await look.post(endpoint, look.message('ping'), 'a POST to an ended session');
    const seen = `after the end of its stream, it gets ${told(answer)}`;
    if (answer.isAccepted) throw new Finding('ended-id-accepted', seen);
    if (!answer.status) throw await look.explain(answer);
    return seen;
  },

  async 'a bad message is survived'(look) {
    if (!look.hasSession) return;
    const stream = await look.start();
    for (const [what, body, type] of BAD_MESSAGES) {
      const answer = await look.post(stream.endpoint, body, what, type);
      await look.call(stream, 'ping').catch((error: Finding) => {
        if (error.name === 'died') throw error;
        throw new Finding(
          'killed-by-bad-message',
          `after ${what} (${told(answer)}), ${error.message}`,
        );
      });
    }
    return 'also JSON that is no message, and another content type';
  },
};

// ---- The examination and its command line ------------------------------------------------------

/**
 * Looks at the server behind a URL, and prints what each check saw.
 *
 * @returns the URL and the findings, without tokens and whole session ids
 */
export async function examine(url: string, options: Options) {
  const look = new Examination(url, options);
  const { print } = look;
  const findings: { name: string; kind: string; seen: string }[] = [];
  for (const [title, check] of Object.entries(CHECKS)) {
    const outcome = await prove(look, check);
    if (!outcome) continue;
    const seen = look.hide(`${title}: ${outcome instanceof Finding ? outcome.message : outcome}`);
    if (!(outcome instanceof Finding)) {
      print(`✔ ${seen}`);
      continue;
    }
    const { name } = outcome;
    const kind = RISKS.includes(name) ? 'risk' : 'problem';
    const sign = kind === 'risk' ? '!' : '✘';
    print(`${name ? sign : '…'} ${seen}`);
    if (name && !findings.some((finding) => finding.name === name)) {
      findings.push({ name, kind, seen });
      print(adviceOn(name));
    }
    if (look.hasStream && !FINAL.includes(name)) continue;
    print('The rest was not checked.');
    break;
  }
  return { url: look.hide(url), findings };
}

/** After these, a further request would meet the same again. */
const FINAL = ['died', 'limited'];

/** These are certain at the first time. */
const PROVEN = [...FINAL, 'silent-stream'];

/** It proves before it accuses: what fails is tried again. By then, a restarted server is back. */
async function prove(look: Examination, check: Check) {
  const attempt = () =>
    check(look).catch((error: unknown) => {
      if (error instanceof Finding) return error;
      throw error;
    });
  const outcome = await attempt();
  await look.closeStreams();
  if (!(outcome instanceof Finding) || PROVEN.includes(outcome.name)) return outcome;
  await sleep(look.pause);
  return attempt().finally(() => look.closeStreams());
}

/** What the README beside this folder says of a finding; the name alone where there is none. */
export function adviceOn(name: string) {
  const readme = join(import.meta.dirname, '../README.md');
  const page = existsSync(readme) ? readFileSync(readme, 'utf8') : '';
  const row = new RegExp(`^[ -]*(.*) \\(\`${name}\`\\)<br>\\*Yours:\\* (.*?)(<br>|$)`, 'm');
  const [, means, cure] = row.exec(page) ?? [];
  if (!means) return `  ${name}`;
  return `  ${name}: ${means}\n  What to do: ${cure}\n  More: search README.md for ${name}.`;
}

const USAGE = `Usage: npm run doctor -- URL [--header "Name: value"] [--watch SECONDS] [--json]
The doctor opens some twenty streams (three at a time at the most) and posts some sixty messages,
three of them bad ones, which come last. On a server with a fault, connected clients may suffer:
use a test instance. It takes a minute, and --watch 2 gives a first look in 15 seconds.`;

/** The exit code is 1 if there is a problem, and 2 if the command is wrong. */
export async function runDoctor(args: string[]) {
  if (args.includes('--help')) {
    console.log(USAGE);
    return 0;
  }
  const command = readCommand(args);
  if (typeof command === 'string') {
    console.error(`${command}\n${USAGE}`);
    return 2;
  }
  const { url, options, json } = command;
  options.print(
    `This opens streams and posts messages, the last ones bad, to ${new URL(url).origin}.`,
  );
  const result = await examine(url, options);
  const names = result.findings.map(({ name }) => name).join(', ') || 'nothing';
  console.log(json ? JSON.stringify(result) : `Found: ${names}.`);
  return result.findings.some(({ kind }) => kind === 'problem') ? 1 : 0;
}

/** Reads the command, or says what is wrong with it. Words may be tokens, and are not repeated. */
function readCommand(args: string[]) {
  const { npm_config_header, npm_config_watch } = process.env;
  if (npm_config_header || npm_config_watch) {
    return 'npm has kept an option to itself: write `--` before the URL (in PowerShell, "--").';
  }
  try {
    const { values, positionals } = parseArgs({ args, allowPositionals: true, options: OPTIONS });
    const { header, watch, json } = values;
    const [url = '', ...others] = positionals;
    if (others.length > 0) return 'There must be one URL, and quotes around each header.';
    if (!/^https?:\/\//.test(url)) return 'The URL must begin with http:// or https://.';
    if (!URL.canParse(url)) return 'The URL must be one that can be opened: check host and port.';
    const { username, password } = new URL(url);
    if (username || password) return 'The URL must have no user and password: use --header.';
    if (!(Number(watch) >= 0)) return '--watch must be a number of seconds.';
    const lines = header.map((line) => line.split(/:\s*(.*)/s, 2) as [string, string]);
    const headers = Object.fromEntries(new Headers(lines));
    const print = json ? ignore : (line: string) => console.log(line);
    return { url, json, options: { headers, watch: 1_000 * Number(watch), print } };
  } catch {
    return 'An option is wrong: there are --header "Name: value", --watch SECONDS and --json.';
  }
}

const OPTIONS = {
  header: { type: 'string', multiple: true, default: [] as string[] },
  watch: { type: 'string', default: '40' },
  json: { type: 'boolean', default: false },
} as const;

if (resolve(process.argv[1] ?? '') === import.meta.filename) {
  process.stdout.on('error', () => process.exit()); // Such as in `npm run doctor … | head`.
  process.exitCode = await runDoctor(process.argv.slice(2));
}
