// SPDX-License-Identifier: MIT-0
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { dirname } from 'node:path/posix';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { createParser, type EventSourceMessage } from 'eventsource-parser';
import { request } from 'undici';

const ignore = () => undefined;

// ==== Any MCP server over HTTP+SSE: the doctor ================================================

/** These make nobody lose a session today. All other findings are problems. */
export const RISKS = [
  'silent-stream',
  'not-before-initialize',
  'unknown-id-accepted',
  'ended-id-accepted',
  'any-host-accepted',
];

/** What the README says of a finding: what it means, what to do, and where more is said. */
export function adviceOn(name: string) {
  const page = readFileSync(join(import.meta.dirname, '../README.md'), 'utf8');
  const row = new RegExp(`^[ -]*(.*) \\(\`${name}\`\\)<br>\\*Yours:\\* (.*?)(<br>|$)`, 'm');
  const [, means, cure] = row.exec(page) ?? [];
  return `  ${name}: ${means}\n  What to do: ${cure}\n  README.md says more: search it for ${name}.`;
}

/** What a check throws when it finds something; the message is what was seen. */
export class Finding extends Error {
  constructor(name: string, seen: string) {
    super(seen);
    this.name = name;
  }
}

/** All times are in milliseconds. */
export const DEFAULTS = {
  headers: {} as Record<string, string>,
  print: ignore as (line: string) => void,
  /** For the head of a stream, for its `endpoint` event, and for the answer to a POST. */
  answer: 5_000,
  /** For the reply on the stream. */
  reply: 10_000,
  /** What "a moment later" means. */
  pause: 1_000,
  /** How long an open stream is watched. */
  watch: 40_000,
  /** A shorter watch says nothing about silence: many servers write once in 15 s. */
  shortestSilence: 20_000,
};

export type Options = Partial<typeof DEFAULTS>;
export type Message = { id?: unknown; method?: string; result?: object; error?: object };
export type Visit = ReturnType<typeof newVisit>;

/** What is known of the server that is looked at. */
export function newVisit(url: string, options: Options) {
  return {
    ...DEFAULTS,
    ...options,
    url: new URL(url),
    /** Tokens and session ids, which are not shown. */
    secrets: Object.values(options.headers ?? {})
      .join(' ')
      .split(' '),
    /** The streams of the check that is running. */
    streams: [] as Exchange[],
    /** Each reply, with the first stream that it came on. */
    replies: new Map<unknown, Message & { stream: Exchange }>(),
    hasStream: false,
    hasSession: false,
    /** What a made-up id gets: this is how the server says that a session is unknown. */
    unknown: undefined as Exchange | undefined,
    otherOrigin: '',
    /** What the path in the `endpoint` event lacks. */
    prefix: '',
    silence: 0,
    strangeName: '',
    strangeData: '',
  };
}

/** One request, its answer, and the stream if the answer is one. */
export class Exchange {
  visit: Visit;
  controller = new AbortController();
  openedAt = Date.now();
  /** Without an answer, the status is 0, and the code says why. */
  status = 0;
  code = '';
  type = '';
  text = '';
  /** Where to POST; the stream's own URL until the first event has come. */
  endpoint: URL;
  /** The same with an id that nobody was given. */
  madeUp: URL | undefined;
  lastByteAt = 0;
  endedAt = 0;

  constructor(visit: Visit, url: URL) {
    this.visit = visit;
    this.endpoint = url;
  }
}

// ---- What a client needs of a server ---------------------------------------------------------

