// SPDX-License-Identifier: MIT
/**
 * An MCP server over HTTP+SSE in one file, made for reading, copying and teaching.
 *
 * MCP (Model Context Protocol) lets an AI application, the client, call the tools of a server.
 * Both send JSON-RPC messages. A session is one open `GET /sse` stream: the SDK makes its id, and
 * the stream's first event, `endpoint`, tells the client where to POST: `/messages?sessionId=…`.
 * Each POST is answered with 202 alone, and the reply to its message comes on the stream. When
 * the stream ends, its session ends too, and a client that comes back opens a new stream.
 *
 * The steps and the names are those of the SDK's example, `examples/server/simpleSseServer.ts`.
 *
 * HTTP+SSE is deprecated: start a new server on Streamable HTTP, its successor. This file is for
 * servers whose clients still speak SSE.
 *
 * It needs Node 20.18.1 or later, `"type": "module"` in package.json, and the packages
 * `@modelcontextprotocol/sdk` 1 and `zod` 4; the firewall's part also needs `undici` 7,
 * `fast-xml-parser` 5 and `@nodable/entities` 3. Node 22.18 and later run the file as it is, and
 * Node 20 runs it with `tsx` 4. To compile it, add `typescript` and `@types/node`, set `module` to
 * `nodenext`, and set `skipLibCheck`, because the SDK's declarations do not pass every check.
 *
 * @see https://modelcontextprotocol.io/specification/2024-11-05/basic/transports (HTTP with SSE)
 */
import { hash, timingSafeEqual } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, statSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import module from 'node:module';
import { type AddressInfo, isIPv4, isIPv6 } from 'node:net';
import { parseEnv } from 'node:util';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { SSEServerTransport } from '@modelcontextprotocol/sdk/server/sse.js';
import * as z from 'zod';

// ---- Sessions --------------------------------------------------------------------------------

const KEEP_ALIVE_MS = 15_000;
const MAX_SESSIONS = 10_000;
const MAX_UNREAD_BYTES = 1024 * 1024; // What one client may leave unread on its stream.
const MAX_MESSAGE_BYTES = 4 * 1024 * 1024; // The SDK's own limit for one message.
const MAX_POSTED_BYTES = 64 * 1024 * 1024; // For all messages that are being answered.
const UNREAD_ANSWER_MS = 30_000;
const DRAIN_MS = 500;

/** The open sessions. Each begins in `openSession()` and ends in its `transport.onclose`. */
class Sessions {
  readonly options: Options;
  private readonly transports = new Map<string, SSEServerTransport>();
  private readonly runningEnds = new Set<Promise<void>>();
  private postedBytes = 0;
  private isShuttingDown = false;

  constructor(options: Options) {
    this.options = options;
  }

  /** Answers a GET. Its response becomes the stream, and the session ends when the stream ends. */
  async openSession(req: IncomingMessage, res: ServerResponse) {
    if (req.socket.destroyed) return; // The client has left, and no event would end its session.
    const refusal = this.refusal();
    if (refusal) return reply(res, 503, refusal);

    const transport = new SSEServerTransport(this.options.messagesPath, res);
    const { sessionId } = transport;
    // Stored before connect() sends the id: the client may post as soon as it has read it.
    this.transports.set(sessionId, transport);
    const session = { id: sessionId, address: req.socket.remoteAddress, startedAt: new Date() };
    // These two are declared before onclose, which may be called while connect() is running.
    const keepAlive = setInterval(() => sendKeepAlive(transport, res), KEEP_ALIVE_MS);
    let started: Promise<void> | undefined;
    transport.onclose = () => {
      // Both close() and the end of the response call this. Only the first call counts.
      if (!this.transports.delete(sessionId)) return;
      clearInterval(keepAlive);
      if (!started) return; // The session ended while it was opening, and no hook knows of it.
      req.socket.end(); // A connection that the client keeps open would make shutdown() wait.
      this.endSession(session, started);
    };
    transport.onmessage = () => this.beforeMessage(transport, res);
    try {
      // connect() adds its own handlers to these two (its JSDoc says that it replaces them, but SDK
      // v1 calls ours first), and sends the `endpoint` event.
      await this.options.getServer().connect(transport);
    } catch (error) {
      await transport.close(); // The stream may be open already, and no server would answer on it.
      throw error;
    }
    if (this.transports.has(sessionId)) started = this.callHook('onSessionStart', session);
  }

