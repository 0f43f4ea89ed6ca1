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
const INITIALIZED = '{"jsonrpc":"2.0","method":"notifications/initialized"}';
const BAD_MESSAGES = [
  ['text that is not JSON', 'This is not JSON.'],
  ['JSON that is no message', '{}'],
  ['another content type', '{"jsonrpc":"2.0","id":0,"method":"ping"}', 'text/plain'],
];
/**
 * A session id is in a parameter whose name has `session` in it, else in one whose name ends in
 * `id`, else in the last part that has digits.
 */
const ID =
  /(?<=[?&]\w*session\w*=)[^&]+|(?<=^(?!.*session\w*=).*[?&]\w*id=)[^&]+|[^/?&=]*\d[^/?&=]*(?=\D*$)/i;

/** Signs in `METHOD STATUS text` of an answer, and their names. The first that fits decides. */
const SIGNS: [RegExp, string][] = [
  [
    /^POST.*(stream is not readable|encoding should not be set|\[object Object\]|Unexpected token o )/s,
    'body-already-read',
  ],
  [/already (connected|started)/i, 'shared-server'],
  [/^\w+ 429|too many|(rate|session|connection)s? limit|max\w* (session|conn|client)/i, 'limited'],
  [
    /^\w+ (401|(200 \{.*"error|40[03] \{)(?!.*(csrf|unexpected token)).*(unauthori|token|api.?key|credential|authentication))/i,
    'unauthorized',
  ],
  [
    /^GET 403|^\w+ 4(21|.*((host|origin)\b.*(header|allowed|invalid)|(invalid|unknown) (host|origin)))/i,
    'host-refused',
  ],
  [/^GET 5(0[234]|2\d)/, 'bad-gateway'],
  [/^\w+ 5/, 'server-error'],
  [/^GET/, 'wrong-url'],
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
  /** The reply on the stream to the message that was sent. */
  reply: Message | undefined;
  /** What a POST to the same URL gets. */
  posted = '';
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

  get isMcp() {
    const isAnswer = [200, 400, 404, 405, 406].includes(this.status);
    return this.isStream || (isAnswer && messageIn(this.text) !== undefined);
  }

  get isAccepted() {
    return (this.status >= 200 && this.status < 300) || this.code === TIMEOUT;
  }

  /** What its signs mean, if it is no success. */
  get name() {
    const signs = `${this.method} ${this.status} ${this.text}`;
    return SIGNS.find(([sign]) => sign.test(signs))?.[1] ?? '';
  }

  get told() {
    return this.status ? `${this.status} ${quote(this.text)}` : `no answer: ${this.text}`;
  }
}

export type Options = Partial<Examination>;

/** A look at one server: what is known of it, and what each check is made of. */
class Examination {
  url: URL;
  headers: Record<string, string> = {};
  print: (line: string) => void = ignore;
  /** How many milliseconds a stream's head may take, and again its first event. */
  patienceMs = 15_000;
  /** How many milliseconds a POST may take, and again the reply on the stream. */
  replyMs = 10_000;
  /** How many milliseconds "a moment later" means. */
  pauseMs = 1_000;
  /** How many milliseconds an open stream is watched. */
  watchMs = 40_000;
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
  /** How the server refuses a made-up id: this is what it says of an unknown session. */
  unknown = '';
  /** How it refuses a path that nobody serves. */
  nowhere = '';
  otherOrigin = '';
  /** What the path in the `endpoint` event lacks. */
  prefix = '';
  /** What came on a stream that is no message, or under another name. */
  strange: Finding | undefined;

  constructor(url: string, options: Options) {
    Object.assign(this, options);
    this.url = new URL(url);
    this.secrets = Object.values(this.headers)
      .join(' ')
      .split(/[^\w.~+/-]+/);
  }

  // ---- From signs to names ---------------------------------------------------------------------

  /** What the rows of marks of new streams mean, of which one ended in this refusal. */
  nameOfMarks(marks: string, refusal: Exchange) {
    const name = refusal.name;
    // If the same path is answered at other times, somebody serves it.
    const isServed = marks.includes('+') && name === 'endpoint-not-served';
    if (!isServed && !this.isUnknown(refusal)) return this.otherOrigin ? 'other-origin' : name;
    if (/^[- ]+$/.test(marks)) return 'id-not-filed';
    if (/^(-*\++( |$))+$/.test(marks)) return 'filed-late';
    return /^(\++-+( |$))+$/.test(marks) ? 'removed-early' : 'several-processes';
  }

  /** Whether an answer says that the session is unknown, on a path that somebody serves. */
  isUnknown(answer: Exchange) {
    if (![400, 404, 410, 500, 503].includes(answer.status)) return false;
    if (/session|transport|connection not/i.test(withoutPaths(answer.text))) return true;
    const plain = this.plain(answer);
    return plain === this.unknown && plain !== this.nowhere;
  }

  /** An answer without what differs from one to the next: ids, numbers and paths. */
  plain({ status, text }: Exchange) {
    return status + withoutPaths(text);
  }

  /** Why a request got no stream, or no answer at all. */
  async explain(stream: Exchange) {
    const { method, url, elsewhere } = stream;
    const name = await this.nameOfFailure(stream);
    const after = name === 'died' ? `after ${this.deed}, ` : '';
    const beside = name === 'wrong-url' ? await this.findBeside() : '';
    const seen = `${after}${method} ${url.origin}${url.pathname} gets ${stream.told} ${stream.type}`;
    return new Finding(name, seen.trim() + elsewhere + stream.posted + beside);
  }

  async nameOfFailure(stream: Exchange): Promise<string> {
    const { code, status, isStream } = stream;
    if (stream.elsewhere) return 'redirected';
    if (code && code !== TIMEOUT) {
      if (await this.isDead()) return 'died';
      return this.hasAnswered ? '' : nameOfError(stream);
    }
    const name = stream.name;
    if (['limited', 'shared-server', 'unauthorized'].includes(name)) return name;
    // The first GET was answered otherwise, and that disproves most causes.
    if (this.hasStream) return { 500: 'server-error', 503: 'limited' }[status] ?? '';
    if (isStream && stream.endedAt) return 'cut-off';
    const answer = await this.post(this.url, message('initialize'));
    stream.posted = `; a POST of initialize gets ${answer.told} ${answer.type}`;
    if (answer.isMcp) return 'streamable-http';
    if (answer.name === 'unauthorized') return 'unauthorized';
    if (status && !isStream) return name;
    if (isStream || answer.status || (await this.get('/')).status) return 'buffered';
    return 'unreachable';
  }

  async findBeside() {
    const seen: string[] = [];
    for (const path of ['/sse', '/mcp', '/mcp/sse']) {
      const posted = await this.post(new URL(path, this.url), message('initialize'));
      if ((await this.get(path)).isStream) seen.push(`${path} is an event stream`);
      else if (posted.isMcp) seen.push(`${path} is Streamable HTTP`);
    }
    return `; ${seen.join(', ') || 'neither /sse nor /mcp nor /mcp/sse is MCP'}`;
  }

  /** Whether the server answered before, and refuses connections now and a second later. */
  async isDead() {
    const isRefused = async () => (await this.get('/')).code === 'ECONNREFUSED';
    if (!this.hasAnswered || !(await isRefused())) return false;
    await sleep(this.pauseMs);
    return isRefused();
  }

  async endOf(stream: Exchange) {
    const age = stream.endedAt - stream.openedAt;
    const seen = `the stream ended by itself after ${age} ms`;
    if (await this.isDead()) return new Finding('died', `after ${this.deed}, ${seen}`);
    return new Finding(age < 1.5 * this.pauseMs ? 'removed-early' : 'cut-off', seen);
  }

  // ---- Sessions and messages -------------------------------------------------------------------

  /** Opens a stream and waits for its `endpoint` event. */
  async open() {
    const stream = await this.send('GET', this.url, 'a new stream');
    await until(() => stream.madeUp || stream.endedAt || !stream.isStream, this.patienceMs);
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
    const id = randomInt(1e9);
    const answer = await this.post(stream.endpoint, message(method, id));
    if (answer.isAccepted) await until(() => this.replies.has(id) || stream.endedAt, this.replyMs);
    const reply = this.replies.get(id);
    if (reply?.stream === stream) {
      answer.reply = reply;
      return answer;
    }
    if (stream.endedAt) throw await this.endOf(stream);
    if (!answer.isAccepted && !answer.status) throw await this.explain(answer);
    const seen = `${method} gets ${answer.told}`;
    if (answer.name === 'limited') throw new Finding('limited', seen);
    if (reply) throw new Finding('shared-server', `${seen}, and the reply comes on another stream`);
    if (!answer.isAccepted) return answer;
    throw new Finding('reply-lost', `${seen}, and no reply comes on the stream`);
  }

  /** Sends a request that must not be refused, and returns its reply. */
  async call(stream: Exchange, method: string) {
    const answer = await this.tryOn(stream, method);
    if (answer.reply) return answer.reply;
    const name = this.isUnknown(answer) ? 'removed-early' : answer.name;
    throw new Finding(name, `${method} gets ${answer.told}`);
  }

  hear(stream: Exchange, event: string, data: string) {
    if (stream.method === 'POST') return;
    if (event === 'endpoint' && !stream.madeUp) return this.takeEndpoint(stream, data);
    const heard = messageIn(data);
    if (!heard) {
      if (event === 'message')
        this.strange = new Finding('heartbeat-as-data', quote(this.hide(data)));
      return;
    }
    const { id, method } = heard;
    const pong = JSON.stringify({ jsonrpc: '2.0', id, result: {} });
    if (method === 'ping') void this.post(stream.endpoint, pong);
    if (method || this.replies.has(id)) return;
    this.replies.set(id, { ...heard, stream });
    if (event !== 'message')
      this.strange = new Finding('wrong-event-name', `a reply is ${quote(event)}`);
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

  post(url: URL, body: string, deed = 'a message', type = 'application/json') {
    return this.send('POST', url, deed, { body, headers: { 'content-type': type } });
  }

  /** Sends a request. If an event stream answers a GET, it is listened to. */
  async send(method: string, url: URL, deed: string, init: RequestInit = {}) {
    const stream = new Exchange(method, url);
    const { controller } = stream;
    const giveUp = () => controller.abort({ code: TIMEOUT, message: 'it takes too long' });
    const timer = setTimeout(giveUp, method === 'GET' ? this.patienceMs : this.replyMs);
    this.streams.push(stream);
    try {
      const response = await this.follow(stream, { ...init, method, signal: controller.signal });
      this.hasAnswered = true;
      stream.status = response.status;
      stream.type = response.headers.get('content-type') ?? '';
      const reading = this.read(stream, response);
      if (!stream.isStream) await reading;
    } catch (error) {
      const { cause = error } = error as Error;
      const { name, code = name, message } = cause as NodeJS.ErrnoException;
      const proxy = process.env['HTTP_PROXY'] ? ' (HTTP_PROXY is set)' : '';
      if (!stream.status) Object.assign(stream, { code, text: `${code} ${message}${proxy}` });
    }
    clearTimeout(timer);
    if (stream.code !== 'ECONNREFUSED') this.deed = deed;
    return stream;
  }

  /** Follows redirects as clients do, but within the origin only: headers may be secrets. */
  async follow(stream: Exchange, init: RequestInit) {
    const headers = {
      accept: 'text/event-stream, application/json',
      ...init.headers,
      ...this.headers,
      connection: 'close',
    };
    for (let hops = 0; ; hops += 1) {
      const response = await fetch(stream.url, { ...init, headers, redirect: 'manual' });
      const location = response.headers.get('location');
      const isRedirect = location && response.status > 300 && response.status < 309;
      if (!isRedirect || hops === 5 || !URL.canParse(location, stream.url)) return response;
      const target = new URL(location, stream.url);
      if (target.origin !== this.url.origin) stream.elsewhere = `, to ${target.origin}`;
      // A POST that is redirected by another status becomes a GET.
      if (stream.elsewhere || (init.method === 'POST' && response.status < 307)) return response;
      await response.body?.cancel();
      stream.url = target;
      stream.endpoint = target;
    }
  }

  /** Reads a body: the events of a stream, or a text, which may be endless. */
  async read(answer: Exchange, { body }: Response) {
    const parser = createParser({
      onEvent: ({ event = 'message', data }) => this.hear(answer, event, data),
    });
    try {
      for await (const chunk of body?.pipeThrough(new TextDecoderStream()) ?? []) {
        answer.lastByteAt = Date.now();
        if (answer.isStream) parser.feed(chunk);
        else answer.text += chunk;
        if (answer.text.length > 65_536) break;
      }
    } catch {
      // A body that breaks off has ended, too.
    }
    // Before anything cuts the text: a part of a secret would not be known.
    answer.text = this.hide(answer.text);
    answer.endedAt = Date.now();
  }

  async closeStreams() {
    // The server needs time to see that a stream has come, and that it has gone.
    await sleep(this.pauseMs / 10);
    for (const { controller, isStream, endedAt } of this.streams.splice(0)) {
      if (isStream && !endedAt) this.deed = 'a stream that was closed';
      controller.abort();
    }
    await sleep(this.pauseMs / 10);
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

/** The codes of the network are like ECONNREFUSED; those of TLS follow no rule. */
function nameOfError({ url, text }: Exchange) {
  const isNetwork = /^(E(?!PROTO)[A-Z]+|EAI_\w+|UND_\w+) (?!.*TLS)/.test(text);
  return url.protocol === 'https:' && !isNetwork ? 'untrusted-certificate' : 'unreachable';
}

function message(method: string, id = randomInt(1e9)) {
  const hello = {
    protocolVersion: '2024-11-05',
    capabilities: {},
    clientInfo: { name: 'doctor', version: '1.0.0' },
  };
  const params = method === 'initialize' ? hello : undefined;
  return JSON.stringify({ jsonrpc: '2.0', id, method, params });
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

function withoutPaths(text: string) {
  return text.replace(/\/[^\s"]*|[\da-f-]{8,}|\d+/gi, '');
}

/** Asks until the answer is yes, or the time (in milliseconds) is over. Returns the last answer. */
export async function until<T>(ask: () => T, limit: number) {
  const end = Date.now() + limit;
  for (;;) {
    const answer = await ask();
    if (answer || Date.now() > end) return answer;
    await sleep(5);
  }
}

/** A text in one short line without control characters. */
function quote(text: string) {
  const line = text.replace(/[\p{C}\s]+/gu, ' ');
  return `"${line.trim().slice(0, 100)}"`;
}

// ---- Checks ------------------------------------------------------------------------------------

type Check = (look: Examination) => Promise<string | void>;

/**
 * Each returns what it saw, or nothing where it does not apply, or throws a finding.
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
    const ping = message('ping');
    look.nowhere = look.plain(await look.post(new URL('nowhere', endpoint), ping));
    if (!madeUp || madeUp.href === endpoint.href) return;
    const answer = await look.post(madeUp, ping);
    const seen = `a made-up one gets ${answer.told}`;
    if (answer.isAccepted) throw new Finding('unknown-id-accepted', seen);
    look.unknown = look.plain(answer);
    return seen;
  },

  /** Looks for the endpoint below the folders of the stream's own path. */
  async 'the path of the endpoint leads to the server'(look) {
    look.prefix = '';
    const stream = await look.open();
    const { pathname } = stream.endpoint;
    const folder = dirname(stream.url.pathname);
    if (folder === '/' || pathname.startsWith(`${folder}/`)) return;
    const answer = await look.tryOn(stream, 'initialize');
    if (answer.isAccepted) return;
    for (let prefix = folder; prefix !== '/'; prefix = dirname(prefix)) {
      stream.endpoint.pathname = prefix + pathname;
      const attempt = await look.tryOn(stream, 'initialize');
      if (!attempt.isAccepted) continue;
      look.prefix = prefix;
      const seen = `POST ${pathname} gets ${answer.told}, and below ${prefix} it is accepted`;
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
        if (row.length === 3) await sleep(look.pauseMs);
        const isStarted = row.includes('+');
        const answer = await look.tryOn(stream, isStarted ? 'ping' : 'initialize');
        row += answer.isAccepted ? '+' : '-';
        if (!answer.isAccepted) refusal = answer;
        else if (!isStarted) await look.post(stream.endpoint, INITIALIZED);
      }
      rows.push(row);
      await look.closeStreams();
    }
    const marks = rows.join(' ');
    const seen = `on new streams, messages are answered (+) or refused (-): ${marks}`;
    look.hasSession = !refusal;
    if (!refusal) return seen;
    throw new Finding(look.nameOfMarks(marks, refusal), `${seen}, with ${refusal.told}`);
  },

  /** A web page can make its own name lead to 127.0.0.1, and then the browser sends that name. */
  async 'a foreign Host is refused'(look) {
    if (!/^http:\/\/(localhost|127\.[\d.]+|\[::1\])[:/]/.test(look.url.href)) return;
    const headers = { ...look.headers, host: 'rebinding.example' };
    // fetch() sends the URL's own Host, whatever it is told.
    const options = { headers, headersTimeout: look.patienceMs };
    const response = await request(look.url, options).catch(ignore);
    response?.body.on('error', ignore).destroy();
    const status = response?.statusCode ?? 0;
    if (status === 200) throw new Finding('any-host-accepted', 'GET gets 200');
    if (status >= 400 && status < 500) return `GET gets ${status}`;
  },

  async 'the stream stays open'(look) {
    const stream = await (look.hasSession ? look.start() : look.open());
    const { watchMs } = look;
    const time = `for ${watchMs / 1_000} s`;
    look.print(`… an open stream is watched ${time}`);
    const start = Date.now();
    await until(() => stream.endedAt, watchMs);
    if (stream.endedAt) throw await look.endOf(stream);
    // Under 20 s, silence says nothing: many servers write once in 15 s. What comes at the
    // beginning is no keep-alive.
    const isSilent = watchMs >= 20 * look.pauseMs && stream.lastByteAt < start + 0.1 * watchMs;
    if (look.hasSession) await look.call(stream, 'ping');
    if (isSilent) throw new Finding('silent-stream', `${time}, and no byte came`);
    return time;
  },

  async 'each message event is JSON-RPC, and each reply such an event'(look) {
    if (look.strange) throw look.strange;
    return 'nothing else came';
  },
};

/** These need a session. What may hurt a server or its clients comes last. */
const SESSION_CHECKS: typeof CHECKS = {
  async 'a client may go on without initialize'(look) {
    const stream = await look.open();
    const refused = ({ message }: Error): Message => ({ error: { message } });
    const { result, error } = await look.call(stream, 'tools/list').catch(refused);
    if (result) return 'tools/list is answered';
    await look.closeStreams();
    const later = await look.call(await look.start(), 'tools/list');
    if (!later.result) return;
    throw new Finding(
      'not-before-initialize',
      `tools/list gets ${quote(look.hide(JSON.stringify(error)))}`,
    );
  },

  async 'two sessions stay apart'(look) {
    const first = await look.start();
    try {
      const second = await look.start();
      for (const stream of [first, second, first, second]) await look.call(stream, 'ping');
    } catch (error) {
      const { name, message } = error as Finding;
      if (FINAL.includes(name)) throw error;
      await look.closeStreams();
      await look.start(); // What fails here, too, does not come from the other session.
      throw new Finding('shared-server', `with two sessions open, ${message}`);
    }
    return 'each gets its own replies';
  },

  async 'an ended id is refused'(look) {
    if (!look.unknown) return;
    const { controller, endpoint } = await look.start();
    controller.abort();
    await sleep(look.pauseMs);
    const answer = await look.post(endpoint, message('ping'), 'a POST to an ended session');
    const seen = `after the end of its stream, it gets ${answer.told}`;
    if (answer.isAccepted) throw new Finding('ended-id-accepted', seen);
    if (!answer.status) throw await look.explain(answer);
    return seen;
  },

  async 'a bad message is survived'(look) {
    const stream = await look.start();
    for (const [what, body, type] of BAD_MESSAGES) {
      const answer = await look.post(stream.endpoint, body, what, type);
      await look.call(stream, 'ping').catch((error: Finding) => {
        if (FINAL.includes(error.name)) throw error;
        throw new Finding(
          'killed-by-bad-message',
          `after ${what} (${answer.told}), ${error.message}`,
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
  for (const [title, check] of Object.entries({ ...CHECKS, ...SESSION_CHECKS })) {
    if (title in SESSION_CHECKS && !look.hasSession) {
      print('The rest was not checked.');
      break;
    }
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

/** It proves before it accuses: what fails is tried again. By then, a restarted server is back. */
async function prove(look: Examination, check: Check) {
  const attempt = async () => {
    try {
      return await check(look);
    } catch (error) {
      if (error instanceof Finding) return error;
      throw error;
    } finally {
      await look.closeStreams();
    }
  };
  const outcome = await attempt();
  if (!(outcome instanceof Finding) || [...FINAL, 'silent-stream'].includes(outcome.name))
    return outcome;
  await sleep(look.pauseMs);
  return attempt();
}

/** What the README beside this folder says of a finding; the name alone where there is none. */
function adviceOn(name: string) {
  const readme = new URL('../README.md', import.meta.url);
  const page = existsSync(readme) ? readFileSync(readme, 'utf8') : '';
  const row = new RegExp(`^[ -]*(.*) \\(\`${name}\`\\)<br>\\*Yours:\\* (.*?)(<br>|$)`, 'm');
  const [, means, cure] = row.exec(page) ?? [];
  if (!means) return `  ${name}`;
  return `  ${name}: ${means}\n  What to do: ${cure}\n  More: search README.md for ${name}.`;
}

const USAGE = `Usage: npm run doctor -- URL [--header "Name: value"] [--watch SECONDS] [--json]
The doctor opens up to twenty streams (three at a time at the most) and posts up to sixty messages,
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
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        header: { type: 'string', multiple: true },
        watch: { type: 'string' },
        json: { type: 'boolean' },
      },
    });
    const { header = [], watch = '40', json } = values;
    const [url = '', ...others] = positionals;
    if (others.length > 0) return 'There must be one URL, and quotes around each header.';
    if (!/^https?:\/\//.test(url)) return 'The URL must begin with http:// or https://.';
    if (!URL.canParse(url)) return 'The URL must be one that can be opened: check host and port.';
    const { username, password } = new URL(url);
    if (username || password) return 'The URL must have no user and password: use --header.';
    if (!/^[12]?\d?\d$/.test(watch)) return '--watch must be a number of seconds below 300.';
    const lines = header.map((line) => line.split(/:\s*(.*)/s, 2) as [string, string]);
    const headers = Object.fromEntries(new Headers(lines));
    return {
      url,
      json,
      options: { headers, watchMs: 1_000 * Number(watch), print: json ? ignore : console.log },
    };
  } catch {
    return 'An option is wrong: there are --header "Name: value", --watch SECONDS and --json.';
  }
}

if (process.argv[1] === import.meta.filename) {
  process.stdout.on('error', () => process.exit()); // Such as in `npm run doctor … | head`.
  process.exitCode = await runDoctor(process.argv.slice(2));
}