/** Each check returns what it saw, or nothing where it does not apply, or throws a finding. */
export const CHECKS: Record<string, (visit: Visit) => Promise<string | void>> = {
  async 'the stream opens'(visit) {
    const { type } = await open(visit);
    visit.hasStream = true;
    return `GET ${visit.url.pathname} gets 200 ${type}`;
  },

  async 'its first event says where to POST'(visit) {
    const { endpoint } = await open(visit);
    const { url, otherOrigin } = visit;
    if (!otherOrigin) return endpoint.pathname + endpoint.search;
    throw new Finding(
      'other-origin',
      `it names ${otherOrigin}, and the stream is at ${url.origin}`,
    );
  },

  /** Looks for the endpoint below the folders of the stream's own path. */
  async 'the path of the endpoint leads to the server'(visit) {
    visit.prefix = '';
    const stream = await open(visit);
    const { pathname } = stream.endpoint;
    const folder = dirname(visit.url.pathname);
    if (pathname.startsWith(folder)) return;
    const failure = await callOn(stream, 'initialize').then(ignore, (error: Error) => error);
    if (!failure) return;
    for (let prefix = folder; prefix !== '/'; prefix = dirname(prefix)) {
      stream.endpoint.pathname = prefix + pathname;
      const reply = await callOn(stream, 'initialize').catch(ignore);
      if (!reply) continue;
      visit.prefix = prefix;
      const seen = `${failure.message} at ${pathname}, and a reply below ${prefix}`;
      throw new Finding('missing-prefix', seen);
    }
  },

  async 'an unknown id is refused'(visit) {
    const { endpoint, madeUp } = await open(visit);
    if (!madeUp || madeUp.href === endpoint.href) return;
    visit.unknown = await postTo(visit, madeUp, messageOf('ping'));
    const seen = `a made-up one gets ${told(visit.unknown)}`;
    if (isAccepted(visit.unknown)) throw new Finding('unknown-id-accepted', seen);
    return seen;
  },

  /** Each stream gets a row of marks: + for a request that was answered, - for one refused. */
  async 'messages are answered, at once and later'(visit) {
    const rows: string[] = [];
    let refusal: Exchange | undefined;
    while (rows.length < 2) {
      const stream = await open(visit);
      let row = '';
      // With a round robin of eight processes, one of nine POSTs reaches the right one.
      while (row.length < (refusal ? 9 : 5)) {
        if (row.length === 3) await sleep(visit.pause);
        const { answer } = await tryOn(stream, row === '' ? 'initialize' : 'ping');
        row += isAccepted(answer) ? '+' : '-';
        if (!isAccepted(answer)) refusal = answer;
      }
      rows.push(row);
      await closeStreams(visit);
    }
    const seen = `on new streams, messages are answered (+) or refused (-): ${rows.join(' ')}`;
    visit.hasSession = true;
    if (!refusal) return seen;
    const name = nameOfRows(rows, refusal);
    visit.hasSession = name === 'filed-late';
    throw new Finding(name, `${seen}, with ${told(refusal)}`);
  },

  async 'two sessions stay apart'(visit) {
    if (!visit.hasSession) return;
    const blame = renamed('shared-server', 'with two sessions open');
    const first = await startSession(visit);
    const second = await startSession(visit).catch(blame);
    for (const stream of [first, second, first, second]) await callOn(stream, 'ping').catch(blame);
    return 'each gets its own replies';
  },

  async 'an ended id is refused'(visit) {
    if (!visit.hasSession || !visit.unknown || isAccepted(visit.unknown)) return;
    const { controller, endpoint } = await startSession(visit);
    controller.abort();
    await sleep(visit.pause);
    const answer = await postTo(visit, endpoint, messageOf('ping'));
    const seen = `after the end of its stream, it gets ${told(answer)}`;
    if (isAccepted(answer)) throw new Finding('ended-id-accepted', seen);
    return seen;
  },

  async 'a client may go on without initialize'(visit) {
    if (!visit.hasSession) return;
    const stream = await open(visit);
    const refused = ({ message }: Error): Message => ({ error: { message } });
    const { result, error } = await callOn(stream, 'tools/list').catch(refused);
    if (result) return 'tools/list is answered';
    const later = await callOn(await startSession(visit), 'tools/list');
    if (!later.result) return;
    throw new Finding('not-before-initialize', `tools/list gets ${JSON.stringify(error)}`);
  },

  /** A web page can make its own name lead to 127.0.0.1, and then the browser sends that name. */
  async 'a foreign Host is refused'({ url, headers, answer }) {
    if (!/^http:\/\/(localhost|127\.[\d.]+|\[::1\])[:/]/.test(url.href)) return;
    // fetch() sends the URL's own Host, whatever it is told.
    const signal = AbortSignal.timeout(answer);
    const foreign = { headers: { ...headers, host: 'rebinding.example' }, signal };
    const response = await request(url, foreign).catch(ignore);
    response?.body.on('error', ignore).destroy();
    const status = response?.statusCode ?? 'no answer';
    if (status === 200) throw new Finding('any-host-accepted', 'GET gets 200');
    return `GET gets ${status}`;
  },

  async 'the stream stays open'(visit) {
    const stream = await (visit.hasSession ? startSession(visit) : open(visit));
    const { watch, print } = visit;
    print(`… an open stream is watched for ${seconds(watch)}`);
    const start = Date.now();
    await waitFor(() => stream.endedAt, watch);
    if (stream.endedAt) throw endOf(stream);
    visit.silence = Date.now() - Math.max(start, stream.lastByteAt);
    if (visit.hasSession) await callOn(stream, 'ping');
    return `for ${seconds(watch)}`;
  },

  async 'a byte comes within the watch'({ silence, watch, shortestSilence }) {
    if (!silence || watch < shortestSilence) return;
    if (silence < 0.9 * watch) return 'it is kept alive';
    throw new Finding('silent-stream', `none came for ${seconds(watch)}`);
  },

  async 'events have the names that clients know'({ strangeName }) {
    if (strangeName) throw new Finding('wrong-event-name', strangeName);
    return 'endpoint and message';
  },

  async 'each message event is JSON-RPC'({ strangeData }) {
    if (strangeData) throw new Finding('heartbeat-as-data', strangeData);
    return 'nothing else came';
  },

  async 'a bad message is survived'(visit) {
    if (!visit.hasSession) return;
    const stream = await startSession(visit);
    for (const [what, body, type] of BAD_MESSAGES) {
      const answer = await postTo(visit, stream.endpoint, body, type);
      const blame = renamed('killed-by-bad-message', `after ${what} (${told(answer)})`);
      await callOn(stream, 'ping').catch(blame);
    }
    return 'also JSON that is no message, and another content type';
  },
};