  /** Answers a POST: the SDK reads the message, and its reply goes out on the session's stream. */
  async postMessage(req: IncomingMessage, res: ServerResponse, sessionId?: string | null) {
    const { ssePath } = this.options;
    if (!sessionId) {
      return reply(res, 400, `Missing sessionId parameter: post to the URL that ${ssePath} gives`);
    }
    const transport = this.transports.get(sessionId);
    if (!transport) {
      return reply(res, 404, `Session not found: reconnect to ${ssePath}`);
    }
    // A message stays in memory until its answer has been sent, and all messages together must not
    // fill the memory. A message that does not state its size counts as the largest possible one.
    const size = Number(req.headers['content-length'] ?? MAX_MESSAGE_BYTES);
    if (this.postedBytes + size > MAX_POSTED_BYTES) {
      return reply(res, 503, 'The server is busy with other messages: try again later');
    }
    this.postedBytes += size;
    res.once('close', () => {
      this.postedBytes -= size;
    });
    await transport.handlePostMessage(req, res);
    // The SDK's answer to bad JSON repeats all of it, and a client may never read that answer.
    if (!res.writableFinished) res.setTimeout(UNREAD_ANSWER_MS, () => res.destroy());
  }

  /** Ends all sessions, and resolves when their end hooks have finished. */
  async shutdown() {
    this.isShuttingDown = true;
    for (const transport of this.transports.values()) await transport.close();
    await Promise.all(this.runningEnds);
  }

  /** Why no session can be opened now; undefined if one can. */
  private refusal() {
    if (this.isShuttingDown) return 'This server is shutting down: reconnect soon';
    if (this.transports.size < MAX_SESSIONS) return undefined;
    return `All ${MAX_SESSIONS} sessions are in use: try again later`;
  }

  /** The SDK calls this when it has read a message, and refuses the message if this throws. */
  private beforeMessage(transport: SSEServerTransport, res: ServerResponse) {
    closeIfUnread(transport, res);
    // If the session has ended while the message was arriving, nobody would get its reply.
    if (!this.transports.has(transport.sessionId)) throw new Error('The session has ended.');
  }

  private endSession(session: Session, started: Promise<void>) {
    const end = started.then(() => this.callHook('onSessionEnd', session));
    this.runningEnds.add(end);
    void end.then(() => this.runningEnds.delete(end));
  }

  private async callHook(name: keyof SessionHooks, session: Session) {
    try {
      await this.options.hooks[name]?.(session);
    } catch (error) {
      console.error(`${name} failed:`, error);
    }
  }
}

/** Writes a comment: clients and proxies give up on a stream that stays silent. */
function sendKeepAlive(transport: SSEServerTransport, res: ServerResponse) {
  closeIfUnread(transport, res);
  if (!res.writableEnded) res.write(': keep-alive\n\n');
}

/** Ends the session of a client that has stopped reading, before its replies fill the memory. */
function closeIfUnread(transport: SSEServerTransport, res: ServerResponse) {
  if (res.writableLength <= MAX_UNREAD_BYTES) return;
  void transport.close();
  res.destroy(); // close() alone waits until the client has read everything.
}

/** A session, as the hooks see it. */
export interface Session {
  /** The id that the SDK made. Whoever knows it can post into the session: never log all of it. */
  readonly id: string;
  /** The address from which the client opened the stream. */
  readonly address: string | undefined;
  readonly startedAt: Date;
}

/** What to call when a session starts and when it ends. A hook that fails is logged. */
export interface SessionHooks {
  /** Called once the stream is open and its `endpoint` event has been sent. */
  onSessionStart?(session: Session): void | Promise<void>;
  /**
   * Called once for each start, whichever side ends the session. It waits until the promise of
   * `onSessionStart` has settled: a start that never settles is never followed by an end.
   */
  onSessionEnd?(session: Session): void | Promise<void>;
}

// ---- HTTP ------------------------------------------------------------------------------------

export interface McpHttpServerOptions {
  /** Makes the server of one session: an McpServer can be connected to only one transport. */
  getServer: () => McpServer;
  /** What to call when a session starts and when it ends; by default nothing. */
  hooks?: SessionHooks | undefined;
  /** The path of the stream, by default `/sse`. A trailing slash makes no difference. */
  ssePath?: string | undefined;
  /** The path to post to, by default `/messages`. Behind a proxy it includes the public prefix. */
  messagesPath?: string | undefined;
  /** The host names, besides loopback's, that `Host` and `Origin` may have; by default none. */
  allowedHosts?: string[] | undefined;
  /** If given, each request must carry it, as `Authorization: Bearer <token>`. */
  token?: string | undefined;
}