export function nameOfRows(rows: string[], refusal: Exchange) {
  if (rows.every((row) => /^-+$/.test(row))) return nameOfRefusal(refusal);
  if (rows.every((row) => /^-*\++$/.test(row))) return 'filed-late';
  if (rows.every((row) => /^\++-+$/.test(row))) return 'removed-early';
  return 'several-processes';
}

export const BODY_IS_READ = /stream is not readable|encoding should not be set|\[object Object\]/;

export function nameOfRefusal(refusal: Exchange) {
  const { visit, status, text } = refusal;
  if (BODY_IS_READ.test(text)) return 'body-already-read';
  // The doctor posts to the URL's own origin only, and messages may be taken elsewhere.
  if (visit.otherOrigin) return 'other-origin';
  const isOfSession = /session|transport|undefined|null|None|KeyError/i.test(text);
  // A server that fails at every POST says nothing of its sessions.
  if (status >= 500 && !isOfSession) return 'reply-lost';
  if (BY_STATUS[status] && !isOfSession) return BY_STATUS[status];
  return isUnknown(refusal) ? 'id-not-filed' : 'reply-lost';
}

export const JSON_TYPE = 'application/json';
export const BAD_MESSAGES = [
  ['text that is not JSON', 'This is not JSON.', JSON_TYPE],
  ['JSON that is no message', '{}', JSON_TYPE],
  ['another content type', '{"jsonrpc":"2.0","id":0,"method":"ping"}', 'text/plain'],
] as const;

export function renamed(name: string, when: string) {
  return ({ message }: Error) => {
    throw new Finding(name, `${when}, ${message}`);
  };
}

// ---- Why no stream opens ---------------------------------------------------------------------

export const BY_STATUS: Record<number, string> = {
  401: 'unauthorized',
  403: 'host-refused',
  421: 'host-refused',
  502: 'bad-gateway',
  503: 'bad-gateway',
  504: 'bad-gateway',
};

export async function explain(stream: Exchange) {
  const { visit, status, code, type, text, lastByteAt } = stream;
  const { url } = visit;
  const seen = `GET ${url.origin}${url.pathname} gets ${told(stream)} ${type}`.trim();
  if (code && code !== TIMEOUT) return new Finding(nameOfFailure(stream), seen);
  const posted = await postTo(visit, url, messageOf('initialize'));
  if (isMcp(posted)) return new Finding('streamable-http', `${seen}; a POST is answered by MCP`);
  const name = BY_STATUS[status];
  if (name) return new Finding(name, seen);
  // Another session is open, or an earlier one was never given up.
  if (visit.hasStream || /already (connected|started)/i.test(text))
    return new Finding('shared-server', seen);
  const isSilent = isEventStream(stream) && !lastByteAt;
  if (status && !isSilent) return new Finding('wrong-url', `${seen}; ${await findBeside(visit)}`);
  const root = await exchange(visit, new URL('/', url));
  const isAnswering = status || posted.status || root.status;
  return new Finding(isAnswering ? 'buffered' : 'unreachable', `${seen}, no endpoint event`);
}

export function nameOfFailure({ visit, code, text }: Exchange) {
  if (code === 'ECONNREFUSED' && visit.hasStream) return 'died';
  // The codes of the network are like ECONNREFUSED; those of TLS follow no rule.
  const isNetwork = /^no answer: (E(?!PROTO)[A-Z]+|(EAI|UND)_\w+) (?!.*TLS)/.test(text);
  const isTls = visit.url.protocol === 'https:' && !isNetwork;
  return isTls ? 'untrusted-certificate' : 'unreachable';
}

export async function findBeside(visit: Visit) {
  const seen = ['/sse', '/mcp', '/mcp/sse'].map(async (path) => {
    const url = new URL(path, visit.url);
    if (isEventStream(await exchange(visit, url))) return `${path} is an event stream`;
    const posted = await postTo(visit, url, messageOf('initialize'));
    return `${path} is ${isMcp(posted) ? 'Streamable HTTP' : 'no MCP'}`;
  });
  return (await Promise.all(seen)).join(', ');
}

export function isMcp({ status, text }: Exchange) {
  const [, data = text] = /^data:(.*)$/m.exec(text) ?? [];
  const { result, error } = messageIn(data) ?? {};
  return result ?? (error && status <= 400);
}

// ---- Streams ---------------------------------------------------------------------------------

export const ACCEPT = 'text/event-stream, application/json';
export const TIMEOUT = 'TIMEOUT';
export const PROXY = process.env['HTTP_PROXY'] ? ' (HTTP_PROXY is set)' : '';

export const isEventStream = ({ status, type }: Exchange) =>
  status === 200 && type.startsWith('text/event-stream');

/** Sends a request. If an event stream answers a GET, it is listened to. */
export async function exchange(visit: Visit, url: URL, init: RequestInit = {}) {
  const stream = new Exchange(visit, url);
  const { controller } = stream;
  visit.streams.push(stream);
  const giveUp = () => controller.abort({ code: TIMEOUT, message: 'it takes too long' });
  const timer = setTimeout(giveUp, visit.answer);
  try {
    const headers = { accept: ACCEPT, ...init.headers, ...visit.headers, connection: 'close' };
    const response = await fetch(url, { ...init, headers, signal: controller.signal });
    stream.status = response.status;
    stream.type = response.headers.get('content-type') ?? '';
    if (isEventStream(stream) && !init.body) void listen(stream, response);
    // A body may stay open for ever.
    else stream.text = await Promise.race([response.text(), sleep(1_000, '')]);
  } catch (error) {
    const { cause = error } = error as Error;
    const { name, code = name, message } = cause as NodeJS.ErrnoException;
    Object.assign(stream, { code, text: `no answer: ${code} ${message}${PROXY}` });
  }
  clearTimeout(timer);
  return stream;
}

/** Opens a stream and waits for its `endpoint` event. */
export async function open(visit: Visit) {
  const stream = await exchange(visit, visit.url);
  const isDone = () => stream.madeUp || stream.endedAt || !isEventStream(stream);
  await waitFor(isDone, visit.answer);
  if (!stream.madeUp) throw await explain(stream);
  return stream;
}

/** Opens a stream and does what each client does first. */
export async function startSession(visit: Visit) {
  const stream = await open(visit);
  await callOn(stream, 'initialize');
  await postTo(visit, stream.endpoint, { jsonrpc: '2.0', method: 'notifications/initialized' });
  return stream;
}