type Options = ReturnType<typeof withDefaults>;

function withDefaults(options: McpHttpServerOptions) {
  const { hooks = {}, ssePath = '/sse', messagesPath = '/messages', allowedHosts = [] } = options;
  return {
    ...options,
    hooks,
    ssePath: withoutSlash(ssePath),
    messagesPath: withoutSlash(messagesPath),
    allowedHosts: allowedHosts.map((name) => name.toLowerCase()),
  };
}

function withoutSlash(path: string) {
  return path.endsWith('/') ? path.slice(0, -1) : path;
}

/**
 * Makes the HTTP server, which serves once its `listen()` is called.
 *
 * @returns the `http.Server` as `server`, and `shutdown()`, which takes no more sessions, ends
 *   those that are open, and resolves when all end hooks have finished and the port is free (the
 *   server's own `close` event does not wait for a hook)
 */
export function createMcpHttpServer(options: McpHttpServerOptions) {
  const sessions = new Sessions(withDefaults(options));
  // A request that takes longer than 30 s to arrive gets 408, and Node looks for such requests
  // each second. An open stream is left alone.
  const limits = { requestTimeout: 30_000, connectionsCheckingInterval: 1000 };
  const server = createServer(limits, (req, res) => void handleRequest(sessions, req, res));

  async function shutdown() {
    const closed = new Promise((resolve) => server.close(resolve));
    await sessions.shutdown();
    // A client may still be reading the end of its stream, or may never read it.
    const timer = setTimeout(() => server.closeAllConnections(), DRAIN_MS);
    await closed;
    clearTimeout(timer);
  }

  return { server, shutdown };
}

async function handleRequest(sessions: Sessions, req: IncomingMessage, res: ServerResponse) {
  try {
    await route(sessions, req, res);
  } catch (error) {
    console.error('Error handling request:', error);
    if (res.headersSent) res.end(); // It is too late for another status.
    else reply(res, 500, 'Error handling request');
  }
}

async function route(sessions: Sessions, req: IncomingMessage, res: ServerResponse) {
  const { ssePath, messagesPath, allowedHosts, token } = sessions.options;
  const url = requestedUrl(req);
  // A request that is sent before the previous one is answered has no socket until its turn comes.
  // Until then, nothing would tell the server that the client has left.
  if (!res.socket) {
    return reply(res, 400, 'Pipelined request: wait for the answer to the previous request');
  }
  const refusal = refusalOf(req, url, allowedHosts);
  if (refusal) return reply(res, 403, refusal);
  const path = url ? withoutSlash(url.pathname) : undefined;
  if (path !== ssePath && path !== messagesPath) {
    return reply(res, 404, `Not found: use GET ${ssePath} or POST ${messagesPath}`);
  }
  if (!isAuthorized(req, token)) {
    return reply(res, 401, 'A token is needed: send the header Authorization: Bearer <token>', {
      'WWW-Authenticate': 'Bearer',
    });
  }
  if (path === ssePath && req.method === 'GET') {
    res.setHeader('X-Accel-Buffering', 'no'); // Otherwise nginx holds the events back.
    return sessions.openSession(req, res);
  }
  if (path === messagesPath && req.method === 'POST') {
    return sessions.postMessage(req, res, url?.searchParams.get('sessionId'));
  }
  const method = path === ssePath ? 'GET' : 'POST';
  reply(res, 405, `Method not allowed: use ${method} ${path}`, { Allow: method });
}

/** The URL of the request; undefined if its target is not a URL, such as `*`. */
function requestedUrl(req: IncomingMessage) {
  const target = req.url ?? '';
  if (target.startsWith('/')) return new URL(`http://localhost${target}`);
  // A target may also be a whole URL, which must be accepted (RFC 9112, section 3.2.2).
  return URL.canParse(target) ? new URL(target) : undefined;
}

/** Why the request is refused; undefined if it is let in. */
function refusalOf(req: IncomingMessage, url: URL | undefined, allowedHosts: string[]) {
  if (isCrossSite(req)) return 'Cross-site request: web pages of other sites are refused';
  if (isAllowed(req, url, allowedHosts)) return undefined;
  return 'Host or Origin not allowed: add its name to the allowed hosts';
}

/** Whether the request is meant for this server, and not sent by a web page of another site. */
function isAllowed(req: IncomingMessage, url: URL | undefined, allowedHosts: string[]) {
  // A web page can make a browser send requests to 127.0.0.1 (DNS rebinding), but the page can't
  // change these headers. The SDK's own check is middleware for Express.
  const { host = '', origin } = req.headers;
  if (!isAllowedName(hostnameOf(host), allowedHosts)) return false;
  if (url && !isAllowedName(url.hostname, allowedHosts)) return false;
  if (origin === undefined) return true;
  return isAllowedName(hostnameOf(origin.replace(/^https?:\/\//, '')), allowedHosts);
}

/** Whether the browser marks this as cross-site and sends no Origin, as it does for images. */
function isCrossSite(req: IncomingMessage) {
  return req.headers.origin === undefined && req.headers['sec-fetch-site'] === 'cross-site';
}

function isAllowedName(name: string | undefined, allowedHosts: string[]) {
  if (name === undefined) return false;
  return isLoopback(name) || allowedHosts.includes(name);
}

/** The name in `name` or `name:port`, in lower case; undefined for anything else. */
function hostnameOf(host: string) {
  // URL alone would also take a user, a path or a query.
  if (!/^[\w.:[\]-]+$/.test(host) || !URL.canParse(`http://${host}`)) return undefined;
  return new URL(`http://${host}`).hostname;
}

function isLoopback(name: string) {
  if (['localhost', '::1', '[::1]'].includes(name.toLowerCase())) return true;
  return isIPv4(name) && name.startsWith('127.');
}

function isAuthorized(req: IncomingMessage, token: string | undefined) {
  if (token === undefined) return true;
  const given = /^bearer +(\S+)$/i.exec(req.headers.authorization ?? '')?.[1];
  if (given === undefined) return false;
  // Comparing hashes takes the same time, however many characters of the token are right.
  return timingSafeEqual(hash('sha256', given, 'buffer'), hash('sha256', token, 'buffer'));
}

function reply(res: ServerResponse, status: number, text: string, headers = {}) {
  res.writeHead(status, { 'Content-Type': 'text/plain', ...headers });
  res.end(`${text}\n`);
}

// ==== Replace from here: the tool, the firewall behind it, and their settings =================
// Then name your own settings in `settingsSchema` below, and replace `connectFirewall`,
// `getServer` and `describeFirewall` in `main()`. Keep `jsonSchemaValidator` and `sessionEnd` in
// your own `getServer()`. The imports are here so that they are replaced with the rest.

import { AjvJsonSchemaValidator } from '@modelcontextprotocol/sdk/validation/ajv';
import { EntityDecoder } from '@nodable/entities';
import { XMLParser } from 'fast-xml-parser';
import { interceptors, Pool } from 'undici';

// The fields that every PAN-OS firewall sends, with values that belong to no device.
const SAMPLE = {
  hostname: 'sample-firewall', devicename: 'sample-firewall', model: 'PA-SAMPLE',
  family: 'sample', 'platform-family': 'sample', serial: '000000000000', netmask: '255.255.255.0',
  'ip-address': '192.0.2.1', 'default-gateway': '192.0.2.254', 'sw-version': '0.0.0',
  'mac-address': '00:00:5e:00:53:01', time: 'Thu Jan  1 00:00:00 1970', 'app-version': '0-0',
  uptime: '0 days, 0:00:00', 'av-version': '0-0', 'operational-mode': 'normal',
};
const SAMPLE_NOTE = 'Sample data: to ask a real firewall, set PANOS_HOSTNAME and PANOS_API_KEY.';

// What is the same in every session is made once, because getServer() runs for each session. With
// a validator of its own, for example, each session would cost about 20 KB more.
const jsonSchemaValidator = new AjvJsonSchemaValidator();
const fieldSchema = z.string().optional();
// Clients that ask a person for each argument send an empty string if the person gives none.
const targetSchema = z.string().regex(/^[\da-zA-Z]{0,32}$/, 'must be a serial number').optional();
const showSystemInfo = {
  title: 'Show system info',
  description: 'Shows the model, serial, versions, addresses and uptime of a Palo Alto firewall.',
  inputSchema: z.strictObject({
    target: targetSchema.describe('Serial number of the firewall to ask through this Panorama'),
  }),
  outputSchema: z.looseObject(
    Object.fromEntries(Object.keys(SAMPLE).map((name) => [name, fieldSchema])),
  ),
  annotations: { readOnlyHint: true, destructiveHint: false, openWorldHint: false },
};

/** Makes the server of one session. The SDK sends what a tool throws as an `isError` result. */
export function getServer(firewall: Firewall | undefined) {
  const server = new McpServer({ name: 'mcp-baseline', version: '1.0.0' }, { jsonSchemaValidator });
  // If a client gives several calls the same id, the SDK's own signal fires for only one of them
  // when the session ends. This signal fires for all of them.
  const sessionEnd = new AbortController();
  server.server.onclose = () => sessionEnd.abort();

  server.registerTool('show_system_info', showSystemInfo, async ({ target }, extra) => {
    const signal = AbortSignal.any([extra.signal, sessionEnd.signal]);
    const system = firewall ? await askSystemInfo(firewall, signal, target) : SAMPLE;
    const content = [{ type: 'text' as const, text: JSON.stringify(system) }];
    if (!firewall) content.push({ type: 'text', text: SAMPLE_NOTE });
    return { structuredContent: system, content };
  });
  return server;
}

async function askSystemInfo(firewall: Firewall, signal: AbortSignal, target = '') {
  const cmd = '<show><system><info></info></system></show>';
  const call = new URLSearchParams({ type: 'op', cmd });
  if (target !== '') call.set('target', target);
  const { data } = resultSchema.safeParse(await askFirewall(firewall, call, signal));
  if (data) return data.system;
  throw new Error('No system information came back: check PANOS_HOSTNAME.');
}

const resultSchema = z.object({ system: z.record(z.string(), z.unknown()) });

const HOSTNAME_RULE = 'It must be like fw.example, fw.example:443 or https://fw.example.';
const firewallSettings = z.object({
  PANOS_HOSTNAME: z.string().refine(isOrigin, HOSTNAME_RULE).optional(),
  PANOS_API_KEY: secretSchema().optional(),
  PANOS_SKIP_VERIFY_CERTIFICATE: z.stringbool('It must be true or false.').default(false),
});

function isOrigin(text: string) {
  return hostnameOf(text.replace(/^https?:\/\//, '')) !== undefined;
}

type Firewall = NonNullable<ReturnType<typeof connectFirewall>>;

/** Opens the connections to the device that the settings name; returns undefined for none. */
export function connectFirewall(settings: z.infer<typeof firewallSettings>) {
  const { PANOS_HOSTNAME: hostname, PANOS_API_KEY: apiKey } = settings;
  if (!hostname && !apiKey) return undefined;
  if (!hostname) throw new Error('PANOS_HOSTNAME is not set. Set it, or unset PANOS_API_KEY.');
  if (!apiKey) throw new Error('PANOS_API_KEY is not set. Set it, or unset PANOS_HOSTNAME.');
  const origin = new URL(hostname.includes('://') ? hostname : `https://${hostname}`);
  const connect = { rejectUnauthorized: !settings.PANOS_SKIP_VERIFY_CERTIFICATE };
  // PAN-OS should get at most five calls at a time. The Pool makes all other calls wait.
  const pool = new Pool(origin, { connections: 5, maxResponseSize: 1024 * 1024, connect });
  const dispatcher = pool.compose(retryOnce);
  return { name: origin.host, apiKey, pool, dispatcher, parser: createParser(apiKey) };
}

const entityDecoder = new EntityDecoder({ numericAllowed: true });

function createParser(apiKey: string) {
  const encodedKey = encodeURIComponent(apiKey);
  const keyForms = [apiKey, encodedKey, encodedKey.replace(/%../g, (hex) => hex.toLowerCase())];

  /** Removes the API key from a text, because a device may repeat the key. */
  function withoutKey(_name: string, value: string) {
    let text = value.trim();
    for (const key of keyForms) text = text.replaceAll(key, '***');
    return text;
  }

  return new XMLParser({
    ignoreAttributes: false,
    attributeNamePrefix: '',
    attributeValueProcessor: withoutKey,
    tagValueProcessor: withoutKey,
    parseTagValue: false, // Each value stays the text that was sent: a serial keeps its zeros.
    entityDecoder, // It also decodes numeric references such as &#233;.
  });
}

const CALL_TIMEOUT_MS = 30_000;
const MAX_QUEUED_CALLS = 50;
const KEY_HINT = 'check PANOS_API_KEY and the XML API rights of its role';
const TARGET_HINT = 'check the target if you gave one, or try again later';
const HOST_HINT = 'check PANOS_HOSTNAME and the network path to it, or try again later';

// A device may drop a kept-alive connection just when a call is sent. Calls that only read can be
// sent again on a new connection.
const retryOnce = interceptors.retry({
  maxRetries: 1,
  minTimeout: 0,
  methods: ['POST'],
  statusCodes: [],
  errorCodes: ['ECONNRESET', 'EPIPE', 'UND_ERR_SOCKET'],
});

/**
 * Sends one call to the XML API of PAN-OS, and once more if the connection was lost.
 *
 * @returns the `<result>` of the reply
 * @throws an Error whose message says what happened and what to do
 * @see https://docs.paloaltonetworks.com/pan-os/11-1/pan-os-panorama-api
 */
async function askFirewall(firewall: Firewall, call: URLSearchParams, signal: AbortSignal) {
  const { name, pool, parser } = firewall;
  if (pool.stats.queued >= MAX_QUEUED_CALLS) {
    throw new Error(`${name} is busy: ${MAX_QUEUED_CALLS} calls wait for it. Try again later.`);
  }
  const { statusCode, text } = await post(firewall, call, signal);
  const response = parseResponse(parser, text);
  if (!response) {
    const hint = isRefusal(String(statusCode)) ? KEY_HINT : HOST_HINT;
    throw failure(name, `HTTP ${statusCode} without PAN-OS XML`, hint);
  }
  const { status, code: sentCode, msg, result } = response;
  if (status === 'success') return result;
  const code = textOf(sentCode);
  const codes = `HTTP ${statusCode}, status ${textOf(status)}, code ${code || 'none'}`;
  const reason = `${codes}: ${textOf(msg ?? result)}`;
  const hint = isRefusal(code || String(statusCode)) ? KEY_HINT : TARGET_HINT;
  throw failure(name, reason, hint);
}

function failure(name: string, reason: string, hint: string) {
  return new Error(`Asking ${name} failed (${reason}): ${hint}.`);
}

/** Whether this code, of the reply or of HTTP, means that PAN-OS refuses the key or its role. */
function isRefusal(code: string) {
  return ['15', '16', '22', '401', '403'].includes(code);
}

/** Sends the call, which fails when the signal fires or 30 s after it was queued. */
async function post(firewall: Firewall, call: URLSearchParams, signal: AbortSignal) {
  const timeout = new AbortController();
  const timer = setTimeout(() => timeout.abort(new Error('no reply within 30 s')), CALL_TIMEOUT_MS);
  const ending = AbortSignal.any([signal, timeout.signal]);
  try {
    ending.throwIfAborted();
    return await abortable(send(firewall, call, ending), ending);
  } catch (error) {
    const { message, code = '' } = error as NodeJS.ErrnoException;
    // undici says this when it could not fetch the rest of a reply that broke off.
    const reason = code === 'UND_ERR_REQ_RETRY' ? 'the reply was cut off' : message || code;
    throw failure(firewall.name, reason, hintFor(String(code))); // An abort's code is a number.
  } finally {
    clearTimeout(timer);
  }
}

/** Rejects as soon as the signal fires. undici rejects a queued call only when its turn comes. */
function abortable<T>(promise: Promise<T>, signal: AbortSignal) {
  return new Promise<T>((resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason as Error));
    promise.then(resolve, reject);
  });
}

async function send({ apiKey, dispatcher }: Firewall, call: URLSearchParams, signal: AbortSignal) {
  const headers = { 'content-type': 'application/x-www-form-urlencoded', 'x-pan-key': apiKey };
  const request = { path: '/api/', headers, body: call.toString(), signal };
  const { statusCode, body } = await dispatcher.request({ method: 'POST', ...request });
  return { statusCode, text: await body.text() };
}

/** What to do when no reply came, by the code that undici, Node or OpenSSL gives the failure. */
function hintFor(code: string) {
  if (code.includes('ALTNAME')) {
    return 'set PANOS_HOSTNAME to a name in the certificate of the device';
  }
  if (code.includes('CERT') || code.includes('SIGNATURE')) {
    return 'replace the certificate, name its CA in NODE_EXTRA_CA_CERTS, '
      + 'or in a lab set PANOS_SKIP_VERIFY_CERTIFICATE=true';
  }
  return HOST_HINT;
}

const replySchema = z.object({ response: z.looseObject({ status: z.string() }) });

/** The `<response>` of a reply; undefined if the reply is anything else. */
function parseResponse(parser: XMLParser, text: string) {
  // PAN-OS sends no DOCTYPE. A reply with one is a web page, or XML that declares its own entities.
  if (text.includes('<!DOCTYPE')) return undefined;
  try {
    return replySchema.parse(parser.parse(text.trim(), true)).response;
  } catch {
    return undefined;
  }
}

/** The text of a message, which PAN-OS wraps in several elements, cut to a readable length. */
function textOf(node: unknown): string {
  if (typeof node === 'string') return node.trim().slice(0, 500);
  const parts = Object.values(node ?? {}).map(textOf);
  return parts.join(' ').slice(0, 500);
}

function describeFirewall(settings: Settings) {
  if (!settings.PANOS_HOSTNAME) return 'none, so the tool answers with sample data';
  if (!settings.PANOS_SKIP_VERIFY_CERTIFICATE) return settings.PANOS_HOSTNAME;
  return `${settings.PANOS_HOSTNAME} (warning: its certificate is not checked)`;
}

// ==== Replace to here =========================================================================

// ---- Settings --------------------------------------------------------------------------------

const HOSTS_RULE = 'It must be host names with commas between them.';
const PORT_RULE = 'It must be a whole number from 0 to 65535.';
const portSchema = z.string().regex(/^\d+$/, PORT_RULE).transform(Number);
const pathSchema = z.string().regex(/^(\/[\w~-][\w.~-]*)+$/, 'It must be a path such as /mcp/sse.');
const hostsSchema = z.string().transform((list) => list.split(/ *, */).map(hostnameOf));
const settingsSchema = z.object({
  HOST: z.string().default('127.0.0.1'),
  PORT: portSchema.pipe(z.number().max(65535, PORT_RULE)).default(3000),
  SSE_PATH: pathSchema.default('/sse'),
  MESSAGES_PATH: pathSchema.default('/messages'),
  ALLOWED_HOSTS: hostsSchema.pipe(z.array(z.string(HOSTS_RULE))).default([]),
  MCP_TOKEN: secretSchema().optional(),
  ...firewallSettings.shape,
});

/** The settings, under the names of their environment variables. */
export type Settings = z.infer<typeof settingsSchema>;

/** A function, because the firewall's settings above could not use a constant from here. */
function secretSchema() {
  return z.string().regex(/^[!-~]+$/, 'It must be printable ASCII without spaces.');
}

/**
 * Reads the settings from environment variables. One that is unset or blank takes its default.
 *
 * @throws an Error whose message names each wrong setting and says what it must be
 */
export function readSettings(env: Record<string, string | undefined>) {
  const given: Record<string, string> = {};
  for (const [name, value] of Object.entries(env)) {
    if (value?.trim()) given[name] = value;
  }
  const { data, error } = settingsSchema.safeParse(given);
  if (error) {
    const faults = error.issues.map(({ path, message }) => {
      return describeFault(String(path[0]), given[String(path[0])], message);
    });
    throw new Error([...new Set(faults)].join(' '));
  }
  const { HOST, SSE_PATH, MESSAGES_PATH, MCP_TOKEN } = data;
  const faults: string[] = [];
  if (SSE_PATH === MESSAGES_PATH) {
    faults.push(`SSE_PATH and MESSAGES_PATH are both ${SSE_PATH}. They must differ.`);
  }
  if (!isLoopback(HOST) && !MCP_TOKEN) {
    faults.push(`HOST is "${HOST}", which lets other machines in. Set MCP_TOKEN as well.`);
  }
  if (faults.length > 0) throw new Error(faults.join(' '));
  return data;
}

function describeFault(name: string, value: string | undefined, rule: string) {
  if (value === undefined) return `${name} is not set. Set it in the environment or in .env.`;
  // A secret must not reach a log, and a URL may hold a password before its @.
  const isSecret = /TOKEN|KEY|SECRET|PASSWORD/.test(name) || value.includes('@');
  return `${name} is ${isSecret ? 'wrong' : JSON.stringify(value)}. ${rule}`;
}

/** Reads `.env` in the working directory, if there is one. */
function readEnvFile(): Record<string, string | undefined> {
  const file = statSync('.env', { throwIfNoEntry: false });
  if (!file || file.isDirectory()) return {}; // Some Python projects have a folder of this name.
  const text = readFileSync('.env', 'utf8');
  // PowerShell's `>` writes such files, and their settings would be ignored without a warning.
  if (text.startsWith('\uFEFF') || text.includes('\0')) {
    throw new Error('.env is UTF-16 or has a byte order mark. Save it as UTF-8 without one.');
  }
  return parseEnv(text);
}

// ---- Main ------------------------------------------------------------------------------------

const SHUTDOWN_MS = 5_000;
const SAME_SIGNAL_MS = 100;

const logHooks: SessionHooks = {
  onSessionStart(session) {
    console.log(`Session ${session.id.slice(0, 8)} started from ${session.address}`);
  },
  onSessionEnd(session) {
    const lasted = Date.now() - session.startedAt.getTime();
    console.log(`Session ${session.id.slice(0, 8)} ended after ${lasted} ms`);
  },
};

/** Starts the server, with its settings from the environment and from `.env`. */
export async function main() {
  // A log reader that goes away, as in `npm start | head -1`, must not end the sessions.
  process.stdout.on('error', () => undefined);
  process.stderr.on('error', () => undefined);
  try {
    const fileEnv = readEnvFile();
    const settings = readSettings({ ...fileEnv, ...process.env });
    const firewall = connectFirewall(settings);
    const { server, shutdown } = createMcpHttpServer({
      getServer: () => getServer(firewall),
      hooks: logHooks,
      ssePath: settings.SSE_PATH,
      messagesPath: settings.MESSAGES_PATH,
      allowedHosts: settings.ALLOWED_HOSTS,
      token: settings.MCP_TOKEN,
    });
    await listen(server, settings);
    shutDownOnSignals(shutdown);
    console.log(`Firewall: ${describeFirewall(settings)}`);
    logStart(server, settings, fileEnv);
  } catch (error) {
    // The program that called main() may have other work, but its process must end all the same.
    const line = `Cannot start: ${(error as Error).message}\n`;
    process.stderr.write(line, () => process.exit(1));
  }
}

async function listen(server: Server, { HOST, PORT }: Settings) {
  try {
    server.listen(PORT, HOST);
    await once(server, 'listening');
  } catch (error) {
    const { message } = error as Error;
    const reason = `HOST ${HOST} with PORT ${PORT} cannot be used: ${message}.`;
    throw new Error(`${reason} Set another host or another port.`);
  }
}

/** Ends the sessions at the first signal, and the process at once at the second. */
function shutDownOnSignals(shutdown: () => Promise<void>) {
  let firstSignalAt: number | undefined;

  async function onSignal(signal: string) {
    if (firstSignalAt !== undefined) {
      // After a Ctrl-C this process gets SIGINT twice: from the terminal and from npm.
      const isRepeated = signal === 'SIGINT' && Date.now() - firstSignalAt < SAME_SIGNAL_MS;
      if (!isRepeated) process.exit(1);
      return;
    }
    firstSignalAt = Date.now();
    setTimeout(() => process.exit(), SHUTDOWN_MS);
    await shutdown();
    process.exit();
  }

  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => void onSignal(signal));
  }
}

function logStart(server: Server, settings: Settings, fileEnv: NodeJS.Dict<string>) {
  const { HOST, SSE_PATH, MESSAGES_PATH, MCP_TOKEN } = settings;
  const { port } = server.address() as AddressInfo;
  const isEveryAddress = HOST === '0.0.0.0' || HOST === '::';
  const host = isEveryAddress ? 'localhost' : HOST;
  const url = `http://${isIPv6(host) ? `[${host}]` : host}:${port}`;
  const header = MCP_TOKEN ? '-H "Authorization: Bearer <MCP_TOKEN>" ' : '';
  const fromFile = Object.keys(settings).filter((name) => {
    return fileEnv[name]?.trim() && process.env[name] === undefined;
  });
  if (fromFile.length > 0) console.log(`Settings from .env: ${fromFile.join(', ')}`);
  console.log(`MCP over HTTP+SSE: GET ${url}${SSE_PATH}, POST ${url}${MESSAGES_PATH}`);
  console.log(`Token: ${MCP_TOKEN ? 'required' : 'not required'}`);
  console.log(`Try: curl -N ${header}${url}${SSE_PATH}`);
}

/** Whether this file was started, rather than imported by another one. */
function isStarted() {
  try {
    // Node's own resolver knows that `node .` and `node dist/server` mean this file too. Node 24
    // could ask `import.meta.main` instead.
    const require = module.createRequire(import.meta.url);
    return require.resolve(process.argv[1] ?? '') === import.meta.filename;
  } catch {
    return false;
  }
}

if (isStarted()) await main();