export async function listen(stream: Exchange, { body, url }: Response) {
  const parser = createParser({ onEvent: (event) => hear(stream, event) });
  stream.endpoint = new URL(url);
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

export function hear(stream: Exchange, { event = 'message', data }: EventSourceMessage) {
  const { visit, endpoint, madeUp } = stream;
  if (event === 'endpoint' && !madeUp) takeEndpoint(stream, new URL(data, endpoint));
  const message = messageIn(data);
  if (!message) {
    if (event === 'message') visit.strangeData = `one was ${quote(data)}`;
    return;
  }
  const { id, method } = message;
  if (method === 'ping') void postTo(visit, endpoint, { jsonrpc: '2.0', id, result: {} });
  if (method || visit.replies.has(id)) return;
  visit.replies.set(id, { ...message, stream });
  if (event !== 'message') visit.strangeName = `a reply came as the event ${event}`;
}

// An id is in a parameter of that name, or else in the last part that has digits.
export const ID = /(?<=[?&]\w*(session|id)\w*=)[^&]+|[^/?&=]*\d[^/?&=]*(?=\D*$)/i;

/** Nothing is sent to another origin, lest a token gets there. */
export function takeEndpoint(stream: Exchange, { origin, pathname, search }: URL) {
  const { visit, endpoint } = stream;
  if (origin !== endpoint.origin) visit.otherOrigin = origin;
  const path = visit.prefix + pathname + search;
  const [id = ''] = ID.exec(path) ?? [];
  const madeUp = id.replace(/\w{1,8}(?=\W*$)/, String(randomInt(1e7, 1e8)));
  visit.secrets.push(id, madeUp);
  stream.endpoint = new URL(endpoint.origin + path);
  stream.madeUp = new URL(endpoint.origin + path.replace(ID, madeUp));
}

export async function closeStreams({ streams, pause }: Visit) {
  for (const { controller } of streams.splice(0)) controller.abort();
  // The server needs time to see it.
  await sleep(pause / 10);
}

export function endOf({ visit, openedAt, endedAt }: Exchange) {
  const age = endedAt - openedAt;
  const name = age < 1.5 * visit.pause ? 'removed-early' : 'cut-off';
  return new Finding(name, `the stream ended by itself after ${seconds(age)}`);
}

// ---- Messages --------------------------------------------------------------------------------

let lastId = 0;

export function messageOf(method: string) {
  lastId += 1;
  const clientInfo = { name: 'doctor', version: '1.0.0' };
  const params = { protocolVersion: '2024-11-05', capabilities: {}, clientInfo };
  return { jsonrpc: '2.0', id: lastId, method, ...(method === 'initialize' && { params }) };
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

/** Sends a request. Unless it is refused, its reply has to come on the same stream. */
export async function tryOn(stream: Exchange, method: string) {
  const { visit, endpoint } = stream;
  const message = messageOf(method);
  const answer = await postTo(visit, endpoint, message);
  const isDone = () => visit.replies.has(message.id) || stream.endedAt;
  if (isAccepted(answer)) await waitFor(isDone, visit.reply);
  const reply = visit.replies.get(message.id);
  if (reply?.stream === stream) return { answer, reply };
  if (stream.endedAt) throw endOf(stream);
  const seen = `${method} gets ${told(answer)}`;
  if (reply) throw new Finding('shared-server', `${seen}, and the reply comes on another stream`);
  if (!isAccepted(answer)) return { answer, reply };
  throw new Finding('reply-lost', `${seen}, and no reply comes on the stream`);
}

/** Sends a request that must not be refused, except at first: the session may be filed late. */
export async function callOn(stream: Exchange, method: string) {
  const first = await tryOn(stream, method);
  if (first.reply) return first.reply;
  await sleep(stream.visit.pause);
  const { answer, reply } = await tryOn(stream, method);
  if (reply) return reply;
  const name = isUnknown(answer) ? 'removed-early' : 'reply-lost';
  throw new Finding(name, `${method} gets ${told(answer)}`);
}

export function postTo(visit: Visit, url: URL, message: object | string, type = JSON_TYPE) {
  const body = typeof message === 'string' ? message : JSON.stringify(message);
  return exchange(visit, url, { method: 'POST', headers: { 'content-type': type }, body });
}

export const isAccepted = ({ status, code }: Exchange) =>
  (status >= 200 && status < 300) || code === TIMEOUT;

/** Whether this is how a made-up id is answered; ids, numbers and paths in the text may differ. */
export function isUnknown(answer: Exchange) {
  const { visit } = answer;
  const plain = ({ text }: Exchange) =>
    hide(visit, text).replace(/\/[\w/.~%…-]*|[\da-f-]{8,}|\d+/gi, '');
  const { unknown } = visit;
  return unknown?.status === answer.status && plain(unknown) === plain(answer);
}

export async function waitFor(isReached: () => unknown, limit: number) {
  const end = Date.now() + limit;
  while (!isReached() && Date.now() < end) await sleep(1);
}

// ---- What is shown ---------------------------------------------------------------------------

/** Hides tokens and session ids, and whatever else looks like one. */
export function hide({ secrets }: Visit, text: string) {
  let hidden = text;
  for (const secret of secrets) {
    // A shorter one may be a part of anything.
    if (secret.length > 3) hidden = hidden.replaceAll(secret, '***');
  }
  return hidden.replace(/(?=[\w-]*\d)([\w-]{8})[\w-]{12,}/g, '$1…');
}

export const told = ({ status, text }: Exchange) => (status ? `${status} ${quote(text)}` : text);

/** A text in one short line, without markup and control characters. */
export function quote(text: string) {
  const line = text.replace(/(<(style|script|head)[^]*?<\/\2>|<[^>]*>|[\p{C}\s])+/gu, ' ');
  return `"${line.trim().slice(0, 100)}"`;
}

export const seconds = (ms: number) => `${(ms / 1_000).toFixed(1)} s`;

// ---- The examination and its command line ----------------------------------------------------

/** Looks at a server from outside as a client would, and prints what each check saw. */
export async function examine(url: string, options: Options) {
  const visit = newVisit(url, options);
  const { print, pause } = visit;
  const findings: { name: string; kind: string; seen: string }[] = [];
  /** The last check that could begin: if the server dies, it has died of that one. */
  let place = '';
  for (const [title, run] of Object.entries(CHECKS)) {
    let outcome = await attempt(visit, run);
    if (!(outcome instanceof Finding && outcome.name === 'died')) place = title;
    if (outcome instanceof Finding) {
      // It proves before it accuses. By now, a server that only restarts is back.
      await sleep(pause);
      outcome = await attempt(visit, run);
    }
    if (outcome instanceof Finding) {
      const { name, message } = outcome;
      const kind = RISKS.includes(name) ? 'risk' : 'problem';
      const seen = hide(visit, `${place}: ${message}`);
      print(`${kind === 'risk' ? '!' : '✘'} ${seen}`);
      if (findings.some((finding) => finding.name === name)) continue;
      findings.push({ name, kind, seen });
      print(adviceOn(name));
      if (visit.hasStream && name !== 'died') continue;
      print('The rest was not checked.');
      break;
    } else if (outcome) {
      print(hide(visit, `✔ ${title}: ${outcome}`));
    }
  }
  return { url: hide(visit, url), findings };
}

export async function attempt(visit: Visit, run: (visit: Visit) => unknown) {
  try {
    return await run(visit);
  } catch (error) {
    if (error instanceof Finding) return error;
    throw error;
  } finally {
    await closeStreams(visit);
  }
}

export const USAGE =
  'Usage: npm run doctor -- URL [--header "Name: value"] [--watch SECONDS] [--json]';

/** The exit code is 1 if there is a problem, and 2 if the command is wrong. */
export async function runDoctor(args: string[]) {
  const command = readCommand(args);
  if (!command) {
    console.error(USAGE);
    return 2;
  }
  const { url, options, json } = command;
  const result = await examine(url, options);
  const names = result.findings.map(({ name }) => name).join(', ') || 'nothing';
  console.log(json ? JSON.stringify(result) : `Found: ${names}.`);
  return result.findings.some(({ kind }) => kind === 'problem') ? 1 : 0;
}

/** Nothing if the command is wrong. Its words are not repeated, since one may be a token. */
export function readCommand(args: string[]) {
  try {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        header: { type: 'string', multiple: true, default: [] },
        watch: { type: 'string', default: '40' },
        json: { type: 'boolean', default: false },
      },
    });
    const { header, json } = values;
    const [url = ''] = positionals;
    const watch = 1_000 * Number(values.watch);
    assert.match(url, /^https?:\/\/[^@]+$/);
    assert.ok(URL.canParse(url) && watch >= 0);
    const lines = header.map((line) => line.split(/:\s*(.*)/, 2) as [string, string]);
    const headers = Object.fromEntries(new Headers(lines));
    return { url, json, options: { headers, watch, print: json ? ignore : console.log } };
  } catch {
    return undefined;
  }
}

if (process.argv[1] === import.meta.filename)
  process.exitCode = await runDoctor(process.argv.slice(2));
